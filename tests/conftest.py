"""Cells whose every count is a formula of row and gene, so that any mix-up shows; see `count_at`."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from hypothesis import settings
from scipy import sparse

settings.register_profile("patient", deadline=None)  # the first call of a compiled loop takes longer than all others
settings.load_profile("patient")

N_CELLS, N_GENES, EMPTY_ROW = 150, 23, 5


def count_at(row_n, gene_g):
    """Give the count of a gene in a row: mostly zero, sometimes above 255, none in row 5."""
    count = np.where((row_n + gene_g) % 3 == 0, (row_n * 7 + gene_g * 3) % 11, 0) + 300 * (row_n == gene_g)
    return np.where(row_n == EMPTY_ROW, 0, count)


def _matrix(counts_ng: np.ndarray) -> sparse.csr_matrix:
    """Compress with an explicit zero in every third row, and every other row from the last gene to the first."""
    genes = []
    for row, count_g in enumerate(counts_ng):
        gene_e = np.flatnonzero((count_g > 0) | ((row % 3 == 1) & (np.arange(len(count_g)) == 4)))
        genes.append(gene_e[::-1] if row % 2 else gene_e)
    row_e = np.repeat(np.arange(len(genes)), [len(gene_e) for gene_e in genes])
    gene_e = np.concatenate(genes)
    indptr = np.searchsorted(row_e, np.arange(len(genes) + 1))
    return sparse.csr_matrix((counts_ng[row_e, gene_e].astype(np.float32), gene_e, indptr), shape=counts_ng.shape)


@pytest.fixture(scope="session")
def expected_ng() -> np.ndarray:
    return count_at(np.arange(N_CELLS)[:, None], np.arange(N_GENES))


@pytest.fixture
def cells(pristine: AnnData) -> AnnData:
    """The same cells, for a test to change."""
    return pristine.copy()


@pytest.fixture(scope="session")
def pristine(expected_ng: np.ndarray) -> AnnData:
    """An AnnData with an obs column of every kind, explicit zeros, unsorted indices and a layer of doubled counts."""
    row_n = np.arange(N_CELLS)
    obs = pd.DataFrame(
        {
            "place": pd.Categorical.from_codes(row_n // 40 % 3, ["s2", "s10", "s1"]),
            "text": [f"t{row % 7}" for row in row_n],
            "lane": row_n % 12,
            "gap": pd.Categorical.from_codes(np.where(row_n % 10 == 3, -1, row_n % 2), ["u", "v"]),
            "age": row_n / 4,
        },
        index=[f"cell{row}" for row in row_n],
    )
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(N_GENES)])
    return AnnData(_matrix(expected_ng), obs=obs, var=var, layers={"twice": _matrix(2 * expected_ng)})


@pytest.fixture(scope="session")
def kept() -> dict[type, object]:
    """What a class of tests wants to make once."""
    return {}


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write an AnnData with anndata itself: as zarr2, zarr3 or h5ad, strings kept as strings."""

    def write(adata: AnnData, kind: str = "zarr3") -> Path:
        path = tmp_path_factory.mktemp("stored") / f"cells.{'h5ad' if kind == 'h5ad' else 'zarr'}"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="zarr v3 autosharding|Consolidated metadata|Writing zarr v2")
            warnings.filterwarnings("ignore", message="zarr v3 will become|This setting will be removed in 0.14")
            with anndata.settings.override(zarr_write_format=2 if kind == "zarr2" else 3):
                write_file = adata.write_h5ad if kind == "h5ad" else adata.write_zarr
                write_file(path, convert_strings_to_categoricals=False)
        return path

    return write


@pytest.fixture(scope="session")
def rewrite() -> Callable[..., None]:
    """Replace an array of a Zarr v3 folder, with other values, chunks or codecs."""

    def replace(path: Path, name: str, values=None, *, chunks: int = 64, shards: int | None = None, codecs="auto"):
        root = zarr.open_group(path, mode="r+", use_consolidated=False)
        old = root[name]
        values = old[:] if values is None else np.asarray(values)
        attributes, n_columns = dict(old.attrs), values.shape[1:]
        del root[name]
        array = root.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(chunks, *n_columns),
            shards=(shards, *n_columns) if shards else None,
            compressors=codecs,
            attributes=attributes,
        )
        array[:] = values
        described = json.loads((path / "zarr.json").read_text())
        described.pop("consolidated_metadata", None)  # it tells of the array that was
        (path / "zarr.json").write_text(json.dumps(described))

    return replace
