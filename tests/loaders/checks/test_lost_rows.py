from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dist_scvi.loaders.checks import lost_rows
from dist_scvi.loaders.checks.lost_rows import Losses, Lost, bisect_damage, budget, steps, without

ROWS = st.sets(st.integers(0, 199), max_size=12)


def reader(bad: set[int], read_rows: list[int]):
    """Give what reads rows, and refuses the `bad` ones."""

    def read(start: int, stop: int) -> None:
        for row in sorted(bad):
            if start <= row < stop:
                raise ValueError(f"row {row} is bad")
        read_rows.extend(range(start, stop))

    return read


@given(bad=ROWS, start=st.integers(0, 50))
def test_exactly_the_bad_rows_are_found_and_every_other_is_read_once(bad, start):
    read_rows: list[int] = []
    torn = list(bisect_damage(reader(bad, read_rows), start, 200, 1, budget()))
    assert torn == [(row, row + 1, f"row {row} is bad") for row in sorted(bad) if row >= start]
    assert sorted(read_rows) == [row for row in range(start, 200) if row not in bad]


@given(bad=ROWS, floor=st.integers(1, 64))
def test_no_part_is_cut_shorter_than_the_floor_and_borders_are_its_multiples(bad, floor):
    torn = list(bisect_damage(reader(bad, []), 0, 200, floor, budget()))
    assert bad == {row for low, high, _ in torn for row in range(low, high) if row in bad}
    assert all(low % floor == 0 and (high % floor == 0 or high == 200) and high - low <= floor for low, high, _ in torn)


def test_reads_are_bounded_and_the_rest_is_named_uncut(monkeypatch):
    monkeypatch.setattr(lost_rows, "_PROBES", 20)
    calls: list[int] = []

    def read(start: int, stop: int) -> None:
        calls.append(start)
        raise OSError("gone")

    torn = list(bisect_damage(read, 0, 1 << 20, 1, budget()))
    assert [(torn[0][0], torn[-1][1])] == [(0, 1 << 20)]
    assert all(one[1] == other[0] for one, other in pairwise(torn))
    assert len(calls) == 41


def test_neighbouring_rows_of_one_array_are_one_finding():
    losses = Losses("a.zarr", 10)
    for array, start, stop in [("X", 0, 3), ("X", 3, 5), ("X", 4, 9), ("obs/a", 9, 10), ("X", 9, 10), ("X", 12, 13)]:
        losses.add(array, start, stop, f"from {start}")
    assert losses.found == [
        Lost("X", 0, 9, "from 0"),
        Lost("obs/a", 9, 10, "from 9"),
        Lost("X", 9, 10, "from 9"),
        Lost("X", 12, 13, "from 12"),
    ]
    assert losses.outside("X", 2, 20) == [(10, 12), (13, 20)]
    assert (losses.any_in(["X/data", "obs/a"]), losses.any_in(["obs/b"])) == (True, False)


def test_a_finding_does_not_name_its_array_and_store_again():
    losses = Losses("a.zarr", 10)
    losses.add("X/data", 0, 9, "X/data of a.zarr cannot be read at 0 to 99")
    losses.add("X/data", 20, 21, "it is missing")
    assert [one.found for one in losses.found] == ["cannot be read at 0 to 99", "it is missing"]


def test_findings_beyond_the_number_allowed_are_counted():
    losses = Losses("a.zarr", 2)
    for row in range(0, 10, 2):
        losses.add("X", row, row + 1, "bad")
    assert (len(losses.found), losses.n_further) == (2, 3)


@given(start=st.integers(0, 30), length=st.integers(0, 30), edges=st.lists(st.integers(0, 60), max_size=6))
def test_what_is_left_outside_spans_is_every_row_in_none(start, length, edges):
    spans = [(low, low + 1 + at) for at, low in enumerate(sorted(edges))]
    left = [row for low, high in without(start, start + length, spans) for row in range(low, high)]
    inside = {row for low, high in spans for row in range(low, high)}
    assert left == [row for row in range(start, start + length) if row not in inside]


def test_steps_cover_a_length():
    assert list(steps(1, 7, 3)) == [(1, 3), (3, 6), (6, 7)]
    assert list(steps(0, 0, 3)) == []
