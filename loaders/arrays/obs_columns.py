"""Columns of obs, read by row range: categories as codes into a sorted vocabulary, numbers as float32."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.objects import StorageError
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.loaders.name_lookup import nearest_names

_PAGE_ROWS = (4096, 65_536)
"""Fewest and most values read together."""
_LISTED = 30
"""Columns that a message lists."""
READ_ERRORS = (OSError, RuntimeError, ValueError, EOFError, zlib.error)
"""What zarr, h5py and numcodecs raise on the bytes of a damaged chunk."""

Ranges = Sequence[tuple[int, int]]


class DamagedError(ValueError):
    """A part of a store that cannot be read; the message names it."""


class NotNumbersError(ValueError):
    """A column to open as numbers contains other values."""


class Sliceable(Protocol):
    """A one-dimensional array, in memory or on disk, that can be sliced."""

    def __getitem__(self, rows: slice, /) -> Any: ...

    def __len__(self) -> int: ...


class PagedArray:
    """A long one-dimensional array on disk, read through a bounded cache of pages.

    Keeps at most `max_rows` values in memory, for any length of the array.

    Parameters
    ----------
    array
        A ``zarr.Array``, `ChunkedArray` or ``h5py.Dataset``.
    uri
        The file that contains it, for messages.
    page_rows
        Values read together; by default a chunk of the array, within bounds.
    """

    def __init__(
        self, array: Any, uri: str = "the store", *, page_rows: int | None = None, max_rows: int = 1 << 21
    ) -> None:
        self._array, self._uri = array, uri
        chunk = int((getattr(array, "chunks", None) or (_PAGE_ROWS[1],))[0])
        self._page_rows = page_rows or min(max(chunk, _PAGE_ROWS[0]), _PAGE_ROWS[1])
        self._page = lru_cache(max(1, max_rows // self._page_rows))(self._read_page)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(int(size) for size in self._array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        dtype: np.dtype[Any] = self._array.dtype
        return dtype

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(len(self))
        size = self._page_rows
        if stop <= start:
            return self._page(0)[:0]
        pages = [self._page(page) for page in range(start // size, (stop - 1) // size + 1)]
        first = start // size * size
        joined = pages[0] if len(pages) == 1 else np.concatenate(pages)
        return joined[start - first : stop - first]

    def _read_page(self, page: int) -> NDArray[Any]:
        start = page * self._page_rows
        return read_range(self._array, start, min(start + self._page_rows, len(self)), self._uri)


def read_range(array: Any, start: int, stop: int, uri: str) -> NDArray[Any]:
    """Read ``[start, stop)`` of a ``zarr.Array`` or ``h5py.Dataset``.

    Raises
    ------
    DamagedError
        If it cannot be read.
    """
    try:
        return np.asarray(array[start:stop])
    except (DamagedError, StorageError):
        raise
    except READ_ERRORS as error:
        raise DamagedError(
            f"{array.name.strip('/')} of {uri} cannot be read at {start} to {stop - 1}: a chunk is truncated or "
            f"damaged ({printable(error)}); restore it from a copy or write the store again"
        ) from error


@dataclass(frozen=True, slots=True)
class Categorical:
    """A column of categories."""

    key: str
    """Name of the column in obs."""
    vocabulary: tuple[str, ...]
    """All categories, sorted."""
    stored: Sliceable
    """Codes as stored, into the order of `place`."""
    place: NDArray[np.int32]
    """Index of each stored code in `vocabulary`."""
    dtype: str = "str"
    """NumPy type of the categories as stored, for numbers and booleans; "str" for all others."""

    def values(self) -> NDArray[Any]:
        """Categories in the type in which they are stored, in the order of `vocabulary`."""
        return typed_categories(self.vocabulary, self.dtype)

    def codes(self, start: int, stop: int) -> NDArray[np.int32]:
        """Codes into `vocabulary` of rows ``[start, stop)``, -1 for missing values; see `codes_of`."""
        return self.codes_of([(start, stop)])

    def required_codes(self, start: int, stop: int) -> NDArray[np.int32]:
        """Codes of rows ``[start, stop)``, of which none may be missing; see `codes_of`."""
        return self.codes_of([(start, stop)], required=True)

    def codes_of(self, ranges: Ranges, *, required: bool = False) -> NDArray[np.int32]:
        """Codes of several ranges of rows, joined.

        Raises
        ------
        ValueError
            If a code is of no category, or if `required` and a value is missing.
        """
        stored_n = _gather(self.stored, ranges).astype(np.int64)
        if len(stored_n) and not -1 <= stored_n.min() <= stored_n.max() < len(self.place):
            at = int(np.argmax((stored_n < -1) | (stored_n >= len(self.place))))
            raise ValueError(
                f"obs column '{printable(self.key)}' holds code {stored_n[at]} at row {_row_of(ranges, at)} for "
                f"{len(self.place)} categories: the store is damaged, write it again from its source"
            )
        # The stored code -1 is the index of the appended last element, so that missing values stay -1.
        codes_n = np.append(self.place, np.int32(-1))[stored_n]
        if required and (codes_n < 0).any():
            row = _row_of(ranges, int(np.argmax(codes_n < 0)))
            raise ValueError(
                f"obs column '{printable(self.key)}' has no value at row {row}: fill it, or choose another column"
            )
        return codes_n


@dataclass(frozen=True, slots=True)
class Numeric:
    """A column of numbers."""

    key: str
    stored: Sliceable

    def values(self, start: int, stop: int) -> NDArray[np.float32]:
        """Values of rows ``[start, stop)``; see `values_of`."""
        return self.values_of([(start, stop)])

    def values_of(self, ranges: Ranges) -> NDArray[np.float32]:
        """Values of several ranges of rows, joined.

        Raises
        ------
        ValueError
            If a value is missing or infinite.
        """
        values_n = _gather(self.stored, ranges).astype(np.float32)
        if not np.isfinite(values_n).all():
            at = int(np.argmin(np.isfinite(values_n)))
            raise ValueError(
                f"obs column '{printable(self.key)}' is {values_n[at]} at row {_row_of(ranges, at)}: finite numbers "
                "are needed"
            )
        return values_n


def _gather(stored: Sliceable, ranges: Ranges) -> NDArray[Any]:
    parts = [np.asarray(stored[start:stop]) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _row_of(ranges: Ranges, at: int) -> int:
    """Return the row at place `at` of the joined ranges."""
    return int(np.concatenate([np.arange(start, stop) for start, stop in ranges])[at])


def categorical_from_codes(key: str, categories: Sequence[object], stored: Sliceable) -> Categorical:
    """Sort the categories of an encoded column, and map its codes."""
    # Only the mapping is computed here: the codes stay on disk, and are mapped when they are read.
    names = [str(category) for category in categories]
    vocabulary = tuple(sorted(set(names)))
    lookup = {name: code for code, name in enumerate(vocabulary)}
    place = np.array([lookup[name] for name in names], dtype=np.int32)
    return Categorical(key, vocabulary, stored, place, type_of_categories(categories))


def typed_categories(names: Sequence[str], dtype: str) -> NDArray[Any]:
    """Return categories, given by their names, as values of the type `dtype`; objects for "str".

    Raises
    ------
    ValueError
        If a name is not a value of that type.
    """
    if dtype == "str":
        return np.array(names, dtype=object)
    if dtype != "bool":
        return np.array(names).astype(dtype)
    if not {*names} <= {"True", "False"}:
        raise ValueError(f"{', '.join(names[:5])}: True and False are needed")
    return np.array([name == "True" for name in names], dtype=bool)


def type_of_categories(categories: Sequence[object]) -> str:
    """Return the name of the NumPy type of categories if all are numbers, or all booleans; else "str"."""
    n_bools = sum(isinstance(category, bool | np.bool_) for category in categories)
    if n_bools:
        return "bool" if n_bools == len(categories) else "str"
    dtype = np.asarray(list(categories)).dtype
    return dtype.name if len(categories) and dtype.kind in "iuf" else "str"


def categorical_from_values(key: str, values: Any, missing_n: NDArray[np.bool_] | None = None) -> Categorical:
    """Encode a column of strings, numbers or booleans once, in the smallest integer type.

    Parameters
    ----------
    missing_n
        True for missing values, whose elements of `values` are ignored, shape (n,).
    """
    present = values if missing_n is None else values[~missing_n]
    encoded = pd.Categorical(present)
    code_n = np.asarray(encoded.codes)
    if missing_n is not None:
        code_n = np.full(len(missing_n), -1, dtype=code_n.dtype)
        code_n[~missing_n] = encoded.codes
    return categorical_from_codes(key, list(encoded.categories), code_n)


def missing_column(key: str, present: Sequence[str], where: str) -> ValueError:
    """Return the error for a missing obs column, with the most similar existing names."""
    near = nearest_names(key, present)
    hint = f"did you mean {', '.join(map(printable, near))}? " if near else ""
    rest = f" and {len(present) - _LISTED} more" if len(present) > _LISTED else ""
    listed = ", ".join(map(printable, present[:_LISTED])) or "none"
    return ValueError(f"{where} has no obs column '{printable(key)}': {hint}present are {listed}{rest}")
