import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from dist_scvi.loaders.order.keyed_hash import hash_keys, hash_rows, permute

KEYS = st.integers(0, 2**63 - 1)


@given(st.integers(1, 3000), KEYS)
def test_permute_reaches_every_row_once(n, key):
    assert_array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@given(st.integers(1, 2**40), KEYS, st.data())
def test_any_part_of_a_permutation_is_that_of_the_whole(n, key, data):
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5, unique=True)), dtype=np.int64)
    place = permute(index, n, key)
    assert len(set(place)) == len(index)
    assert ((place >= 0) & (place < n)).all()
    assert_array_equal(permute(index[-1:], n, key), place[-1:])


@pytest.mark.parametrize(
    ("n", "key", "order"),
    [
        (1, 0, [0]),
        (10, 0, [1, 7, 8, 6, 2, 4, 0, 3, 9, 5]),
        (10, 1, [2, 0, 7, 6, 4, 9, 5, 8, 1, 3]),
        (13, 7, [4, 0, 10, 3, 11, 12, 7, 6, 5, 1]),
        (1_000_003, 42, [30486, 261327, 519106, 304613, 584799, 553081, 710549, 261072, 943741, 567460]),
    ],
)
def test_the_order_never_changes(n, key, order):
    assert permute(np.arange(len(order)), n, key).tolist() == order


def test_the_hashes_never_change():
    rows = np.array([0, 1, 2**40])
    assert hash_rows(rows).tolist() == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1, 0x1FDD7128F310C389]
    assert hash_rows(rows, 3, 5).tolist() == [0x5DBEC99D4C8D1DBF, 0xB59CE2273AD76EC3, 0x632D5EBE1E19F642]
    assert [hash_keys(), hash_keys(1)] == [8147104208329303767, 6971694381918307720]
    assert [hash_keys(1, 2), hash_keys(2, 1)] == [5630680684750278993, 4864397437371676743]


def test_hashes_are_spread_evenly():
    counts = np.bincount((hash_rows(np.arange(64_000), 9) >> np.uint64(58)).astype(int), minlength=64)
    assert ((counts - 1000) ** 2 / 1000).sum() < 120  # chi-square of 63 degrees, p = 2e-5


@pytest.mark.parametrize("key", range(4))
def test_neighbours_are_torn_apart(key):
    place = permute(np.arange(10_000), 10_000, key)
    assert abs(np.corrcoef(place[1:], place[:-1])[0, 1]) < 0.05
