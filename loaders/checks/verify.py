"""A check of a whole store for damage: lost rows are reported, and the pass continues after them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_scvi.loaders.arrays.obs_columns import Categorical, DamagedError, Numeric
from dist_scvi.loaders.arrays.printable import printable_lines
from dist_scvi.loaders.cell_store import CellStore, open_column
from dist_scvi.loaders.checks.lost_rows import Losses, Lost, bisect_damage, budget, steps
from dist_scvi.loaders.checks.scan_duplicates import Hashes, hash_names, n_parts
from dist_scvi.loaders.checks.verify_zarr import ZarrParts, open_parts, packed_sums, verify_arrays, verify_zarr_obs
from dist_scvi.loaders.read_limits import PAGE_ROWS, cells_of_read
from dist_scvi.loaders.stores.open import open_store

if TYPE_CHECKING:
    from dist_scvi.loaders.stores.soma_store import SomaOptions

_ELSEWHERE = (
    "only what a read notices is seen here: in what carries no checksum, as HDF5 without gzip or fletcher32, a flipped "
    "bit is found only if it makes an impossible value"
)
_UNOPENED = (
    "the store cannot be opened, so that its chunks were looked at, but not whether counts are raw and names unique: "
    "verify it again once it is whole"
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of `verify_store`."""

    uri: str
    n_cells: int
    """0 if the store could not be opened at all."""
    lost: tuple[Lost, ...]
    n_further: int
    """Findings in addition to those in `lost`."""
    unproven: tuple[str, ...]
    """Kinds of damage that cannot be detected in this store."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.lost and not self.n_further

    @property
    def n_lost_cells(self) -> int:
        """Cells in any of `lost`."""
        edge, n = 0, 0
        for one in sorted(self.lost, key=lambda one: one.start):
            n += max(0, one.stop - max(edge, one.start))
            edge = max(edge, one.stop)
        return n

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON."""
        return {"ok": self.ok, "n_lost_cells": self.n_lost_cells, **asdict(self)}


def verify_store(
    source: str | Path,
    *,
    layer: str | None = None,
    soma: "SomaOptions | None" = None,
    storage_options: Mapping[str, str] | None = None,
    allow_fractional: bool = False,
    progress: Progress | None = None,
    max_findings: int = 100,
) -> Verification:
    """Read every row of a store once, counts, obs and names, in bounded memory, and report which are lost.

    Every chunk has to exist, to decode, and to match its checksum; counts have to be raw, of an existing gene, at most
    one for each gene in a row; codes have to be of a category; names have to be unique; the sums of a packed store have
    to match its manifest. Unlike training, this does not end at the first error.

    Parameters
    ----------
    source, layer, soma, storage_options, allow_fractional
        As for `open_store`. A Zarr folder that lacks chunks, which `open_store` refuses, is checked array by array.
    progress
        Called with (cells done, cells of the store) as counts are read.
    max_findings
        Most findings listed; neighbouring rows of one array are one finding.

    Raises
    ------
    FileNotFoundError
        If `source` does not exist.
    """
    uri = str(source) if "://" in str(source) else str(Path(source).expanduser().resolve())
    parts = open_parts(source, layer)
    losses = Losses(str(parts.folder) if parts else uri, max_findings)
    n_cells = parts.n_cells if parts else 0
    unproven = _unproven(parts)
    try:
        store = open_store(
            source, layer=layer, soma=soma, storage_options=storage_options, allow_fractional=allow_fractional
        )
    except ValueError as error:
        if parts is not None:
            verify_arrays(parts, losses, progress)
            verify_zarr_obs(parts, losses)
        if not losses.any_in(parts.counts if parts else ()):
            losses.add("the store", 0, n_cells, f"cannot be opened: {error}")
        unproven.append(_UNOPENED)
    else:
        n_cells = store.n_cells
        try:
            _verify_counts(store, parts, losses, progress)
            if parts is not None:
                verify_zarr_obs(parts, losses)
            _verify_obs(store, losses, read=parts is None)
            _verify_names(store, losses)
        finally:
            store.close()
    return Verification(uri, n_cells, tuple(losses.found), losses.n_further, tuple(unproven))


def format_verification(verification: Verification) -> str:
    """Return `verification` as text."""
    found = verification
    lines = [found.uri]
    if found.ok:
        lines.append(f"  {found.n_cells:,} cells, all of them read: nothing is lost")
    else:
        least = "at least " if found.n_further else ""
        lost = f"{least}{found.n_lost_cells:,} of {found.n_cells:,} cells are lost or wrong"
        lines.append(f"  {lost}:" if found.n_cells else "  it cannot be read:")
        lines += [f"    - {_rows(one)}{one.array}: {one.found}" for one in found.lost]
        lines += [f"    - and {found.n_further:,} findings more"] if found.n_further else []
    return printable_lines("\n".join([*lines, *(f"  not proven: {line}" for line in found.unproven)]))


def _rows(one: Lost) -> str:
    if one.stop == one.start:
        return ""
    return f"row {one.start}, " if one.stop == one.start + 1 else f"rows {one.start} to {one.stop - 1}, "


def _verify_counts(store: CellStore, parts: "ZarrParts | None", losses: Losses, progress: Progress | None) -> None:
    """Read all counts through the store, and compare their sums if it was packed."""
    sums = packed_sums(parts, losses) if parts else None

    def read(start: int, stop: int) -> None:
        rows = store.read(start, stop)
        if sums is not None:
            sums.add(rows, start)

    coarse, fine = budget(), budget()
    step = cells_of_read(store.n_cells, store.n_entries)
    for start, stop in steps(0, store.n_cells, step):
        for low, high, why in bisect_damage(read, start, stop, store.chunk_cells, coarse):
            # Damage concerns whole chunks. So three rows are enough to decide that all rows of such a short part are
            # lost; otherwise single rows, such as those with an invalid count, are searched one by one.
            lost = all(_is_damaged(store, row) for row in (low, (low + high) // 2, high - 1))
            for found in [(low, high, why)] if lost else bisect_damage(read, low, high, 1, fine):
                array, named, _ = found[2].partition(f" of {losses.uri} ")
                losses.add(array if named else "counts", *found)
        if progress is not None:
            progress(stop, store.n_cells)
    if sums is not None:
        sums.compare(losses)


def _is_damaged(store: CellStore, row: int) -> bool:
    try:
        store.read(row, row + 1)
    except DamagedError:
        return True
    except (ValueError, OSError):
        pass
    return False


def _unproven(parts: "ZarrParts | None") -> list[str]:
    if parts is None:
        return [_ELSEWHERE]
    try:
        return list(parts.unproven(parts.columns().values()))
    except ValueError:  # an array that cannot be opened, which is a finding by itself
        return []


def _verify_obs(store: CellStore, losses: Losses, *, read: bool) -> None:
    """Open all obs columns as training does, and with `read` read them."""
    for key in store.obs_columns():
        try:
            column = open_column(store, key)
        except ValueError as error:
            if not losses.any_below(f"obs/{key}"):
                losses.add(f"obs/{key}", 0, store.n_cells, str(error))
            continue
        if read:
            _verify_column(store, key, column, losses)


def _verify_column(store: CellStore, key: str, column: Categorical | Numeric, losses: Losses) -> None:
    def read(low: int, high: int) -> object:
        return column.codes(low, high) if isinstance(column, Categorical) else column.stored[low:high]

    for start, stop in steps(0, store.n_cells, PAGE_ROWS):
        for torn in bisect_damage(read, start, stop, PAGE_ROWS, budget()):
            losses.add(f"obs/{key}", *torn)


def _verify_names(store: CellStore, losses: Losses) -> None:
    """Read all names, once for each part of their hashes that fits into memory."""
    for part in range(n_parts(store.n_cells)):
        hashes = Hashes(store.n_cells, part)

        def read(start: int, stop: int, hashes: Hashes = hashes) -> None:
            hashes.add(hash_names(store.obs_names(start, stop)), start)

        for start, stop in steps(0, store.n_cells, PAGE_ROWS):
            for low, high in losses.outside("obs names", start, stop):
                for torn in bisect_damage(read, low, high, PAGE_ROWS, budget()):
                    losses.add("obs names", *torn)
        copies = hashes.copies()
        for first, row in copies.pairs:
            name = store.obs_names(row, row + 1)[0]
            losses.add(
                "obs names",
                row,
                row + 1,
                f"'{name}' is the name of row {first} too: call adata.obs_names_make_unique() and save again",
            )
        losses.n_further += copies.n_copies - len(copies.pairs)
