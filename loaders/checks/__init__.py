"""Checks of a store, for ``dist-scvi inspect`` and ``dist-scvi verify``."""
