import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from dist_scvi.loaders.arrays.csr_rows import CsrRows
from dist_scvi.loaders.pack.sorted_parts import (
    COUNTS,
    ENTRIES,
    ROWS,
    MovingRows,
    destinations,
    gather_entries,
    gather_records,
    joint_types,
    place_rows,
    settle_rows,
    sum_edges,
    write_part,
)
from tests.loaders.store_contract import dense

SEEDS = st.one_of(st.none(), st.integers(0, 2**62))


def in_turn(code_n, cuts, n_groups, seed) -> np.ndarray:
    """Give the destinations of all rows, asked for piece by piece."""
    size_g = np.bincount(code_n, minlength=n_groups)
    pieces = [
        destinations(code_n[low:high], np.bincount(code_n[:low], minlength=n_groups), size_g, seed)
        for low, high in itertools.pairwise(cuts)
    ]
    return np.concatenate(pieces)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), SEEDS, st.data())
def test_each_row_gets_a_place_of_its_own_however_the_source_is_cut(codes, seed, data):
    code_n = np.array(codes)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(codes)), max_size=5)) | {0, len(codes)})
    place_n = in_turn(code_n, cuts, 5, seed)
    assert_array_equal(np.sort(place_n), np.arange(len(codes)))
    assert_array_equal(place_n, in_turn(code_n, [0, len(codes)], 5, seed))
    assert (np.diff(code_n[np.argsort(place_n)]) >= 0).all()
    if seed is None:
        assert_array_equal(place_n, np.argsort(np.argsort(code_n, kind="stable")))


def test_every_place_is_as_likely_for_every_row():
    n, orders = 6, 1500
    places = np.array(
        [destinations(np.zeros(n, np.int64), np.zeros(1, np.int64), np.array([n]), s) for s in range(orders)]
    )
    expected = orders / n
    for row in range(n):
        found = np.bincount(places[:, row], minlength=n)
        assert ((found - expected) ** 2 / expected).sum() < 27  # chi-square of 5 degrees, p = 6e-5
    pairs = np.bincount(places[:, 0] * n + places[:, 1], minlength=n * n)
    expected = orders / (n * (n - 1))
    found = pairs[pairs > 0]
    assert len(found) == n * (n - 1)
    assert ((found - expected) ** 2 / expected).sum() < 65  # of 29 degrees, p = 1e-4


def test_groups_are_shuffled_each_in_an_order_of_its_own():
    code_n = np.repeat([0, 1], 50)
    place_n = in_turn(code_n, [0, 100], 2, 3)
    assert not np.array_equal(place_n[:50], place_n[50:] - 50)


@settings(deadline=None)  # compiles
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_settled_rows_hold_the_genes_asked_for_sorted_and_no_zeros(seed, n_kept):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 20, 12)
    kept = rng.permutation(12)[:n_kept]
    place_g = np.full(12, -1, dtype=np.int32)
    place_g[kept] = np.arange(n_kept)
    settled, total_n = settle_rows(rows, place_g, n_kept)
    assert_array_equal(dense(settled, n_kept), dense(rows, 12)[:, kept])
    assert_array_equal(total_n, dense(settled, n_kept).sum(axis=1))
    assert (settled.counts_e > 0).all()
    for low, high in itertools.pairwise(settled.indptr):
        assert (np.diff(settled.genes_e[low:high].astype(int)) > 0).all()


def test_settled_genes_take_the_type_that_numbers_those_kept():
    rows = CsrRows(np.array([3], np.uint8), np.array([70_000], np.int32), np.array([0, 1]))
    place_g = np.full(80_000, -1, dtype=np.int32)
    place_g[70_000] = 0
    assert settle_rows(rows, place_g, 1)[0].genes_e.dtype == np.uint16
    assert settle_rows(rows, np.arange(80_000, dtype=np.int32), 80_000)[0].genes_e.tolist() == [70_000]


def test_rows_are_cut_where_the_output_begins_and_ends():
    out_e, genes_e = np.zeros(4, np.uint8), np.zeros(4, np.uint16)
    values_e = np.arange(1, 10, dtype=np.uint8)
    place_rows(values_e, values_e.astype(np.uint16), np.array([3, 4, 2]), np.array([-1, 2, 9]), out_e, genes_e)
    assert out_e.tolist() == genes_e.tolist() == [2, 3, 4, 5]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 20))
def test_any_stretch_of_the_new_order_is_put_together_from_any_parts(tmp_path_factory, seed, n, block_cells):
    rng = np.random.default_rng(seed)
    rows, place_n, order = random_rows(rng, n, 12), rng.permutation(n), None
    folder = tmp_path_factory.mktemp("parts")
    order = np.argsort(place_n)
    parts = write_parts(folder, rng, rows, place_n, block_cells)
    edges, (counts_type, records_type) = sum_edges(parts), joint_types(parts)
    wanted = rows.take(order)
    border_b = np.minimum(np.arange(-(-n // block_cells) + 1) * block_cells, n)
    assert_array_equal(edges[:, ROWS], border_b)
    assert_array_equal(edges[:, ENTRIES], wanted.indptr[border_b])
    assert_array_equal(edges[:, COUNTS], np.append(0, np.cumsum(wanted.library_n()))[border_b])
    assert counts_type == np.min_scalar_type(wanted.counts_e.max(initial=0))
    first, last = np.sort(rng.choice(len(edges), 2, replace=False))
    records_n = gather_records(parts, edges, first, last, records_type)
    span = slice(border_b[first], border_b[last])
    assert_array_equal(records_n["name"], np.char.add("cell", order.astype(str)).astype("S")[span])
    assert_array_equal(records_n["length"], np.diff(wanted.indptr)[span])
    if len(wanted.counts_e):
        low, high = np.sort(rng.choice(len(wanted.counts_e) + 1, 2, replace=False))
        counts_e, genes_e = gather_entries(parts, edges, low, high, (counts_type, np.dtype(np.uint16)))
        assert_array_equal(counts_e, wanted.counts_e[low:high])
        assert_array_equal(genes_e, wanted.genes_e[low:high])


def test_types_are_those_that_hold_all_parts(tmp_path):
    for number, (count, name, value) in enumerate([(1, b"a", np.int8(3)), (300, b"long", np.float32(0.5))]):
        counts = CsrRows(np.array([count], np.uint16), np.array([0], np.uint16), np.array([0, 1]))
        write_part(
            tmp_path / str(number),
            [MovingRows(counts, records([number], counts, [name], [value]))],
            n_cells=2,
            block_cells=1,
        )
    parts = [tmp_path / "0", tmp_path / "1"]
    counts_type, records_type = joint_types(parts)
    assert np.load(parts[0] / "counts.npy").dtype == np.uint8
    assert (counts_type, records_type["name"], records_type["0"]) == (np.uint16, "S4", np.float32)
    assert gather_records(parts, sum_edges(parts), 0, 2, records_type)["0"].tolist() == [3.0, 0.5]


def test_what_is_pending_is_let_go_of_when_it_is_written(tmp_path):
    counts = CsrRows(np.array([1], np.uint8), np.array([0], np.uint16), np.array([0, 1]))
    pending = [MovingRows(counts, records([0], counts, [b"a"], [0]))]
    write_part(tmp_path / "a", pending, n_cells=1, block_cells=1)
    assert pending == []


def random_rows(rng, n, n_genes) -> CsrRows:
    """Draw rows in which every order of genes, zeros, empty rows and wide counts occur."""
    genes = [rng.permutation(n_genes)[: rng.integers(0, n_genes + 1)] for _ in range(n)]
    indptr = np.cumsum([0, *map(len, genes)])
    counts_e = rng.choice([0, 1, 2, 200, int(rng.choice([3, 300, 70_000]))], indptr[-1])
    return CsrRows(counts_e.astype(np.uint32), np.concatenate(genes).astype(np.uint16), indptr.astype(np.int64))


def records(place_n, rows, names, values) -> np.ndarray:
    fields = [
        ("destination", np.array(place_n, np.int64)),
        ("length", np.diff(rows.indptr).astype(np.uint32)),
        ("total", rows.library_n()),
        ("name", np.array(names)),
        ("0", np.array(values)),
    ]
    out_n = np.empty(rows.n_cells, dtype=[(name, part.dtype) for name, part in fields])
    for name, part in fields:
        out_n[name] = part
    return out_n


def write_parts(folder, rng, rows, place_n, block_cells) -> list:
    """Write `rows` in several parts, each of several reads."""
    n = rows.n_cells
    cuts = sorted({0, n, *rng.integers(0, n + 1, 4).tolist()})
    parts = []
    for low, high in itertools.pairwise(cuts):
        middle = int(rng.integers(low, high + 1))
        pending = [
            MovingRows(
                rows.take(np.arange(a, b)),
                records(
                    place_n[a:b],
                    rows.take(np.arange(a, b)),
                    [f"cell{row}".encode() for row in range(a, b)],
                    np.arange(a, b),
                ),
            )
            for a, b in ((low, middle), (middle, high))
            if a < b
        ]
        parts.append(folder / str(low))
        write_part(parts[-1], pending, n_cells=n, block_cells=block_cells)
    return parts
