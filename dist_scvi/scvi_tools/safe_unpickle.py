"""Reading of untrusted pickles without executing code from them.

A pickle is a program: it may name any function of any module and call it. Here every name is looked up in one table of
stand-ins that only store their arguments. A name that is not in the table raises an error; nothing is imported or
called. Sizes are checked against the size of the file before memory is allocated.
"""

import io
import math
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

_OLD_TORCH = b"\x80\x02\x8a\x0a"
_MAX_DIMS = 8
_MAX_DEPTH = 100
_MAX_TUPLES = 50_000
"""Nested in each other, twice as many overflow the stack of a thread when they are hashed as the key of a table."""
_MIN_PARTS = 1 << 16
_PARTS_PER_BYTE = 4
"""A pickle of n bytes has at most n values; with shared ones written out, real models have a few times as many."""
_TEXT_PART = 64
"""Characters that count as one additional part."""
_NUMPY_TYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9]\d{0,5}")
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_FAILURES = (  # what a damaged or malicious pickle or archive may raise
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, struct.error, OSError, MemoryError, RuntimeError),
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError),
)


class Foreign:
    """Stand-in for an object of another library: its constructor arguments and state, without its code.

    Its type has the name of the object's class, or of the function that would have built it.
    """

    __slots__ = ("arguments", "state")
    arguments: Any
    state: Any

    def __new__(cls, *arguments: Any) -> Self:  # noqa: D102
        self = super().__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_torch(path: Path) -> Any:
    """Read a file of ``torch.save``: dicts, lists, numbers, text, numpy arrays (of objects as lists) and tensors.

    pandas frames are returned as `Foreign`.

    Raises
    ------
    ValueError
        If the file is damaged, refers to a name that is not allowed, or declares sizes larger than its content.
    """
    # Not torch.load(weights_only=True): it raises for pandas frames, which these files have as the training history.
    _check_is_file(path)
    with path.open("rb") as file:
        is_old = file.read(4) == _OLD_TORCH
        try:
            with zipfile.ZipFile(file) as archive:
                content, *_, root = _open_archive(archive, path.stat().st_size)
                return _to_plain(_Unpickler(content, archive, root).load(), len(content))
        except _FAILURES as error:
            hint = "; a file of torch before 1.6 must be saved again with a newer one" if is_old else ""
            raise ValueError(f"{path} cannot be read: {error or type(error).__name__}{hint}") from error


def read_pickle(path: Path) -> Any:
    """Read a plain pickle, as `read_torch` but without tensors.

    Raises
    ------
    ValueError
        As in `read_torch`.
    """
    _check_is_file(path)
    content = path.read_bytes()
    try:
        return _to_plain(_Unpickler(content).load(), len(content))
    except _FAILURES as error:
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from error


class _Name:
    """Stand-in for an allowed name. It may be called; a pickle that tries to change its state raises an error."""

    __slots__ = ("_make", "text")

    def __init__(self, text: str, make: Callable[..., Any]) -> None:
        self.text, self._make = text, make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"it changes {self.text}")


class _Unpickler(pickle.Unpickler):
    """Unpickler of `content`, whose tensors are in `archive`."""

    def __init__(self, content: bytes, archive: zipfile.ZipFile | None = None, root: str = "") -> None:
        _check_opcodes(content)
        super().__init__(io.BytesIO(content))
        self._archive, self._root = archive, root
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        text = f"{module.replace('__builtin__', 'builtins')}.{name}"
        make = _ALLOWED.get(text)
        if make is not None:
            return _Name(text, make)
        if module == "torch" and name in _STORAGES:
            return _Name(name, _refuse_call)
        if re.fullmatch(r"pandas(\.\w+)+", module) or text == "torch.device":
            return type(text, (Foreign,), {"__slots__": ()})
        raise pickle.UnpicklingError(f"it names {text!r}, which no model file needs; nothing was run")

    def persistent_load(self, pid: Any) -> Tensor:
        match pid:
            case ("storage", _Name(text=kind), str(key), str(), int(numel)) if kind in _STORAGES and key.isalnum():
                dtype = _STORAGES[kind]
            case _:
                raise pickle.UnpicklingError("it refers to something that is no tensor of this file")
        if (key, dtype) not in self._flat:
            self._flat[key, dtype] = self._read_storage(key, dtype, numel)
        return self._flat[key, dtype]

    def _read_storage(self, key: str, dtype: torch.dtype, numel: int) -> Tensor:
        if self._archive is None:
            raise pickle.UnpicklingError("it refers to tensors, and there are none beside it")
        # Checked before the read: a small pickle must not be able to allocate an arbitrary amount of memory.
        found = self._archive.getinfo(f"{self._root}/data/{key}").file_size
        if found != numel * dtype.itemsize:
            raise pickle.UnpicklingError(f"tensor data {key} has {found} bytes where {numel} of {dtype} are claimed")
        content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _open_archive(archive: zipfile.ZipFile, n_bytes: int) -> tuple[bytes, zipfile.ZipFile, str]:
    """Return the pickle of an archive and its folder, after a check of the sizes in the archive.

    Parts must be uncompressed and together no larger than the file, which excludes zip bombs.
    """
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise pickle.UnpicklingError("it holds compressed parts, which torch does not write")
    if sum(entry.file_size for entry in entries) > n_bytes:
        raise pickle.UnpicklingError("its parts claim more bytes than it has")
    roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(roots) != 1:
        raise pickle.UnpicklingError(f"it holds {len(roots)} files data.pkl where one is needed")
    order = f"{roots[0]}/byteorder"
    if order in archive.namelist() and archive.read(order) != sys.byteorder.encode():
        raise pickle.UnpicklingError(f"it was written on a machine of other byte order than {sys.byteorder}")
    return archive.read(f"{roots[0]}/data.pkl"), archive, roots[0]


def _check_opcodes(content: bytes) -> None:
    """Raise for opcodes that would end the process without an exception.

    These are memo indices larger than the file, for which the unpickler allocates memory, and too many tuples.
    """
    n_tuples = 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"it is {len(content)} bytes long and wants room for {argument} objects")
        n_tuples += opcode.name.startswith("TUPLE")
    if n_tuples > _MAX_TUPLES:
        raise pickle.UnpicklingError(f"it holds {n_tuples} tuples, models hold less than {_MAX_TUPLES}")


class _Table(dict[Any, Any]):
    """Stand-in for an OrderedDict or defaultdict. Its state is ignored: torch stores the versions of modules there."""

    def __setstate__(self, state: Any) -> None:
        pass


class _NumpyType:
    """Stand-in for a numpy dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = str(code)
        self.order: Literal["<", ">", "|", "="] = "="

    def __setstate__(self, state: Any) -> None:
        _, self.order, *parts = state[:5]
        if self.order not in ("<", ">", "|", "=") or any(part is not None for part in parts):
            raise pickle.UnpicklingError(f"it holds an array of records, or of the byte order {self.order!r}")

    def read(self, content: Any, n: int) -> Any:
        """Return `n` values: an array, or a list of objects."""
        if re.fullmatch("O8?", self.code):
            if not isinstance(content, list) or len(content) != n:
                raise pickle.UnpicklingError(f"it claims an array of {n} objects that are not there")
            return content
        if not _NUMPY_TYPE.fullmatch(self.code):
            raise pickle.UnpicklingError(f"it holds an array of type {self.code!r}")
        dtype = np.dtype(self.code).newbyteorder(self.order)
        if not isinstance(content, bytes) or len(content) != n * dtype.itemsize:
            raise pickle.UnpicklingError(f"it claims an array of {n} {self.code} that are not there")
        return np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))


class _Array:
    """Stand-in for a numpy array. A pickle creates an empty array first, and then sets its values as the state."""

    __slots__ = ("values",)

    def __init__(self, *_: Any) -> None:
        self.values: Any = []

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_column, content = state
        if not isinstance(dtype, _NumpyType):
            raise pickle.UnpicklingError("it holds an array without a type")
        values = dtype.read(content, _count(shape))
        self.values = values if isinstance(values, list) else values.reshape(shape, order="F" if by_column else "C")


def _scalar(dtype: _NumpyType, content: Any) -> Any:
    return np.asarray(dtype.read(content, 1))[0].item() if isinstance(content, bytes) else content


def _tensor(flat: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return a view of stored numbers, after a check that it is inside them.

    It may not have more elements than are stored: with a stride of 0, one number could stand for a tensor of any size.
    """
    if not isinstance(flat, Tensor) or not isinstance(offset, int) or offset < 0:
        raise pickle.UnpicklingError("it holds a tensor without numbers")
    n = _count(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if n else 0
    if any(not isinstance(step, int) or step < 0 for step in stride) or n > len(flat) or (n and last >= len(flat)):
        raise pickle.UnpicklingError(
            f"a tensor of shape {size} and strides {stride} lies outside its {len(flat)} numbers"
        )
    return flat.as_strided(size, stride, offset)


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMS or any(type(n) is not int or n < 0 for n in shape):
        raise pickle.UnpicklingError(f"it holds an array of shape {str(shape)[:80]}")
    return math.prod(shape)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes as {encoding!r}")
    return text.encode("latin1")


def _refuse_call(*_: Any) -> Any:
    raise pickle.UnpicklingError("it calls what is no function")


_ALLOWED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Table,
    "collections.defaultdict": lambda *_: _Table(),
    "builtins.dict": _refuse_call,  # named as the factory of a defaultdict, never called
    "builtins.list": _refuse_call,
    "builtins.set": lambda items: items,
    "builtins.slice": slice,
    "builtins.bytes": lambda: b"",  # with a number it would take that much memory
    "_codecs.encode": _encode,
    "numpy.ndarray": _refuse_call,
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}


def _check_is_file(path: Path) -> None:
    """Raise if `path` exists and is not a regular file: reading a pipe or a device may never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} cannot be read: it is no regular file")


def _to_plain(value: Any, n_bytes: int) -> Any:
    """Replace all stand-ins in the content of a pickle of `n_bytes` by plain values.

    Lists that share their items can describe a tree of 10^12 values in a kilobyte. Such a tree needs no memory until it
    is printed, joined or copied, so its size without sharing is limited here.
    """
    return _Plain(max(_MIN_PARTS, _PARTS_PER_BYTE * n_bytes)).convert(value, 0)[0]


class _Plain:
    """Replaces stand-ins by plain values, and counts the values of the result as if none were shared."""

    def __init__(self, max_parts: int) -> None:
        self._max_parts = max_parts
        self._done: dict[int, tuple[Any, int]] = {}
        """Converted values and their number of parts, by the identity of the original: shared ones convert once."""

    def convert(self, value: Any, depth: int) -> tuple[Any, int]:
        """Return the plain value and its number of parts."""
        if value is None or isinstance(value, bool | int | float | complex | slice | Tensor):
            return value, 1
        if isinstance(value, str | bytes):
            return value, 1 + len(value) // _TEXT_PART
        if depth > _MAX_DEPTH:
            raise pickle.UnpicklingError(f"it is nested deeper than {_MAX_DEPTH}, or holds itself")
        if id(value) not in self._done:
            self._done[id(value)] = self._convert_parts(value, depth)
        return self._done[id(value)]

    def _convert_parts(self, value: Any, depth: int) -> tuple[Any, int]:
        match value:
            case _Array(values=values):
                return self.convert(values, depth + 1) if isinstance(values, list) else (values, 1)
            case _Name(text=text) | _NumpyType(code=text):
                return text, 1
            case type():
                return value.__name__, 1
            case Foreign():
                (value.arguments, value.state), n_parts = self._convert_all((value.arguments, value.state), depth)
                return value, n_parts
            case dict():
                if any(not isinstance(key, str | int | float | None) for key in value):
                    raise pickle.UnpicklingError("it holds a table whose keys are neither texts nor numbers")
                parts, n_parts = self._convert_all(value.values(), depth)
                return dict(zip(value, parts, strict=True)), n_parts
            case list() | tuple() | set() | frozenset():
                return self._convert_all(value, depth)
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")

    def _convert_all(self, values: Iterable[Any], depth: int) -> tuple[list[Any], int]:
        parts, total = [], 1
        for value in values:
            part, n_parts = self.convert(value, depth + 1)
            total += n_parts
            if total > self._max_parts:
                raise pickle.UnpicklingError(
                    f"its lists share parts and would be more than {self._max_parts} values if written out"
                )
            parts.append(part)
        return parts, total
