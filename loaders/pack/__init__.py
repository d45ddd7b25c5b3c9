"""Rewrite a store so that it is faster to read."""
