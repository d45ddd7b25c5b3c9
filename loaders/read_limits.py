"""Limits of reading, common to all passes over a store."""

READ_TIMEOUT_S = 240.0
"""Default of the longest wait for a read: longer than requests to object storage are retried (2 minutes), shorter than
workers wait for each other (5 minutes), so that the worker whose read hangs reports the error."""
PAGE_ROWS = 1 << 16
"""Rows of obs columns that are read together: a few hundred kB of codes, for which any storage takes milliseconds."""
