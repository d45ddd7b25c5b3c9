"""A collection written by annbatch: a Zarr folder of AnnData groups ``dataset_0``, ``dataset_1``, ..., as one store."""

import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.loaders.arrays.zarr_access import open_zarr_group
from dist_scvi.loaders.stores.collection import Collection
from dist_scvi.loaders.stores.zarr_store import open_root, open_zarr

_KIND = "annbatch-preshuffled"
_VERSION = "0.1.0"


def is_annbatch(path: Path) -> bool:
    """Return whether `path` is a collection written by annbatch."""
    root = open_zarr_group(path) if path.is_dir() else None
    return root is not None and root.attrs.get("encoding-type") == _KIND


def open_annbatch(path: Path, *, layer: str | None = None) -> Collection:
    """Open the annbatch collection in the Zarr folder `path`, with its groups in numerical order.

    Raises
    ------
    ValueError
        If it is of another version, a group is missing or damaged, or the genes of two differ.

    Notes
    -----
    The format is that of annbatch 0.3.1, ``io.py``. It does not store the number of groups, so that the loss of the
    last group is not detected.
    """
    version = open_root(path).attrs.get("encoding-version")
    if version != _VERSION:
        raise ValueError(
            f"{path} is an annbatch collection of version {printable(version)}: only {_VERSION} can be read"
        )
    matches = [re.fullmatch(r"dataset_(\d+)", child.name) for child in path.iterdir()]
    numbers = sorted(int(match[1]) for match in matches if match)
    lost = sorted(set(range(max(numbers, default=0) + 1)) - set(numbers))
    if lost:
        raise ValueError(
            f"{path} lacks dataset_{lost[0]} ({len(numbers)} groups are there, {len(lost)} are not): restore it from a "
            "copy, or write the collection again"
        )
    stores = [open_zarr(path / f"dataset_{number}", layer=layer) for number in numbers]
    genes = list(stores[0].var_names)
    for number, store in enumerate(stores):
        _check_genes(list(store.var_names), genes, f"dataset_{number} of {path}")
    return Collection(stores, genes, source_key=None, uri=str(path))


def _check_genes(names: Sequence[str], first: Sequence[str], where: str) -> None:
    if names != first:
        at, pair = next((at, pair) for at, pair in enumerate(zip_longest(names, first)) if pair[0] != pair[1])
        raise ValueError(
            f"{where} has {len(names)} genes and dataset_0 {len(first)}, number {at} is "
            f"{printable(pair[0])} against {printable(pair[1])}: all groups need the same genes; "
            "give the groups as a list of stores to align them by name"
        )
