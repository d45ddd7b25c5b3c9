import numpy as np
import pytest
from scipy import sparse

from dist_scvi.loaders.arrays.csr_rows import CsrRows
from dist_scvi.loaders.checks.scan_counts import Counts, Libraries


def rows_of(counts_ng: np.ndarray) -> CsrRows:
    matrix = sparse.csr_matrix(counts_ng)
    return CsrRows(matrix.data.astype(np.uint16), matrix.indices.astype(np.uint16), matrix.indptr.astype(np.int64))


def test_counts_are_summed_up_over_reads():
    counts_ng = np.array([[0, 2, 0], [0, 0, 0], [7, 0, 0], [0, 1, 0]])
    count = Counts(3)
    assert count.add(rows_of(counts_ng[:1]), 0).tolist() == [2]
    assert count.add(rows_of(counts_ng[1:]), 1).tolist() == [0, 7, 1]
    assert (count.n_entries, count.largest, count.first_empty) == (3, 7, 1)
    assert count.seen_g.tolist() == [True, True, False]


@pytest.mark.parametrize("step", [1, 37, 500])
def test_moments_do_not_depend_on_how_cells_are_divided_into_reads(step):
    rng = np.random.default_rng(3)
    library_n, group_n = rng.poisson(rng.lognormal(3, 1, 500)), rng.integers(0, 3, 500)
    libraries = Libraries(2)
    for start in range(0, 500, step):
        libraries.add(library_n[start : start + step], group_n[start : start + step])
    for group in range(3):
        mine = library_n[(group_n == group) & (library_n > 0)]
        one = libraries.summary(group)
        assert (one.n_cells, one.mean) == ((group_n == group).sum(), pytest.approx(mine.mean()))
        assert one.log_mean == pytest.approx(np.log(mine).mean())
        assert one.log_var == pytest.approx(np.log(mine).var())
    assert libraries.total().log_var == pytest.approx(np.log(library_n[library_n > 0]).var())
