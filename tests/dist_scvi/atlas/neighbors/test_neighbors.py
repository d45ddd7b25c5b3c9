"""Neighbours: those of an exact search over all cells, whatever the chunks, filters and metric."""

from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.atlas.neighbors import neighbors as question
from dist_scvi.atlas.neighbors.neighbors import neighbors
from dist_scvi.atlas.neighbors.search import NeighborSearch, Points
from dist_scvi.atlas.queries.where import CellSet
from dist_scvi.atlas.writer.centroids import k_means, n_neighbourhoods, nearest
from dist_scvi.loaders import open_store
from dist_scvi.model import SCVI

K, N = 12, 6000


class DrawnAtlas:
    """Latent means of clusters, in the order of their neighbourhoods."""

    uri, digest = "drawn", "d" * 64

    def __init__(self, n: int = N, d: int = 6) -> None:
        import torch

        rng = np.random.default_rng(1)
        centre = rng.normal(0, 3, (9, d))
        mean = centre[rng.integers(0, 9, n)] + rng.normal(0, 0.4, (n, d)) * np.exp(-np.arange(d) / 2)
        mean[: n // 20] = mean[0]  # many cells at one point
        mean = mean.astype(np.float16).astype(np.float32)
        centroids = k_means(mean, n_neighbourhoods(n), 0)
        of_n, distance_n = (part.numpy() for part in nearest(torch.from_numpy(mean), torch.from_numpy(centroids)))
        order = np.argsort(of_n, kind="stable")
        radius = np.zeros(len(centroids), np.float32)
        np.maximum.at(radius, of_n, distance_n)
        offsets = np.searchsorted(of_n[order], np.arange(len(centroids) + 1))
        self.neighbourhoods = SimpleNamespace(centroids=centroids, offsets=offsets, radius=radius)
        self.mean, self.variance = mean[order], rng.gamma(1, 0.2, (n, d)).astype(np.float32)
        self.n_cells, self.leaves, self.chunk = n, None, 1000
        self.spec = SimpleNamespace(model=SimpleNamespace(n_latent=d))

    def read_mean(self, rows=None):
        return self.mean[slice(None) if rows is None else rows]

    def read_latent(self, rows=None):
        rows = slice(None) if rows is None else rows
        return self.mean[rows], self.variance[rows]

    def chunks(self, size=65536):
        return (slice(at, min(at + self.chunk, self.n_cells)) for at in range(0, self.n_cells, self.chunk))

    def obs_names(self, rows):
        return np.array([f"c{row}" for row in rows], object)

    def rows_named(self, names):
        return np.array([int(name[1:]) for name in names])


@pytest.fixture(scope="module")
def drawn() -> DrawnAtlas:
    return DrawnAtlas()


def exact(drawn, row_q, mask_n=None, added_n=0.0, k=K):
    """The distances of the nearest cells, in double precision."""
    square = cdist(drawn.mean[row_q], drawn.mean, "sqeuclidean") + added_n
    square[np.arange(len(row_q)), row_q] = np.inf
    if mask_n is not None:
        square[:, ~mask_n] = np.inf
    return np.sqrt(np.sort(square, axis=1)[:, :k])


def distances(answer, k=K):
    return answer.table["distance"].to_numpy().reshape(-1, k)


@pytest.mark.parametrize("chunk", [97, 1000, N])
@pytest.mark.parametrize("engine", ["auto", "exact"])
def test_neighbours_are_those_of_an_exact_search(drawn, chunk, engine):
    row_q = np.random.default_rng(0).integers(0, N, 200)
    drawn.chunk = chunk
    answer = neighbors(drawn, row_q, K, engine=engine)
    np.testing.assert_allclose(distances(answer), exact(drawn, row_q), rtol=1e-5, atol=1e-6)
    assert answer.parameters["recall"] == 1
    assert not (answer.table["row"].to_numpy().reshape(-1, K) == row_q[:, None]).any()
    drawn.chunk = 1000
    pd.testing.assert_frame_equal(answer.table, neighbors(drawn, row_q, K, engine=engine).table)


def test_a_large_batch_states_the_recall_that_it_has(drawn):
    row_q = np.random.default_rng(2).integers(0, N, 600)
    answer = neighbors(drawn, row_q, K, names=False)
    near = distances(answer) <= exact(drawn, row_q)[:, -1:] * (1 + 1e-6)
    assert near.mean() >= 0.99
    assert abs(near.mean() - answer.parameters["recall"]) < 0.01
    assert answer.engine == "index"
    assert "measured on 64 of 600 points" in answer.notes[0]
    assert list(answer.table) == ["query", "rank", "row", "distance"]


def test_the_index_reads_few_cells_and_bounds_exclude_most(drawn):
    every = CellSet("all", N, None, pd.DataFrame(), lambda rows: np.ones(rows.stop - rows.start, bool))
    search = NeighborSearch(drawn, every)
    row_q = np.arange(0, N, 60)
    search.find(Points(drawn.mean[row_q], row_q), K)
    assert search.compared < 0.2 * N * len(row_q)


@pytest.mark.parametrize("share", [0.5, 0.004])
def test_a_filter_restricts_the_neighbours(drawn, share):
    mask_n = np.random.default_rng(3).random(N) < share
    row_q = np.arange(5, N, 211)
    answer = neighbors(drawn, row_q, K, where=np.flatnonzero(mask_n))
    assert mask_n[answer.table["row"]].all()
    np.testing.assert_allclose(distances(answer), exact(drawn, row_q, mask_n), rtol=1e-5, atol=1e-6)


def test_posterior_distances_add_both_variances(drawn):
    row_q = np.arange(3, N, 300)
    answer = neighbors(drawn, row_q, K, metric="posterior")
    total_n = drawn.variance.sum(axis=1)
    expected = np.sqrt(exact(drawn, row_q, added_n=total_n) ** 2 + total_n[row_q][:, None])
    np.testing.assert_allclose(distances(answer), expected, rtol=1e-5)


def test_an_atlas_without_neighbourhoods_is_searched_in_full(drawn):
    old = DrawnAtlas(700)
    old.neighbourhoods = None
    row_q = np.arange(0, 700, 9)
    np.testing.assert_allclose(distances(neighbors(old, row_q, K)), exact(old, row_q), rtol=1e-5, atol=1e-6)


def test_latent_vectors_and_names_are_queries(drawn):
    by_name = neighbors(drawn, ["c7", "c70"], 3)
    assert list(by_name.table["query"].unique()) == ["c7", "c70"]
    of_vector = neighbors(drawn, drawn.mean[7], 4)
    assert of_vector.table["distance"].iloc[0] == 0
    assert len(of_vector) == 4


def test_memory_of_a_search_does_not_grow_with_the_atlas(monkeypatch):
    import tracemalloc

    monkeypatch.setattr("dist_scvi.atlas.neighbors.search._PAIRS", 4096)
    peaks = []
    for n in (20_000, 80_000):
        many = DrawnAtlas.__new__(DrawnAtlas)
        few = DrawnAtlas(2000)
        copies = n // 2000
        many.__dict__.update(few.__dict__)
        many.n_cells, many.mean = n, np.repeat(few.mean, copies, axis=0)
        many.neighbourhoods = SimpleNamespace(
            **{**vars(few.neighbourhoods), "offsets": few.neighbourhoods.offsets * copies}
        )
        neighbors(many, np.arange(10), 5, engine="exact", names=False)
        tracemalloc.start()
        neighbors(many, np.arange(0, n, n // 200), 5, engine="exact", names=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (np.full((2, 6), np.nan), {}, "not finite, first at index 0"),
        (np.zeros((2, 5)), {}, r"shape \(2, 5\).* latent vectors of shape \(n, 6\)"),
        ([], {}, "at least one|shape"),
        ([N], {}, f"indices run from {N}"),
        ([1], {"k": 0}, "k=0: a whole number"),
        ([1], {"k": N}, "less the cell itself: lower k"),
        ([1], {"k": 5, "where": [3, 4]}, "k=5 neighbours are requested of 2 cells"),
        ([1], {"metric": "cosine"}, "'euclidean' or 'posterior'"),
        ([1], {"engine": "hnsw"}, "'auto', 'index', 'exact'"),
        ([1], {"where": []}, "no cell is left"),
    ],
)
def test_a_query_that_cannot_be_answered_is_refused(drawn, query, options, message):
    with pytest.raises(ValueError, match=message):
        neighbors(drawn, query, **options)


def test_too_many_rows_are_refused(drawn, monkeypatch):
    monkeypatch.setattr(question, "MAX_ROWS", 10)
    with pytest.raises(ValueError, match="6 points x k=2 are 12 rows"):
        neighbors(drawn, np.arange(6), 2)


def test_new_counts_are_placed_among_the_cells_of_an_atlas(atlas: Atlas, more: ad.AnnData, model: SCVI):
    rows = [5, 17, 300]
    answer = atlas.neighbors(more[rows].copy(), 1, min_overlap=0.9)
    assert list(answer.table["cell"]) == [f"cell{row}" for row in rows]
    assert "50 of 50 genes match by var_names" in answer.notes[1]
    by_symbol = more[rows, :40].copy()  # SYM23 and SYM24 are names of two genes each
    by_symbol.var_names = [f"SYM{gene}" for gene in range(40)]
    found = atlas.neighbors(by_symbol, 3, min_overlap=0.5)
    assert "38 of 50 genes match by var['symbol'] of the atlas and var_names of the new cells" in found.notes[1]
    again = atlas.neighbors(open_store(by_symbol), 3)
    pd.testing.assert_frame_equal(found.table, again.table)


def test_new_counts_that_do_not_fit_are_refused(atlas: Atlas, more: ad.AnnData):
    normalised = more[:9].copy()
    normalised.X = normalised.X.log1p()
    with (
        pytest.raises(ValueError, match="not whole in X, as after normalisation"),
        pytest.warns(UserWarning, match="not whole|fraction"),
    ):
        atlas.neighbors(normalised, 2)
    other = more[:9].copy()
    other.var_names = [f"Gene{gene}" for gene in range(50)]
    del other.var["symbol"]
    with pytest.raises(ValueError, match=r"0 of the 50 genes.*did you mean 'Gene0'"):
        atlas.neighbors(other, 2)


def test_the_cost_of_neighbours_is_explained(atlas: Atlas):
    plan = atlas.explain("neighbors", query="label == 'T'", k=3, where="label == 'B'")
    assert (plan.engine, plan.cells) == ("exact", atlas.where("label == 'B'").n_cells)
    assert plan.bytes > 0
    assert plan.seconds > 0
    found = atlas.neighbors("label == 'T'", 3, where="label == 'B'")
    assert found.n_cells["query"] == atlas.where("label == 'T'").n_cells
    with pytest.raises(ValueError, match="did you mean 'label'"):
        atlas.explain("neighbors", query="labl == 'T'")
    assert replace(found, notes=()).to_arrow().num_rows == len(found)
