"""Check a store: what ``dist-scvi inspect`` and ``dist-scvi verify`` run."""
