"""Lost rows: separated from intact rows by few reads, and listed as ranges."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

_PROBES = 20_000
"""Most reads to separate the lost rows of an array from intact ones. After these, whole ranges are reported as lost."""

Read = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Lost:
    """Rows that cannot be used."""

    array: str
    """Array in which they are lost, such as ``X/data`` or ``obs/donor``."""
    start: int
    stop: int
    """Row after the last."""
    found: str
    """Error at the first of these rows, with advice."""


class Losses:
    """The findings in the store `uri`, up to a given number."""

    def __init__(self, uri: str, most: int) -> None:
        self.found: list[Lost] = []
        self.n_further = 0
        self.uri, self._most = uri, most

    def add(self, array: str, start: int, stop: int, found: str) -> None:
        """Add rows; they are merged with the last finding if they continue it."""
        last = self.found[-1] if self.found else None
        if last is not None and last.array == array and last.start <= start <= last.stop:
            self.found[-1] = replace(last, stop=max(stop, last.stop))
        elif len(self.found) < self._most:
            self.found.append(Lost(array, start, stop, found.removeprefix(f"{array} of {self.uri} ")))
        else:
            self.n_further += 1

    def any_in(self, arrays: Iterable[str]) -> bool:
        """Return whether a part of `arrays` is lost."""
        return any(one.array in arrays for one in self.found)

    def any_below(self, path: str) -> bool:
        """Return whether a part of the array at `path`, or of those below it, is lost."""
        return any(one.array == path or one.array.startswith(f"{path}/") for one in self.found)

    def outside(self, array: str, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the ranges of ``[start, stop)`` in which no part of `array` is lost."""
        return without(start, stop, [(one.start, one.stop) for one in self.found if one.array == array])


def without(start: int, stop: int, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of ``[start, stop)`` outside of `spans`, which are in increasing order."""
    left = []
    for low, high in spans:
        if start < min(low, stop):
            left.append((start, min(low, stop)))
        start = max(start, high)
    return [*left, (start, stop)] if start < stop else left


def bisect_damage(
    read: Read, start: int, stop: int, floor: int, probes: Iterator[int]
) -> Iterator[tuple[int, int, str]]:
    """Yield the parts of ``[start, stop)`` that cannot be read, with the error, by bisection; at least `floor` long.

    Intact rows are read successfully only once, in the largest part without damage. So `read` may accumulate sums.
    """
    try:
        read(start, stop)
    except (ValueError, OSError) as error:
        why = str(error)
    else:
        return
    if stop - start <= floor or next(probes, None) is None:
        yield start, stop, why
        return
    middle = start + max(1, (stop - start) // 2 // floor) * floor
    yield from bisect_damage(read, start, middle, floor, probes)
    yield from bisect_damage(read, middle, stop, floor, probes)


def steps(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut ``[start, stop)`` into ranges at the multiples of `step`."""
    while start < stop:
        edge = min((start // step + 1) * step, stop)
        yield start, edge
        start = edge


def budget() -> Iterator[int]:
    """Return an iterator over the reads that `bisect_damage` may use for one array."""
    return iter(range(_PROBES))
