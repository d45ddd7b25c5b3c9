"""Encode and decode cells, and write what is computed for each."""
