"""Cells minified by scvi-tools: the latent posterior and total count of each cell, without its counts.

Shape letters in this file
    n   cells
    k   latent dimensions
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dist_scvi.network.model_spec import ModelSpec

if TYPE_CHECKING:
    from anndata import AnnData

MINIFY_TYPE = "_scvi_adata_minify_type"
WITHOUT_COUNTS, WITH_COUNTS = "latent_posterior_parameters", "latent_posterior_parameters_with_counts"
"""Values of `MINIFY_TYPE`."""
LATENT_PREFIX = {"SCVI": "scvi", "SCANVI": "scanvi", "LinearSCVI": "ldvae"}
"""Prefix of the names of latent mean and variance in obsm, by class."""


@dataclass(frozen=True, slots=True)
class MinifiedCells:
    """The data of minified cells."""

    qzm_nk: NDArray[np.float32]
    """Mean of q(z | x)."""
    qzv_nk: NDArray[np.float32]
    """Variance of q(z | x)."""
    library_n: NDArray[np.float32]
    """Observed total count."""
    obs: pd.DataFrame
    """Table of the cells, including the covariates."""
    var: pd.DataFrame
    """Table of the genes."""


def open_minified_h5ad(path: Path, spec: ModelSpec) -> MinifiedCells:
    """Read cells minified by scvi-tools 0.20 to 1.5. Counts that are in the file are not loaded.

    Parameters
    ----------
    path
        The ``adata.h5ad`` next to the model.
    spec
        The model that encoded the cells.

    Raises
    ------
    ValueError
        If the cells are not minified, have other genes or another latent space, or have invalid numbers.

    Notes
    -----
    Names of the columns as in scvi-tools 1.4.2, model/_scvi.py, model/_scanvi.py and model/_linear_scvi.py; before 1.1
    they began with an underscore.
    """
    import anndata as ad

    # backed: a file may still have its counts, which need not fit in memory and are not used.
    try:
        cells = ad.read_h5ad(path, backed="r")
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as h5ad: {error}") from error
    try:
        return minified_cells(cells, path, spec)
    finally:
        cells.file.close()


def minified_cells(cells: "AnnData", path: Path | str, spec: ModelSpec) -> MinifiedCells:
    """Return what an AnnData, called `path` in messages, keeps of minified cells; see `open_minified_h5ad`."""
    if MINIFY_TYPE not in cells.uns:
        raise ValueError(f"{path} is not minified: uns['{MINIFY_TYPE}'] is missing; open it as a store of counts")
    if tuple(map(str, cells.var_names)) != spec.var_names:
        raise ValueError(
            f"{path} has {cells.n_vars} genes that are not the {len(spec.var_names)} of the model, in order"
        )
    prefix = LATENT_PREFIX[spec.model.model_name]
    means, variances = (
        _choose(cells.obsm, (f"{prefix}_latent_{q}", f"_{prefix}_latent_{q}"), path) for q in ("qzm", "qzv")
    )
    library = _choose(cells.obs, ("observed_lib_size", f"_{prefix}_observed_lib_size"), path)
    shape = (cells.n_obs, spec.model.n_latent)
    return MinifiedCells(
        _checked(cells.obsm[means], means, shape, path),
        _checked(cells.obsm[variances], variances, shape, path, least=0.0),
        _checked(cells.obs[library], library, shape[:1], path, least=0.0),
        cells.obs.copy(),
        cells.var.copy(),
    )


def minified_adata(
    adata: "AnnData",
    spec: ModelSpec,
    posterior: tuple[NDArray[np.float32], ...],
    library_n: NDArray[Any],
    *,
    keep_counts: bool,
) -> "AnnData":
    """Return a copy of an AnnData as scvi-tools minifies it, whose counts are 0 if they are not kept.

    Notes
    -----
    scvi-tools 1.4.2, model/utils/_minification.py: get_minified_adata_scrna. There all counts are copied first.
    """
    from anndata import AnnData

    if keep_counts:
        minified = adata.copy()
    else:
        empty = csr_matrix(adata.shape, dtype=np.float32)
        minified = AnnData(
            empty,
            obs=adata.obs.copy(),
            var=adata.var.copy(),
            uns=dict(adata.uns),
            obsm=dict(adata.obsm),
            layers={name: empty.copy() for name in adata.layers},
        )
    prefix = LATENT_PREFIX[spec.model.model_name]
    for name, values_nk in zip(("qzm", "qzv"), posterior, strict=True):
        minified.obsm[f"{prefix}_latent_{name}"] = values_nk
    minified.obs["observed_lib_size"] = library_n
    minified.uns[MINIFY_TYPE] = WITH_COUNTS if keep_counts else WITHOUT_COUNTS
    return minified


def _choose(present: Iterable[str], names: tuple[str, ...], path: Path | str) -> str:
    found = [name for name in names if name in [*present]]
    if not found:
        raise ValueError(
            f"{path} has no column {' or '.join(names)}: minify the cells again with the model's own class"
        )
    return found[0]


def _checked(
    stored: Any, name: str, shape: tuple[int, ...], path: Path | str, *, least: float = -np.inf
) -> NDArray[np.float32]:
    values = np.asarray(stored, dtype=np.float32)
    if values.shape != shape:
        raise ValueError(
            f"{name} of {path} has the shape {values.shape}: {shape} is needed, cells by latent dimensions"
        )
    if not np.isfinite(values).all() or (values < least).any():
        row = int(np.argmin((np.isfinite(values) & (values >= least)).reshape(len(values), -1).all(axis=1)))
        raise ValueError(
            f"{name} of {path} holds {values[row]} at row {row}: finite numbers of at least {least} are needed"
        )
    return values
