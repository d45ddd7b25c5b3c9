"""Objects read and written in object storage, with bounded waits and errors that name them."""

import itertools
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url

from dist_scvi.loaders.arrays.objects import LocalObjects, Objects, StorageError, check_length

if TYPE_CHECKING:
    from zarr.abc.store import Store

T = TypeVar("T")

_SCHEMES = ("s3", "gs", "http", "https")
_FIRST_PAUSE_S = 0.5
"""Pause before the second try; it doubles with each try."""
_SLOWEST_UPLOAD = 1 << 20
"""Bytes per second of the slowest upload that is allowed; the deadline is extended by the size."""
_MOST_BYTES = 5 << 30
"""Largest object that S3 accepts in one request."""
_CLIENT_OPTIONS = {
    *("allow_http", "allow_invalid_certificates", "connect_timeout", "default_headers", "http1_only", "http2_only"),
    *("pool_idle_timeout", "pool_max_idle_per_host", "proxy_ca_certificate", "proxy_excludes", "proxy_url"),
    *("randomize_addresses", "read_timeout", "root_certificate", "timeout", "user_agent"),
}
"""Options of obstore for the connection; passed as options of the storage they make it panic."""


def open_objects(uri: str | Path, *, storage_options: Mapping[str, str] | None = None) -> Objects:
    """Open the objects below a local folder or a URL; see `RemoteObjects`."""
    return RemoteObjects(str(uri), storage_options=storage_options) if "://" in str(uri) else LocalObjects(Path(uri))


class RemoteObjects:
    """The objects below a URL. All methods are thread-safe.

    Parameters
    ----------
    uri
        ``s3://bucket/folder``, ``gs://bucket/folder``, ``http://...`` or ``https://...``.
    storage_options
        Options of obstore in addition to the environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
        ``AWS_REGION``, ``AWS_ENDPOINT_URL``, ``GOOGLE_SERVICE_ACCOUNT`` and so on): credentials, ``endpoint``,
        ``region``, ``proxy_url``. Public buckets are read with ``skip_signature="true"``.
    retries
        Tries after the first.
    timeout_s
        Longest time without any received byte before a try is abandoned.
    deadline_s
        Longest time of a request with all its tries; for an upload, 2 s more for each MiB.

    Raises
    ------
    ValueError
        If the URL or an option is not known.
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
        self._options, self._retries, self._deadline_s = storage_options, retries, deadline_s
        self._store = _store_of(uri, storage_options, retries=0, timeout_s=timeout_s, deadline_s=deadline_s)

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes; see `Objects`."""
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
        check_length(f"{self.uri}/{key}", start, length, len(got))
        return got

    def read_whole(self, key: str) -> memoryview:
        """Read an object; see `Objects`."""
        return self._tried(key, lambda: memoryview(obstore.get(self._store, key).bytes()))

    def version(self, key: str) -> str:
        """Return entity tag, modification time and size; see `Objects`."""
        found = self._meta(key)
        return f"{found['e_tag']}-{found['last_modified'].timestamp():.0f}-{found['size']}"

    def write(self, key: str, content: bytes) -> None:
        """Write or replace an object atomically.

        Raises
        ------
        StorageError
            If the storage fails.
        ValueError
            If it is larger than storage accepts in one request.
        """
        store, deadline_s = self._uploading(key, len(content))

        def put() -> None:
            obstore.put(store, key, content, use_multipart=False)

        self._tried(key, put, "written", deadline_s)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object if it does not exist; return whether it was written.

        A try whose answer is lost may have written it. So an object that exists at a later try counts as written if it
        has this content.

        Raises
        ------
        StorageError, ValueError
            As `write`.
        """
        store, deadline_s = self._uploading(key, len(content))
        tries = itertools.count(1)

        def put() -> bool:
            again = next(tries) > 1
            try:
                obstore.put(store, key, content, mode="create", use_multipart=False)
            except AlreadyExistsError as error:
                there = self._content(key)
                if there is None and _status(error) == 409:
                    raise  # S3 reports a conflict with a concurrent request for the object, which is tried again
                return again and there == content
            return True

        return self._tried(key, put, "written", deadline_s)

    def copy(self, key: str, to: str) -> None:
        """Copy an object; an existing object at `to` is replaced.

        Raises
        ------
        FileNotFoundError
            If it is absent.
        StorageError
            If the storage fails.
        """
        self._tried(key, lambda: obstore.copy(self._store, key, to), "copied")

    def delete(self, key: str) -> None:
        """Delete an object, if it exists.

        Raises
        ------
        StorageError
            If the storage fails.
        """
        with suppress(FileNotFoundError):
            self._tried(key, lambda: obstore.delete(self._store, key), "deleted")

    def keys(self, folder: str) -> list[str]:
        """Return the sorted keys of all objects below a folder; ``""`` is the root.

        Raises
        ------
        StorageError
            If the storage fails.
        """
        found = self._tried(folder, lambda: obstore.list(self._store, folder or None).collect(), "listed")
        return sorted(about["path"] for about in found)

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the objects and folders directly below a folder; none if there is no such folder.

        Raises
        ------
        StorageError
            If the storage fails.
        """
        found = self._tried(folder, lambda: obstore.list_with_delimiter(self._store, folder or None), "listed")
        keys = [*found["common_prefixes"], *(about["path"] for about in found["objects"])]
        return sorted({key.rstrip("/").rpartition("/")[2] for key in keys})

    def _uploading(self, key: str, size: int) -> tuple[Any, float]:
        """Return a client with a timeout long enough to send `size` bytes, and the deadline.

        For obstore no byte is received during the whole upload.
        """
        if size > _MOST_BYTES:
            raise ValueError(f"{self.uri}/{key} would have {size} bytes: object storage takes {_MOST_BYTES} at once")
        if size < _SLOWEST_UPLOAD:
            return self._store, self._deadline_s
        deadline_s = self._deadline_s + 2 * size / _SLOWEST_UPLOAD
        patient = _store_of(self.uri, self._options, retries=0, timeout_s=deadline_s / 2, deadline_s=deadline_s)
        return patient, deadline_s

    def _content(self, key: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return bytes(obstore.get(self._store, key).bytes())
        return None

    def _meta(self, key: str) -> Any:
        return self._tried(key, lambda: obstore.head(self._store, key))

    def _tried(self, key: str, request: Callable[[], T], what: str = "delivered", deadline_s: float | None = None) -> T:
        """Return the result of `request`, which is tried again after errors that may be temporary.

        A try lasts at most half of the deadline, and none begins in its second half, so that the deadline is kept.
        """
        began = time.monotonic()
        until_s = (deadline_s or self._deadline_s) / 2
        for tries in itertools.count(1):
            try:
                return request()
            except FileNotFoundError:
                absent = f"the bucket of {self.uri}" if what == "written" else f"{self.uri}/{key}"
                raise FileNotFoundError(f"{absent} does not exist") from None
            except BaseError as error:
                # Random, so that workers that failed together do not all try again at the same time.
                pause_s = random.uniform(0.5, 1.0) * _FIRST_PAUSE_S * 2 ** (tries - 1)
                waited_s = time.monotonic() - began
                if _is_final(error) or tries > self._retries or waited_s + pause_s > until_s:
                    raise StorageError(
                        f"{self.uri}/{key} was not {what} in {tries} {'tries' if tries > 1 else 'try'} over "
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
) -> "Store":
    """Open a local folder or a URL as a read-only Zarr store; see `RemoteObjects`.

    Reads of a URL raise obstore's own errors: read inside `storage_errors`.
    """
    from zarr.storage import LocalStore, ObjectStore  # takes half a second, not needed by commands without arrays

    if "://" not in str(uri):
        return LocalStore(uri, read_only=True)
    store = _store_of(str(uri), storage_options, retries=retries, timeout_s=timeout_s, deadline_s=deadline_s)
    return ObjectStore(store, read_only=True)


@contextmanager
def storage_errors(uri: str | Path) -> Iterator[None]:
    """Raise errors of obstore, from reading `uri` through Zarr, as a `StorageError`."""
    try:
        yield
    except BaseError as error:
        raise StorageError(f"{uri} cannot be read ({_reason(error)}): {_ADVICE}") from error


_ADVICE = (
    "see that it can be reached from here and that its credentials are right (environment or storage options; "
    "skip_signature=true reads public buckets)"
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
        "allow_http": scheme != "https",  # for s3 and gs the endpoint decides whether http is used
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
    """Return whether another try would fail in the same way."""
    status = _status(error)
    refused = status is not None and 400 <= status < 500 and status not in (408, 409, 429)
    return refused or isinstance(error, (PermissionDeniedError, UnauthenticatedError, NotSupportedError))


def _status(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _reason(error: Exception) -> str:
    """Return the first line of an error of obstore, and the kind of error, which only its details contain."""
    kind = re.search(r"kind: (Timeout|Connect|Interrupted)", str(error))
    return str(error).partition("\n")[0].strip() + (f", {kind[1].lower()}" if kind else "")
