"""Limits of reading that all passes over a store share."""

READ_TIMEOUT_S = 240.0
"""Longest wait for a read, by default: longer than object storage is retried (2 minutes), shorter than workers wait for
each other (5 minutes), so that a read that hangs is reported as such."""
PAGE_ROWS = 1 << 16
"""Rows of obs columns that are read together: a few hundred kB of codes, for which any storage takes milliseconds."""
