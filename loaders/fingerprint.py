"""A digest of the content of a store, to check after a restart that the cells and their order are the same."""

from hashlib import sha256

import numpy as np

from dist_scvi.loaders.arrays.obs_columns import Ranges
from dist_scvi.loaders.data import CellData
from dist_scvi.loaders.order.keyed_hash import hash_rows
from dist_scvi.loaders.read_limits import READ_TIMEOUT_S
from dist_scvi.loaders.row_hash import hash_counts
from dist_scvi.loaders.stream import prefetch

_SEED = 11
_WHOLE_ENTRIES = 1 << 21
"""Entries up to which all counts are read, which takes less than a tenth of a second."""
_PROBES = (8, 64)
"""Fewest and most stretches of rows that are read of a larger store."""
_PROBE_CELLS = 16
_DECOMPRESSED_CELLS = 1 << 17
"""Most rows that are decompressed for these, if chunks are long."""
_COLUMN_CELLS = 4096
"""Rows of obs columns in a stretch. Columns have a thousandth of the size of the counts, so that more rows are read."""


def content_digest(data: CellData, *, timeout_s: float = READ_TIMEOUT_S) -> str:
    """Return a digest of counts, genes, the columns in use and cell names, read at seeded places all over the store.

    A store with few counts is read whole. For a packed store the digest includes its seed and its sums over all counts.
    The location of the data is not included: a copy of a store has the same digest.

    Parameters
    ----------
    timeout_s
        Longest wait, in seconds.

    Raises
    ------
    ValueError
        If a row that is read is damaged.
    TimeoutError
        If the storage does not answer in time.

    Notes
    -----
    At most 64 stretches are read, for any number of cells: 64 requests at a time, and less than a second from a disk,
    for 10^9 cells too. A change of a few rows of a large store is therefore not always detected; a change of the order,
    of a column, or of a whole file is.
    """
    # `prefetch` for its time limit only: reading in this thread could block without end.
    return next(prefetch((_digest(data) for _ in range(1)), 1, timeout_s))


def _digest(data: CellData) -> str:
    store, found = data.store, sha256()
    whole = store.n_entries <= _WHOLE_ENTRIES
    probes = min(max(_DECOMPRESSED_CELLS // store.chunk_cells, _PROBES[0]), _PROBES[1])
    rows = [(0, data.n_cells)] if whole else _stretches(data.n_cells, probes, _PROBE_CELLS)
    parts = [str((data.n_cells, data.n_genes, store.packed_digest())).encode()]
    parts += [hash_counts(store.read_ranges(rows)).tobytes()]
    parts += [array.tobytes() for array in data.columns_of(_stretches(data.n_cells, _PROBES[1], _COLUMN_CELLS)).arrays]
    parts += ["\n".join(map(str, store.obs_names(start, stop))).encode() for start, stop in rows]
    for part in parts:
        # The length separates the parts: without it, bytes could move from one part to the next unnoticed.
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def _stretches(n_cells: int, number: int, cells: int) -> Ranges:
    """Return up to `number` stretches of `cells` rows, one at a seeded place of each equal part of the store."""
    if n_cells <= number * cells:
        return [(0, n_cells)]
    edge_p = np.arange(number + 1) * n_cells // number
    room_p = (np.diff(edge_p) - cells + 1).astype(np.uint64)
    start_p = edge_p[:-1] + (hash_rows(np.arange(number), _SEED) % room_p).astype(np.int64)
    return [(start, start + cells) for start in start_p.tolist()]
