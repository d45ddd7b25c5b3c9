"""Small data sets for tutorials and tests, under the names of ``scvi.data``.

Shape letters in this file
    n   cells
    g   genes, proteins or regions
"""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.session_settings import settings

if TYPE_CHECKING:
    from anndata import AnnData

_FORMATS = ("csr_matrix", "csc_matrix", "csr_array", "csc_array", "coo_matrix")


def synthetic_iid(
    batch_size: int = 200,
    n_genes: int = 100,
    n_proteins: int = 100,
    n_regions: int = 100,
    n_batches: int = 2,
    n_labels: int = 3,
    dropout_ratio: float = 0.7,
    sparse_format: Literal["csr_matrix", "csc_matrix", "csr_array", "csc_array"] | None = None,
    generate_coordinates: bool = False,  # noqa: FBT001, FBT002 - the position it has in scvi-tools
    *,
    batch_key: str = "batch",
    labels_key: str = "labels",
    seed: int | None = None,
) -> "AnnData":
    """Simulate cells whose counts are independent and identically distributed, without any structure to be found.

    Parameters
    ----------
    batch_size
        Cells of each batch.
    n_genes, n_proteins, n_regions
        Columns of ``X``, of ``obsm["protein_expression"]`` and of ``obsm["accessibility"]``; no such matrix for 0.
    n_batches, n_labels
        Categories of ``obs[batch_key]`` and ``obs[labels_key]``; no labels for 0.
    dropout_ratio
        Probability, from 0 to 1, that a count of genes or regions is kept: the others are 0. The name is scvi-tools'.
    sparse_format
        Class of `scipy.sparse` of the matrices; dense by default.
    generate_coordinates
        Add ``obsm["coordinates"]``, two standard normal numbers for each cell.
    seed
        ``dist_scvi.settings.seed`` by default.

    Returns
    -------
    anndata.AnnData
        Genes ``gene_0``, ..., batches ``batch_0``, ..., labels ``label_0``, ...

    Raises
    ------
    ValueError
        If a number is out of range or the format is not one of SciPy's.

    Notes
    -----
    scvi-tools 1.4.2, data/_built_in_data/_synthetic.py, with the same distributions and other random numbers. MuData
    is not made.
    """
    for name, size in {"batch_size": batch_size, "n_genes": n_genes, "n_batches": n_batches}.items():
        if size < 1:
            raise ValueError(f"{name}={size}: at least 1 is needed")
    if not 0 <= dropout_ratio <= 1:
        raise ValueError(f"dropout_ratio={dropout_ratio}: a probability from 0 to 1 is needed")
    if sparse_format is not None and sparse_format not in _FORMATS:
        raise ValueError(f"sparse_format={sparse_format!r}: {', '.join(_FORMATS)} or None is needed")
    from anndata import AnnData

    rng = np.random.default_rng(settings.seed if seed is None else seed)
    n = batch_size * n_batches

    def counts(g: int, kept: float = 1.0) -> Any:
        drawn_ng: NDArray[np.int64] = rng.negative_binomial(5, 0.3, (n, g)) * rng.binomial(1, kept, (n, g))
        dense_ng = drawn_ng.astype(np.float32)
        return dense_ng if sparse_format is None else getattr(sparse, sparse_format)(dense_ng)

    obs = pd.DataFrame(index=[str(row) for row in range(n)])
    obs[batch_key] = pd.Categorical(np.repeat([f"batch_{batch}" for batch in range(n_batches)], batch_size))
    adata = AnnData(
        counts(n_genes, dropout_ratio), obs=obs, var=pd.DataFrame(index=[f"gene_{gene}" for gene in range(n_genes)])
    )
    if n_proteins > 0:
        adata.obsm["protein_expression"] = counts(n_proteins)
        adata.uns["protein_names"] = np.array([f"protein_{protein}" for protein in range(n_proteins)])
    if n_regions > 0:
        adata.obsm["accessibility"] = counts(n_regions, dropout_ratio)
    if n_labels > 0:
        adata.obs[labels_key] = pd.Categorical([f"label_{label}" for label in rng.integers(0, n_labels, n)])
    if generate_coordinates:
        adata.obsm["coordinates"] = rng.normal(size=(n, 2))
    return adata
