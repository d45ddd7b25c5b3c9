"""The digest of a store follows its content, not its place, and costs as much for a billion cells as for a million."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from dist_scvi.loaders import CellData, fingerprint, open_data, open_store
from dist_scvi.loaders.fingerprint import content_digest
from dist_scvi.loaders.pack.pack import pack_store

KEYS: dict[str, Any] = {
    "batch_key": "site",
    "labels_key": "kind",
    "categorical_covariate_keys": ["lane"],
    "continuous_covariate_keys": ["age"],
}


@pytest.fixture
def adata() -> AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"site": rng.choice(["a", "b"], 300), "kind": rng.choice(["x", "y"], 300)})
    obs = obs.assign(lane=rng.choice(["1", "2"], 300), age=rng.random(300)).set_index("c" + obs.index.astype(str))
    return AnnData(sparse.csr_matrix(rng.poisson(0.7, (300, 20)).astype(np.float32)), obs=obs)


def test_a_copy_has_the_same_digest_in_every_format(adata: AnnData, save: Callable[..., Path]) -> None:
    sources = [adata, *(save(adata, kind) for kind in ("zarr3", "zarr2", "h5ad"))]
    assert len({content_digest(open_data(source, **KEYS)) for source in sources}) == 1


def edit(adata: AnnData) -> None:
    adata.X.data[77] += 1


def swap_two_cells(adata: AnnData) -> None:
    order = np.arange(300)
    order[[5, 200]] = 200, 5
    adata.X = adata.X[order]


def move_counts_to_another_gene(adata: AnnData) -> None:
    adata.X = adata.X[:, [1, 0, *range(2, 20)]].tocsr()


def shift(key: str, adata: AnnData) -> None:
    adata.obs[key] = np.roll(adata.obs[key].to_numpy(), 1)


def rename_a_cell(adata: AnnData) -> None:
    adata.obs_names = ["another", *adata.obs_names[1:]]


CHANGES = [edit, swap_two_cells, move_counts_to_another_gene, rename_a_cell]
CHANGES += [partial(shift, key) for key in ("site", "kind", "lane", "age")]


@pytest.mark.parametrize("change", CHANGES)
def test_another_content_of_the_same_sizes_has_another_digest(
    adata: AnnData, change: Callable[[AnnData], None]
) -> None:
    before = content_digest(open_data(adata.copy(), **KEYS))
    change(adata)
    assert content_digest(open_data(adata, **KEYS)) != before


def test_columns_that_are_not_used_do_not_count(adata: AnnData) -> None:
    before = content_digest(open_data(adata, batch_key="site"))
    shift("age", adata)
    assert content_digest(open_data(adata, batch_key="site")) == before


def test_a_store_packed_with_another_seed_has_another_digest_even_where_no_row_is_read(
    adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_stretches", lambda *_: [(0, 0)])
    monkeypatch.setattr(fingerprint, "_WHOLE_ENTRIES", 0)
    found = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 5)):
        pack_store(partial(open_store, adata), tmp_path / name, seed=seed)
        found[name] = content_digest(open_data(tmp_path / name))
    assert found["one"] == found["again"] != found["other"]


class Huge:
    """A store of a billion cells that notes which rows are read."""

    n_cells, n_entries, chunk_cells = 10**9, 10**12, 40

    def __init__(self, data: CellData) -> None:
        self._store, self.read = data.store, list[tuple[int, int]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read_ranges(self, ranges: Any) -> Any:
        self.read += ranges
        return self._store.read(0, 1)

    def obs_names(self, start: int, stop: int) -> list[str]:
        return [f"c{start}"]


def test_of_a_billion_cells_a_thousand_are_read_in_all_parts_of_the_store(adata: AnnData) -> None:
    data = open_data(adata)
    huge = Huge(data)
    content_digest(replace(data, store=huge))  # type: ignore[arg-type]
    assert sum(stop - start for start, stop in huge.read) == 1024
    assert {start // (10**9 // 64) for start, _ in huge.read} >= set(range(63))
