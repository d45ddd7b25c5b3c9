"""Objects read by byte range from a local folder or object storage, with bounded waits and errors that name them."""

import itertools
import os
import random
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import obstore
from obstore.exceptions import BaseError, NotSupportedError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url
from zarr.abc.store import Store
from zarr.storage import LocalStore, ObjectStore

T = TypeVar("T")

_SCHEMES = ("s3", "gs", "http", "https")
_FIRST_PAUSE_S = 0.5
"""Before the second try; it doubles with each."""
_CLIENT_OPTIONS = {
    *("allow_http", "allow_invalid_certificates", "connect_timeout", "default_headers", "http1_only", "http2_only"),
    *("pool_idle_timeout", "pool_max_idle_per_host", "proxy_ca_certificate", "proxy_excludes", "proxy_url"),
    *("randomize_addresses", "read_timeout", "root_certificate", "timeout", "user_agent"),
}
"""Options that obstore takes for the connection and not for the storage; given as the latter they make it panic."""


class StorageError(OSError):
    """Storage that did not deliver an object, after all tries."""


class Objects(Protocol):
    """The objects below one URI, named by keys such as ``X/data/c/0``. All methods may be called from many threads.

    All raise `FileNotFoundError` for an object that is absent, where nothing else is said, and `StorageError` where
    storage fails.
    """

    uri: str
    remote: bool

    def size(self, key: str) -> int | None:
        """Give the bytes of an object, None if it is absent."""
        ...

    def read(self, key: str, start: int, length: int) -> memoryview:
        """Read `length` bytes of an object from `start` on, into memory that this thread's next read may use again.

        Raises
        ------
        ValueError
            If the object ends before.
        """
        ...

    def read_whole(self, key: str) -> bytes | memoryview:
        """Read an object."""
        ...

    def version(self, key: str) -> str:
        """Give a text that changes when the object is written again."""
        ...


def open_objects(uri: str | Path, *, storage_options: Mapping[str, str] | None = None) -> Objects:
    """Open the objects below a local folder or a URL; see `RemoteObjects`."""
    return RemoteObjects(str(uri), storage_options=storage_options) if "://" in str(uri) else LocalObjects(Path(uri))


class LocalObjects:
    """The files below the folder `root`.

    Files are read and not mapped, for a mapped file that is cut short ends the process. At most `max_open` stay open.
    """

    remote = False

    def __init__(self, root: Path, *, max_open: int = 256) -> None:
        self.uri = str(root)
        self._opened = lru_cache(max_open)(_OpenFile)
        self._held = threading.local()

    def size(self, key: str) -> int | None:
        """Give the bytes of a file; see `Objects`."""
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
                got += more  # one read gives at most 2 GiB
        _check_length(path, start, length, got)
        return room

    def _room(self, length: int) -> memoryview:
        """Give this thread's memory: fresh one costs more than reading into it."""
        if not hasattr(self._held, "room") or len(self._held.room) < length:
            self._held.room = memoryview(bytearray(length + length // 4))
        room: memoryview = self._held.room[:length]
        return room

    def read_whole(self, key: str) -> bytes:
        """Read a file; see `Objects`."""
        with _failing_disk(f"{self.uri}/{key}"):
            return Path(self.uri, key).read_bytes()

    def version(self, key: str) -> str:
        """Tell by inode, size and time of change; see `Objects`."""
        with _failing_disk(f"{self.uri}/{key}"):
            found = Path(self.uri, key).stat()
        return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


class RemoteObjects:
    """The objects below a URL.

    Parameters
    ----------
    uri
        ``s3://bucket/folder``, ``gs://bucket/folder``, ``http://...`` or ``https://...``.
    storage_options
        What obstore takes beside the environment: credentials, ``endpoint``, ``region``, ``proxy_url``. Public buckets
        are read with ``skip_signature="true"``.
    retries
        Tries after the first.
    timeout_s
        Longest time in which no byte comes before a try is given up.
    deadline_s
        Longest time that a read takes with all its tries.

    Raises
    ------
    ValueError
        If the URL or an option is none that is known.
    """

    remote = True

    def __init__(
        self,
        uri: str,
        *,
        storage_options: Mapping[str, str] | None = None,
        retries: int = 5,
        timeout_s: float = 15.0,
        deadline_s: float = 120.0,
    ) -> None:
        self.uri = uri.rstrip("/")
        self._retries, self._deadline_s = retries, deadline_s
        self._store = _store_of(uri, storage_options, retries=0, timeout_s=timeout_s, deadline_s=deadline_s)

    def size(self, key: str) -> int | None:
        """Give the bytes of an object; see `Objects`."""
        try:
            return int(self._meta(key)["size"])
        except FileNotFoundError:
            return None

    def read(self, key: str, start: int, length: int) -> memoryview:
        """Read a range of an object; see `Objects`."""

        def ranged() -> memoryview:
            try:
                return memoryview(obstore.get_range(self._store, key, start=start, length=length))
            except BaseError as error:
                if _status(error) == 416:  # the object ends before `start`
                    return memoryview(b"")
                raise

        got = self._tried(key, ranged) if length else memoryview(b"")
        _check_length(f"{self.uri}/{key}", start, length, len(got))
        return got

    def read_whole(self, key: str) -> memoryview:
        """Read an object; see `Objects`."""
        return self._tried(key, lambda: memoryview(obstore.get(self._store, key).bytes()))

    def version(self, key: str) -> str:
        """Tell by entity tag, time of change and size; see `Objects`."""
        found = self._meta(key)
        return f"{found['e_tag']}-{found['last_modified'].timestamp():.0f}-{found['size']}"

    def _meta(self, key: str) -> Any:
        return self._tried(key, lambda: obstore.head(self._store, key))

    def _tried(self, key: str, request: Callable[[], T]) -> T:
        """Answer `request`, in one of the tries allowed.

        A try lasts at most half of the deadline, and none begins in its second half.
        """
        began = time.monotonic()
        for tries in itertools.count(1):
            try:
                return request()
            except FileNotFoundError:
                raise FileNotFoundError(f"{self.uri}/{key} does not exist") from None
            except BaseError as error:
                pause_s = random.uniform(0.5, 1.0) * _FIRST_PAUSE_S * 2 ** (tries - 1)
                waited_s = time.monotonic() - began
                if _is_final(error) or tries > self._retries or waited_s + pause_s > self._deadline_s / 2:
                    raise StorageError(
                        f"{self.uri}/{key} was not delivered in {tries} {'tries' if tries > 1 else 'try'} over "
                        f"{waited_s:.1f} s ({_reason(error)}): {_ADVICE}"
                    ) from error
            time.sleep(pause_s)
        raise AssertionError


def zarr_store_of(
    uri: str | Path,
    storage_options: Mapping[str, str] | None = None,
    *,
    retries: int = 5,
    timeout_s: float = 15.0,
    deadline_s: float = 120.0,
) -> Store:
    """Open a local folder or a URL for Zarr, to be read only; see `RemoteObjects`.

    What fails in reading a URL is told in obstore's own errors: read within `storage_errors`.
    """
    if "://" not in str(uri):
        return LocalStore(uri, read_only=True)
    store = _store_of(str(uri), storage_options, retries=retries, timeout_s=timeout_s, deadline_s=deadline_s)
    return ObjectStore(store, read_only=True)


@contextmanager
def storage_errors(uri: str | Path) -> Iterator[None]:
    """Tell errors of obstore, met in reading `uri` through Zarr, as a `StorageError`."""
    try:
        yield
    except BaseError as error:
        raise StorageError(f"{uri} cannot be read ({_reason(error)}): {_ADVICE}") from error


_ADVICE = (
    "see that it can be reached from here and that its credentials are right (environment or storage options; "
    "skip_signature=true reads public buckets)"
)


def _read_into(number: int, room: memoryview, start: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(number, [room], start)
    got = os.pread(number, len(room), start)  # macOS
    room[: len(got)] = got
    return len(got)


class _OpenFile:
    """A descriptor that is closed when its last user, the cache or a read, lets go of it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

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


def _check_length(where: str, start: int, length: int, got: int) -> None:
    if got != length:
        raise ValueError(
            f"{where} is truncated: bytes {start} to {start + length - 1} are needed, {got} of these {length} are "
            "there; restore it from a copy or write the store again"
        )


def _store_of(uri: str, options: Mapping[str, str] | None, *, retries: int, timeout_s: float, deadline_s: float) -> Any:
    scheme = uri.partition("://")[0]
    if scheme not in _SCHEMES:
        raise ValueError(f"{uri} cannot be read: a local path or a URL of {', '.join(_SCHEMES)} is needed (data.uri)")
    config = {key: value for key, value in (options or {}).items() if key not in _CLIENT_OPTIONS}
    client: Any = {
        "timeout": timedelta(seconds=deadline_s / 2),
        "read_timeout": timedelta(seconds=timeout_s),
        "connect_timeout": timedelta(seconds=timeout_s),
        "allow_http": scheme != "https",  # for s3 and gs it is the endpoint that says whether http is used
        **{key: value for key, value in (options or {}).items() if key in _CLIENT_OPTIONS},
    }
    pause: Any = {"init_backoff": timedelta(seconds=_FIRST_PAUSE_S)}
    retry: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=deadline_s / 2), "backoff": pause}
    given: Any = config or None
    try:
        return from_url(uri, config=given, client_options=client, retry_config=retry)
    except (BaseError, ValueError) as error:
        raise ValueError(
            f"{uri} cannot be opened with storage options {', '.join(options or ()) or 'none'} ({_reason(error)}): "
            "obstore's documentation lists those of each kind of storage"
        ) from error


def _is_final(error: BaseError) -> bool:
    """Tell whether another try would end alike."""
    status = _status(error)
    refused = status is not None and 400 <= status < 500 and status not in (408, 429)
    return refused or isinstance(error, (PermissionDeniedError, UnauthenticatedError, NotSupportedError))


def _status(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _reason(error: Exception) -> str:
    """Give the first line of what obstore says, and the kind of error that stands only in its details."""
    kind = re.search(r"kind: (Timeout|Connect|Interrupted)", str(error))
    return str(error).partition("\n")[0].strip() + (f", {kind[1].lower()}" if kind else "")
