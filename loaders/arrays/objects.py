"""Objects read by byte range, and their implementation for files of a local folder."""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from dist_scvi.loaders.arrays.bounded_json import DEFAULT, Budget, check_bytes


class StorageError(OSError):
    """Storage did not deliver an object, after all tries."""


class Objects(Protocol):
    """The objects below one URI, named by keys such as ``X/data/c/0``. All methods are thread-safe.

    If not stated otherwise, they raise `FileNotFoundError` for an object that is absent. They raise `StorageError` if
    storage fails.
    """

    uri: str
    remote: bool

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, None if it is absent."""
        ...

    def read(self, key: str, start: int, length: int) -> memoryview:
        """Read `length` bytes of an object from `start` on. The next read of this thread may overwrite the result.

        Raises
        ------
        ValueError
            If the object ends before that.
        """
        ...

    def read_whole(self, key: str) -> bytes | memoryview:
        """Read a whole object."""
        ...

    def version(self, key: str) -> str:
        """Return a text that changes when the object is written again."""
        ...


class LocalObjects:
    """The files below the folder `root`.

    Files are read, not mapped: if a mapped file is truncated, an access ends the process. At most `max_open` files stay
    open.
    """

    remote = False

    def __init__(self, root: Path, *, max_open: int = 256) -> None:
        self.uri = str(root)
        self._opened = lru_cache(max_open)(_OpenFile)
        self._memory = threading.local()

    def size(self, key: str) -> int | None:
        """Return the size of a file in bytes; see `Objects`."""
        try:
            found = Path(self.uri, key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def read(self, key: str, start: int, length: int) -> memoryview:
        """Read a range of a file; see `Objects`."""
        path = f"{self.uri}/{key}"
        room = self._room(length)
        got = 0
        with _failing_disk(path):
            file = self._opened(path)
            while got < length and (more := _read_into(file.number, room[got:], start + got)):
                got += more  # one read returns at most 2 GiB
        check_length(path, start, length, got)
        return room

    def _room(self, length: int) -> memoryview:
        """Return this thread's buffer; allocating new memory would cost more than the read itself."""
        if not hasattr(self._memory, "room") or len(self._memory.room) < length:
            self._memory.room = memoryview(bytearray(length + length // 4))
        room: memoryview = self._memory.room[:length]
        return room

    def read_whole(self, key: str) -> bytes:
        """Read a file; see `Objects`."""
        path = f"{self.uri}/{key}"
        with _failing_disk(path), open(open_regular(path), "rb") as file:
            return file.read()

    def version(self, key: str) -> str:
        """Return inode, size and modification time; see `Objects`."""
        with _failing_disk(f"{self.uri}/{key}"):
            found = Path(self.uri, key).stat()
        return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def _read_into(number: int, room: memoryview, start: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(number, [room], start)
    got = os.pread(number, len(room), start)  # macOS
    room[: len(got)] = got
    return len(got)


def open_regular(path: str | Path) -> int:
    """Open a file for reading and return its descriptor.

    Raises
    ------
    ValueError
        If it is a named pipe, a socket or a device: opening or reading one can block without end.
    """
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # without it, open itself waits for a writer
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        os.close(number)
        raise ValueError(f"{path} is a named pipe, a socket or a device: a regular file is needed")
    return number


def read_file(path: str | Path, budget: Budget = DEFAULT) -> bytes | None:
    """Read a small file, such as a metadata document; return None if it is absent.

    Raises
    ------
    ValueError
        If it is not a regular file, or larger than `budget` allows.
    StorageError
        If the disk fails.
    """
    try:
        with _failing_disk(str(path)), open(open_regular(path), "rb") as file:
            check_bytes(os.fstat(file.fileno()).st_size, str(path), budget)
            content = file.read(budget.max_bytes + 1)
    except FileNotFoundError:
        return None
    check_bytes(len(content), str(path), budget)
    return content


class _OpenFile:
    """A file descriptor, closed when neither the cache nor a read refers to it any more."""

    # Not closed by the cache when it evicts the file: another thread may be reading from the descriptor, and its number
    # could belong to another file by then.

    def __init__(self, path: str) -> None:
        self.number = open_regular(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@contextmanager
def _failing_disk(path: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}): see that its disk is sound") from error


def check_length(where: str, start: int, length: int, got: int) -> None:
    """Refuse a read that returned `got` of the `length` bytes from `start` on.

    Raises
    ------
    ValueError
        If it returned fewer.
    """
    if got != length:
        raise ValueError(
            f"{where} is truncated: bytes {start} to {start + length - 1} are needed, {got} of these {length} are "
            "there; restore it from a copy or write the store again"
        )
