"""Bytes to rows: Zarr chunks, object storage, compiled loops, obs columns; knows no store."""
