"""Encode and decode cells, and write the results."""
