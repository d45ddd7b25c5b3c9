"""Limits of reading, common to all passes over a store."""

READ_TIMEOUT_S = 240.0
"""Default of the longest wait for a read: longer than requests to object storage are retried (2 minutes), shorter than
workers wait for each other (5 minutes), so that the worker whose read hangs reports the error."""
READ_ENTRIES = 1 << 22
"""Stored counts in memory at once, in passes over all cells; estimated from the mean number in a cell."""
READ_CELLS = 1 << 16
"""Most cells in memory at once in such passes."""
PAGE_ROWS = 1 << 16
"""Rows of obs columns that are read together: a few hundred kB of codes, for which any storage takes milliseconds."""


def cells_of_read(n_cells: int, n_entries: int) -> int:
    """Return the number of cells to read together, in a pass over a store of `n_cells` with `n_entries` counts."""
    return min(max(1, READ_ENTRIES * n_cells // max(1, n_entries)), READ_CELLS)
