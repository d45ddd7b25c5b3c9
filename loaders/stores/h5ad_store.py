"""AnnData in HDF5 (``.h5ad``), read contiguously; no other file is read through links."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from dist_scvi.loaders.arrays.objects import LocalObjects
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.loaders.stores.anndata_store import AnnDataStore
from dist_scvi.loaders.stores.memory_store import FrameTable

_MOST_LINKS = 16
"""Most soft links that are followed on the path to a node."""


def open_h5ad(
    path: Path, *, layer: str | None = None, obs: FrameTable | None = None, var_names: Sequence[str] | None = None
) -> AnnDataStore:
    """Open the ``.h5ad`` file `path`.

    Parameters
    ----------
    obs, var_names
        Used instead of those in the file: those of an AnnData backed by it, whose obs may have been changed.

    Raises
    ------
    ValueError
        If it is not an HDF5 file, not an AnnData, or refers to data outside of the file.
    """
    try:
        root = h5py.File(path, mode="r")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be opened as HDF5 ({printable(error)}): an .h5ad file or a Zarr folder is needed"
        ) from error
    tree = H5Tree(root, str(path))
    version = partial(LocalObjects(path.parent).version, path.name)
    try:
        return AnnDataStore(
            tree, tree.array, layer=layer, version=version, close=root.close, obs=obs, var_names=var_names
        )
    except ValueError:
        root.close()
        raise


class H5Tree:
    """The groups and arrays of an HDF5 file; see `anndata_tree.Tree`.

    HDF5 itself follows external links, and reads external and virtual datasets from any file that the user may read: a
    file from an untrusted source could have its counts read from ``/etc/passwd``. This class checks each link on the
    path to a node before it follows the link.
    """

    def __init__(self, root: Any, uri: str) -> None:
        self.uri, self._root = uri, root
        self.lacking: dict[str, str] = {}
        """Dense arrays of which some chunks were never written, with a description."""

    def kind(self, path: str) -> Literal["group", "array"] | None:
        """Return the kind of the node at `path`; see `Tree`."""
        node = self._node(path)
        return None if node is None else "array" if isinstance(node, h5py.Dataset) else "group"

    def attribute(self, path: str, name: str) -> Any:
        """Return an attribute; for a reference, the path that it refers to. See `Tree`."""
        node = self._node(path)
        if node is None:
            return None
        try:
            value = node.attrs.get(name)
            if isinstance(value, h5py.Reference):
                value = self._root[value].name
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # as h5py says of damaged attributes
            raise ValueError(
                f"the attribute '{name}' of {path or 'the root'} of {self.uri} cannot be read ({printable(error)}): "
                "restore the file from a copy"
            ) from error
        return _plain(value)

    def names(self, path: str) -> list[str]:
        """Return the names of the members of a group; see `Tree`."""
        node = self._node(path)
        return sorted(node.keys()) if isinstance(node, h5py.Group) else []

    def array(self, path: str) -> Any:
        """Open the array at `path`.

        Raises
        ------
        ValueError
            If there is none, its data are in another file, or its shape has more values than are stored.
        """
        dataset = self._node(path)
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(  # noqa: TRY004
                f"{path} of {self.uri} is {'missing' if dataset is None else 'a group where an array is needed'}: the "
                "file is damaged, write it again from its source"
            )
        self._check_stored(path, dataset)
        return dataset

    def _check_stored(self, path: str, dataset: Any) -> None:
        """Refuse values that are in other files, or that are not stored at all, which HDF5 reads as zeros."""
        if dataset.external or dataset.is_virtual:
            how = "external storage" if dataset.external else "a virtual dataset"
            raise ValueError(
                f"{path} of {self.uri} keeps its data in other files (HDF5 {how}), which are not read: copy the data "
                "into one file"
            )
        if dataset.shape is None:
            raise ValueError(f"{path} of {self.uri} holds no values: write the file again from its source")
        if dataset.chunks is None:
            absent = 1 if dataset.id.get_storage_size() < _least_bytes(dataset) else 0
            total = 1
        else:
            total = math.prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks, strict=True))
            absent = total - dataset.id.get_num_chunks()
        if absent and dataset.ndim == 2 and dataset.fillvalue == 0 and absent < total:
            self.lacking[path] = f"{absent} of {total} chunks were never written and are read as zeros"
        elif absent:
            raise ValueError(
                f"{path} of {self.uri} lacks {absent} of {total} chunks that its shape {dataset.shape} needs: the file "
                "is damaged or half written, write it again from its source"
            )

    def _node(self, path: str) -> Any:
        """Follow `path` link by link."""
        parts, node, links = [part for part in path.split("/") if part], self._root, 0
        while parts:
            name = parts.pop(0)
            if not isinstance(node, h5py.Group):
                return None
            try:
                # Link by link, because h5py's own `in` and `[]` open the target file of an external link.
                known = node.id.links.exists(name.encode())
                link = node.id.links.get_info(name.encode()).type if known else None
                if link == h5py.h5l.TYPE_SOFT and links < _MOST_LINKS:
                    target, links = node.id.links.get_val(name.encode()).decode(), links + 1
                    parts = [*(part for part in target.split("/") if part not in ("", ".")), *parts]
                    node = self._root if target.startswith("/") else node
                    continue
                found = node[name] if link == h5py.h5l.TYPE_HARD else None
            except (OSError, RuntimeError, KeyError, ValueError) as error:  # as h5py says of a damaged group
                raise ValueError(
                    f"{path} of {self.uri} cannot be read ({printable(error)}): restore the file from a copy"
                ) from error
            if link is not None and found is None:
                raise ValueError(
                    f"{path} of {self.uri} is a link out of the file, or one that leads to itself, and is not "
                    "followed: copy the data into one file"
                )
            node = found
        return node


def _least_bytes(dataset: Any) -> int:
    return int(math.prod(dataset.shape)) * int(dataset.dtype.itemsize)


def _plain(value: Any) -> Any:
    """Return an attribute of h5py as a string, a number or a list of these."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.ravel().tolist()]
    return value.item() if isinstance(value, np.generic) else value
