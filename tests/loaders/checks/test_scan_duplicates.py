import numpy as np
import pytest
from scipy import sparse

from dist_scvi.loaders.arrays.csr_rows import CsrRows
from dist_scvi.loaders.checks import scan_duplicates
from dist_scvi.loaders.checks.scan_duplicates import Hashes, hash_names, n_parts
from dist_scvi.loaders.row_hash import hash_counts


def rows_of(counts_ng: np.ndarray) -> CsrRows:
    matrix = sparse.csr_matrix(counts_ng)
    return CsrRows(matrix.data.astype(np.uint16), matrix.indices.astype(np.uint16), matrix.indptr.astype(np.int64))


def test_rows_are_alike_by_their_counts_whatever_their_order_and_stored_zeros():
    one = CsrRows(np.array([3, 1], np.uint8), np.array([4, 2], np.uint16), np.array([0, 2]))
    other = CsrRows(np.array([0, 1, 3], np.uint16), np.array([9, 2, 4], np.int32), np.array([0, 3]))
    assert hash_counts(one) == hash_counts(other)


@pytest.mark.parametrize("entries", [[(2, 1), (4, 4)], [(2, 3), (4, 1)], [(2, 1)], [(2, 1), (3, 3)], [(0, 1), (4, 3)]])
def test_another_count_or_gene_makes_another_hash(entries):
    gene_e, count_e = np.array(entries).T
    other = CsrRows(count_e.astype(np.uint8), gene_e.astype(np.uint16), np.array([0, len(entries)]))
    same = CsrRows(np.array([1, 3], np.uint8), np.array([2, 4], np.uint16), np.array([0, 2]))
    assert hash_counts(other) != hash_counts(same)


def test_no_two_of_many_rows_collide():
    counts_ng = np.stack(np.meshgrid(*[np.arange(12)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    hash_n = hash_counts(rows_of(counts_ng))
    assert len(np.unique(hash_n)) == len(hash_n) == 12**4
    assert hash_n[0] == 0


def test_names_differ_in_their_hashes_and_none_is_zero():
    names = [f"cell{row}" for row in range(20_000)] + ["", "Zelle\u00e4"]
    hash_n = hash_names(names)
    assert len(np.unique(hash_n)) == len(names)
    assert hash_n.all()
    assert hash_names(["cell7"]) == hash_n[7]


def test_copies_are_counted_and_the_first_are_named():
    hash_n = np.random.default_rng(0).integers(1, 1 << 63, 5000).astype(np.uint64) * np.uint64(2)
    hash_n[[70, 900, 4000]] = hash_n[3]
    hash_n[200] = hash_n[100]
    hash_n[1000:2000] = 0
    hashes = Hashes(len(hash_n))
    for start in range(0, 5000, 617):
        hashes.add(hash_n[start : start + 617], start)
    found = hashes.copies()
    assert (found.n_copies, found.share) == (4, 1.0)
    assert found.pairs == ((3, 70), (100, 200), (3, 900))


def test_parts_together_find_every_copy_and_one_part_a_fair_share(monkeypatch):
    monkeypatch.setattr(scan_duplicates, "_HELD", 4000)
    names = [f"cell{row % 15_000}" for row in range(20_000)]
    parts = []
    for part in range(n_parts(len(names))):
        hashes = Hashes(len(names), part)
        hashes.add(hash_names(names), 0)
        parts.append(hashes.copies())
    assert len(parts) == 5
    assert sum(part.n_copies for part in parts) == 5000
    assert all(part.share == 0.2 and 850 < part.n_copies < 1150 for part in parts)


def test_what_is_held_is_bounded_even_if_all_rows_are_alike(monkeypatch):
    monkeypatch.setattr(scan_duplicates, "_HELD", 800)
    hashes = Hashes(10_000, int(np.uint64(77) % np.uint64(13)))
    for start in range(0, 10_000, 1000):
        hashes.add(np.full(1000, 77, dtype=np.uint64), start)
    assert hashes.copies().n_copies == 899
