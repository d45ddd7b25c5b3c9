"""Several stores as one: rows store by store, genes aligned by name.

Shape letters in this file
    n   cells (rows)
    g   genes of one store
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.csr import keep_rows
from dist_scvi.loaders.arrays.csr_rows import CsrRows, GeneChoice, concatenate
from dist_scvi.loaders.arrays.obs_columns import (
    Categorical,
    DamagedError,
    NotNumbersError,
    Numeric,
    Ranges,
    categorical_from_codes,
    missing_column,
)
from dist_scvi.loaders.cell_store import CellStore, describe_missing_genes, join_var

log = logging.getLogger(__name__)
T = TypeVar("T")
Read = Callable[[int, int], NDArray[Any]]
_NAMED = 10
"""Most genes listed in a report."""
_SIDE_BY_SIDE = 8
"""Stores read in parallel, so that their waits for remote storage overlap."""


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Genes of one store that do not match those of the collection."""

    source: str
    """Short name of the store."""
    n_genes: int
    n_left_out: int
    """Genes of the store that the collection does not have."""
    left_out: tuple[str, ...]
    """The first ten of these genes; so too `lacking`."""
    n_lacking: int
    """Genes of the collection that the store does not have; their counts are 0."""
    lacking: tuple[str, ...]


def format_unmatched(unmatched: Sequence[Unmatched]) -> str:
    """Return a text with the genes that did not match, one line for each store with any."""
    lines = []
    for found in unmatched:
        left_out, lacking = _some(found.left_out, found.n_left_out), _some(found.lacking, found.n_lacking)
        parts = {
            f"{found.n_left_out} of {found.n_genes} genes are left out ({left_out})": found.n_left_out,
            f"{found.n_lacking} genes are lacking and count as 0 ({lacking})": found.n_lacking,
        }
        if any(parts.values()):
            lines.append(f"{found.source}: {'; '.join(text for text, count in parts.items() if count)}")
    return "\n".join(lines) or "all stores have the same genes"


class Collection:
    """Several stores read as one; see `open_collection`.

    Parameters
    ----------
    stores
        At least one; they are closed with the collection.
    var_names
        Genes of the collection, unique.
    source_key
        Name of a further obs column with the store of each cell, or None.
    uri
        Path or URL of the collection, for messages.
    """

    def __init__(
        self, stores: Sequence[CellStore], var_names: Sequence[str], *, source_key: str | None, uri: str
    ) -> None:
        self.uri = uri
        self.var_names = np.asarray(var_names, dtype=object)
        self.n_entries = sum(store.n_entries for store in stores)
        self.chunk_cells = max(store.chunk_cells for store in stores)
        self.shuffled = len(stores) == 1 and stores[0].shuffled  # several are not: the cells of the first come first
        layers = dict.fromkeys(store.layer for store in stores)
        self.layer = stores[0].layer if len(layers) == 1 else ", ".join(layer or "X" for layer in layers)
        self._stores = list(stores)
        self._sources = source_names([store.uri for store in stores])
        self._edges = np.cumsum([0, *(store.n_cells for store in stores)])
        self.n_cells = int(self._edges[-1])
        self._places = [_places(store.var_names, self.var_names) for store in stores]
        self.unmatched = tuple(map(self._unmatched, self._sources, stores, self._places))
        self._aligned = [np.array_equal(store.var_names, self.var_names) for store in stores]
        self._columns = [store.obs_columns() for store in stores]
        self._source_key = source_key
        for source, columns in zip(self._sources, self._columns, strict=True):
            if source_key in columns:
                raise ValueError(
                    f"{source} has an obs column '{source_key}' already: give the column that names the store of each "
                    "cell another name with data.source_key=NAME (--source-key NAME), or leave it out with "
                    "data.source_key=null (--source-key '')"
                )

    @property
    def fractional(self) -> bool:
        """Whether any store accepts counts that are not whole; see `CellStore`."""
        return any(store.fractional for store in self._stores)

    @fractional.setter
    def fractional(self, value: bool) -> None:
        for store in self._stores:
            store.fractional = value

    def limits(self) -> tuple[str, ...]:
        """Return the limits of all stores; see `CellStore`."""
        return tuple(limit for store in self._stores for limit in store.limits())

    def read(self, start: int, stop: int) -> CsrRows:
        """Read the counts of rows ``[start, stop)``; see `CellStore`."""
        return self.read_ranges([(start, stop)])

    def read_ranges(
        self, ranges: Ranges, order: NDArray[np.int64] | None = None, choice: GeneChoice | None = None
    ) -> CsrRows:
        """Read several ranges of rows; see `CellStore`."""
        wanted: dict[int, list[tuple[int, int]]] = {}
        for start, stop in ranges:
            for part, low, high in self._pieces(start, stop):
                wanted.setdefault(part, []).append((low, high))
        if len(wanted) == 1:
            rows = self._read_part(*wanted.popitem(), order)
        else:
            with ThreadPoolExecutor(_SIDE_BY_SIDE, "stores") as pool:
                rows = concatenate(list(pool.map(self._read_part, wanted, wanted.values()))).take(order)
        if self.fractional:  # a single store can be fractional: an AnnData in memory. All parts need one type.
            rows = replace(rows, counts_e=rows.counts_e.astype(np.float32, copy=False))
        return keep_rows(rows, choice)

    def obs_columns(self) -> list[str]:
        """Names of the obs columns that all stores have, in the order of the first, and `source_key`."""
        shared = [key for key in self._columns[0] if all(key in columns for columns in self._columns)]
        return shared if self._source_key is None else [*shared, self._source_key]

    def categorical(self, key: str) -> Categorical:
        """Open an obs column as categories, with the categories of all stores; see `CellStore`."""
        if key == self._source_key:
            return categorical_from_codes(key, self._sources, _Joined(self.n_cells, self._source_codes))
        columns = self._opened(key, [store.categorical for store in self._stores])
        self._check_spelling(key, columns)
        offsets = np.cumsum([0, *(len(column.vocabulary) for column in columns)])
        codes = [partial(_codes, column, offset) for column, offset in zip(columns, offsets, strict=False)]
        values = [value for column in columns for value in column.values()]
        return categorical_from_codes(key, values, self._joined(codes))

    def numeric(self, key: str) -> Numeric:
        """Open an obs column as numbers; see `CellStore`."""
        if key == self._source_key:
            raise NotNumbersError(f"obs column '{key}' holds the names of stores: name it as a categorical covariate")
        columns = self._opened(key, [store.numeric for store in self._stores])
        return Numeric(key, self._joined([partial(_stored, column) for column in columns]))

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names of the cells ``[start, stop)``, unchanged: a name can occur in two stores."""
        return self._gather([store.obs_names for store in self._stores], start, stop)

    def read_var(self) -> pd.DataFrame:
        """Columns of the genes, each from the first store that has the gene; see `CellStore`."""
        return join_var(self._stores).reindex(self.var_names)

    def layers(self) -> list[str]:
        """Return the names of the layers that all stores have."""
        first, *others = [store.layers() for store in self._stores]
        return [name for name in first if all(name in layers for layers in others)]

    def packed_digest(self) -> str | None:
        """Return the digests of all stores, joined; None if no store is packed."""
        digests = [store.packed_digest() for store in self._stores]
        return " ".join(map(str, digests)) if any(digests) else None

    def close(self) -> None:
        """Close all stores."""
        for store in self._stores:
            store.close()

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Cut ``[start, stop)`` at the borders of stores: number of the store, first row in it, last + 1."""
        first = min(int(np.searchsorted(self._edges, start, side="right")), len(self._stores)) - 1
        for part in range(first, len(self._stores)):
            low, high = int(self._edges[part]), int(self._edges[part + 1])
            yield part, max(start - low, 0), min(stop, high) - low
            if stop <= high:
                break

    def _source_codes(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.searchsorted(self._edges, np.arange(start, stop), side="right") - 1

    def _read_part(self, part: int, spans: Ranges, order: NDArray[np.int64] | None = None) -> CsrRows:
        choice = None if self._aligned[part] else GeneChoice(self._places[part], len(self.var_names))
        return self._ask(part, self._stores[part].read_ranges, spans, order, choice)

    def _joined(self, reads: Sequence[Read]) -> "_Joined":
        return _Joined(self.n_cells, partial(self._gather, reads))

    def _gather(self, reads: Sequence[Read], start: int, stop: int) -> NDArray[Any]:
        """Concatenate the values of the rows ``[start, stop)``, read from each store."""
        return np.concatenate([self._ask(part, reads[part], *span) for part, *span in self._pieces(start, stop)])

    def _ask(self, part: int, ask: Callable[..., T], *arguments: Any) -> T:
        """Call a method of one store; an error that does not name the store gets its name."""
        try:
            return ask(*arguments)
        except ValueError as error:
            if self._stores[part].uri in str(error):
                raise
            kind = type(error) if isinstance(error, (DamagedError, NotNumbersError)) else ValueError
            raise kind(f"{self._sources[part]}: {error}") from error

    def _opened(self, key: str, opens: Sequence[Callable[[str], T]]) -> list[T]:
        """Open a column that all stores have."""
        lacking = [source for source, columns in zip(self._sources, self._columns, strict=True) if key not in columns]
        if len(lacking) == len(self._stores):
            raise missing_column(key, self.obs_columns(), self.uri)
        if lacking:
            raise ValueError(
                f"obs column '{key}' is not in {len(lacking)} of {len(self._stores)} stores "
                f"({_some(lacking[:_NAMED], len(lacking))}): add it to them, or choose one that all have "
                f"({', '.join(self.obs_columns()) or 'none'})"
            )
        return [self._ask(part, open_column, key) for part, open_column in enumerate(opens)]

    def _check_spelling(self, key: str, columns: Sequence[Categorical]) -> None:
        """Refuse whole numbers in one store that are fractional in another: 1 and 1.0 would be two categories."""
        spelled: dict[str, str] = {}
        for source, column in zip(self._sources, columns, strict=True):
            for pattern in (r"-?\d+", r"-?\d+\.0"):
                if column.vocabulary and all(re.fullmatch(pattern, name) for name in column.vocabulary):
                    spelled.setdefault(pattern, f"'{column.vocabulary[0]}' in {source}")
        if len(spelled) == 2:
            raise ValueError(
                f"obs column '{key}' holds whole numbers in one store and fractional ones in another "
                f"({' and '.join(spelled.values())}): the same value would be two categories, give all stores one type"
            )

    def _unmatched(self, source: str, store: CellStore, place_g: NDArray[np.int32]) -> Unmatched:
        left_out = store.var_names[place_g < 0]
        lacking = np.delete(self.var_names, place_g[place_g >= 0])
        return Unmatched(
            source, len(place_g), len(left_out), tuple(left_out[:_NAMED]), len(lacking), tuple(lacking[:_NAMED])
        )


def open_collection(
    stores: Sequence[CellStore],
    *,
    join: Literal["inner", "outer"] = "inner",
    genes: Sequence[str] | None = None,
    source_key: str | None = "source",
    skip_missing: bool = False,
) -> Collection:
    """Combine open stores into one.

    Parameters
    ----------
    stores
        Stores of any kind. Their cells follow each other in this order.
    join
        Genes that all stores have (``"inner"``, in the order of the first), or that any has (``"outer"``, in the order
        in which they appear). The counts of a gene that a store lacks are 0.
    genes
        These genes instead, in this order. Each has to be in at least one store.
    source_key
        Name of a further obs column with the short name of each cell's store, or None for no such column.
    skip_missing
        Leave out requested genes that are in no store, with a log message, rather than refuse them.

    Raises
    ------
    ValueError
        If a store is given twice, no gene is in all stores, a requested gene is in none, or a store has an obs column
        `source_key`.
    """
    if not stores:
        raise ValueError("no store was given: a collection needs at least one")
    # All AnnData in memory have the same uri; these are compared by identity below.
    uris = Counter(store.uri for store in stores if store.uri != "memory")
    twice = [uri for uri, count in uris.items() if count > 1]
    if twice or len({id(store) for store in stores}) < len(stores):
        raise ValueError(
            f"{', '.join(twice[:3]) or 'a store in memory'} is given more than once: its cells would be counted again, "
            "give each store once"
        )
    if join not in ("inner", "outer"):
        raise ValueError(f"data.join={join!r}: 'inner' or 'outer' is needed")
    if genes is not None and join == "outer":
        raise ValueError(f"data.join='outer' and a list of {len(genes)} data.genes are given: leave one of them out")
    uri = stores[0].uri if len(stores) == 1 else f"{stores[0].uri} + {len(stores) - 1} more"
    if genes is not None:
        chosen = _listed_genes(stores, list(map(str, genes)), skip_missing=skip_missing)
    elif join == "inner":
        chosen = _shared_genes(stores)
    else:
        chosen = list(dict.fromkeys(name for store in stores for name in store.var_names))
    return Collection(stores, chosen, source_key=source_key, uri=uri)


def source_names(uris: Sequence[str]) -> list[str]:
    """Shorten each of `uris` to the fewest last parts that make it unique; equal ones are numbered."""
    parts = [uri.rstrip("/").split("/") for uri in uris]
    names = []
    for at, part in enumerate(parts):
        others = parts[:at] + parts[at + 1 :]
        own = (depth for depth in range(1, len(part) + 1) if all(part[-depth:] != other[-depth:] for other in others))
        depth = next(own, 0)
        names.append("/".join(part[-depth:]) if depth else f"{uris[at]} {at + 1}")
    return names


class _Joined:
    """A column over all stores, sliced by rows."""

    def __init__(self, length: int, read: Callable[[int, int], NDArray[Any]]) -> None:
        self._length, self._read = length, read

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(self._length)
        return self._read(start, stop)


def _codes(column: Categorical, offset: int, start: int, stop: int) -> NDArray[np.int64]:
    codes_n = column.codes(start, stop)
    return np.where(codes_n < 0, -1, codes_n + offset)


def _stored(column: Numeric, start: int, stop: int) -> NDArray[Any]:
    return np.asarray(column.stored[start:stop])


def _places(names: Iterable[str], var_names: Iterable[str]) -> NDArray[np.int32]:
    """Return the index of each of `names` in `var_names`, -1 if it is missing."""
    place = {name: at for at, name in enumerate(var_names)}
    return np.array([place.get(name, -1) for name in names], dtype=np.int32)


def _shared_genes(stores: Sequence[CellStore]) -> list[str]:
    """Return the genes that all stores have, in the order of the first."""
    first = stores[0]
    shared = set(first.var_names)
    for store in stores[1:]:
        before = shared
        shared = before & set(store.var_names)
        if not shared:
            alike = len({_plain(name) for name in before} & {_plain(name) for name in store.var_names})
            hint = f"; {alike} would be the same but for case or version suffix (.1)" if alike else ""
            raise ValueError(
                f"no gene is in all stores: {first.uri} has {', '.join(first.var_names[:3])}, {store.uri} has "
                f"{', '.join(store.var_names[:3])}{hint}. Name genes alike in all (adata.var_names) and save again"
            )
    return [name for name in first.var_names if name in shared]


def _listed_genes(stores: Sequence[CellStore], genes: list[str], *, skip_missing: bool) -> list[str]:
    """Return `genes` after a check that each occurs once and is in a store; `skip_missing` leaves out the others."""
    twice = [name for name, count in Counter(genes).items() if count > 1]
    if twice or not genes:
        problem = f"names {_some(twice[:3], len(twice))} twice" if twice else "is empty"
        raise ValueError(f"the list data.genes {problem}: each gene is needed once")
    present = dict.fromkeys(name for store in stores for name in store.var_names)
    unknown = [name for name in genes if name not in present]
    if not unknown:
        return genes
    named = describe_missing_genes(unknown, stores)
    found = f"{len(unknown)} of {len(genes)} genes requested are in none of {len(stores)} stores: {named}"
    if not skip_missing or len(unknown) == len(genes):
        raise ValueError(f"{found}; correct data.genes, or leave them out with data.skip_missing=true (--skip-missing)")
    log.warning("%s; left out", found)
    return [name for name in genes if name in present]


def _plain(name: str) -> str:
    """Return a gene name without case and version suffix; used only for a hint."""
    return re.sub(r"\.\d+$", "", name).casefold()


def _some(names: Sequence[str], total: int) -> str:
    """Return a text with `names` and the number of further ones of `total`."""
    return ", ".join(names) + (f" and {total - len(names)} more" if total > len(names) else "")
