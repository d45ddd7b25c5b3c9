"""A server on this machine that keeps a folder as S3 and Google buckets, and misbehaves when told to.

A path-style request for an S3 object is that for a file by plain HTTP, with a signature that is not looked at; the
folders at the top are the buckets. Only lists, copies and the deletion of several objects are requests of their own.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

Fault = int | Literal["silent", "stall", "cut", "slow"]
"""A status; or no answer at all, half an answer and then nothing, half an answer and then the end, a drop at a time.

What is to be written is left undone with a status and "silent"; "stall" and "cut" do it and give no answer, and "slow"
reads it a drop at a time.
"""

_DROPS, _PAUSE_S = 10, 0.1


class ObjectServer:
    """Serves the files below `root` while its context lasts. Each request takes one of the faults it was given."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[tuple[str, str]] = []
        """Method and path of all that came, also of those that met a fault."""
        self.stopping = threading.Event()
        self._faults: Iterator[Fault | None] = iter(())
        self._lock = threading.Lock()
        self.writing = threading.Lock()

    def __enter__(self) -> Self:
        self._http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"objects": self}))
        self.uri = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def s3_options(self) -> dict[str, str]:
        """What a client must be told to find the buckets here."""
        return {"endpoint": self.uri, "region": "nowhere", "skip_signature": "true"}

    @property
    def gs_options(self) -> dict[str, str]:
        """The same for buckets of Google's kind."""
        nobody = {"gcs_base_url": self.uri, "disable_oauth": True, "client_email": "", "private_key": ""}
        return {"base_url": self.uri, "service_account_key": json.dumps({**nobody, "private_key_id": ""})}

    def inflict(self, faults: Iterable[Fault | None]) -> None:
        """Meet the coming requests with `faults` in turn, and those after them with none."""
        self.requests.clear()
        self._faults = iter(faults)

    def noted(self, method: str, path: str) -> Fault | None:
        """Note a request and give the fault to meet it with."""
        with self._lock:
            self.requests.append((method, path))
            return next(self._faults, None)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    objects: ObjectServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        fault = self.objects.noted(self.command, unquote(url.path))
        path = self.objects.root / unquote(url.path).strip("/")
        if fault == "silent":
            self._wait()
        elif isinstance(fault, int):
            self._answer(fault, b"<Error><Code>Told</Code></Error>", {}, None)
        elif "list-type" in (query := parse_qs(url.query)):
            self._answer(200, self._listed(path, query.get("prefix", [""])[0], "delimiter" in query), {}, fault)
        elif not path.is_file():
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", {}, None)
        else:
            self._give(path, fault)

    def do_PUT(self) -> None:
        self._write(self._put)

    def do_DELETE(self) -> None:
        self._write(lambda path, _: self._deleted(path))

    def do_POST(self) -> None:
        self._write(self._delete_several)

    def _write(self, do: Callable[[Path, bytes], tuple[int, bytes]]) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self.objects.noted(self.command, path)
        if fault == "silent":
            self._wait()
            return
        body = self._sent(slowly=fault == "slow")
        if isinstance(fault, int):
            self._answer(fault, b"<Error><Code>Told</Code></Error>", {}, None)
            return
        with self.objects.writing:
            status, answer = do(self.objects.root / path.strip("/"), body)
        if fault == "stall":
            self._wait()
        elif fault == "cut":
            self.close_connection = True
        else:
            self._answer(status, answer, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, None)

    def _sent(self, *, slowly: bool) -> bytes:
        size, body = int(self.headers.get("Content-Length", 0)), b""
        while slowly and len(body) < size:
            self.objects.stopping.wait(_PAUSE_S)
            body += self.rfile.read(min(size // _DROPS + 1, size - len(body)))
        return body or self.rfile.read(size)

    def _put(self, path: Path, body: bytes) -> tuple[int, bytes]:
        only_if_none = self.headers.get("If-None-Match") == "*" or self.headers.get("x-goog-if-generation-match") == "0"
        if only_if_none and path.exists():
            return 412, b"<Error><Code>PreconditionFailed</Code></Error>"
        copied = self.headers.get("x-amz-copy-source") or self.headers.get("x-goog-copy-source")
        if copied:
            source = self.objects.root / unquote(copied).strip("/")
            if not source.is_file():
                return 404, b"<Error><Code>NoSuchKey</Code></Error>"
            body = source.read_bytes()
        if not (self.objects.root / path.relative_to(self.objects.root).parts[0]).exists():
            return 404, b"<Error><Code>NoSuchBucket</Code></Error>"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return 200, b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>" if copied else b""

    def _deleted(self, path: Path) -> tuple[int, bytes]:
        if not path.is_file():
            return 404, b"<Error><Code>NoSuchKey</Code></Error>"
        path.unlink()
        for folder in path.parents:  # buckets know of none
            if folder.parent == self.objects.root or any(folder.iterdir()):
                break
            folder.rmdir()
        return 204, b""

    def _delete_several(self, bucket: Path, body: bytes) -> tuple[int, bytes]:
        if self.headers["Content-MD5"] != base64.b64encode(hashlib.md5(body).digest()).decode():
            return 400, b"<Error><Code>BadDigest</Code></Error>"
        keys = [unescape(key) for key in re.findall("<Key>(.*?)</Key>", body.decode())]
        for key in keys:
            self._deleted(bucket / key)  # of absent ones S3 says that they are deleted
        done = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return 200, f"<DeleteResult>{done}</DeleteResult>".encode()

    def _give(self, path: Path, fault: Fault | None) -> None:
        body, about = path.read_bytes(), path.stat()
        headers = {
            "ETag": f'"{about.st_mtime_ns:x}-{about.st_size:x}"',
            "Last-Modified": self.date_time_string(int(about.st_mtime)),
        }
        if (wanted := self.headers.get("Range")) is None:
            self._answer(200, body, headers, fault)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        low = int(first) if first else max(len(body) - int(last), 0)
        high = min(int(last) + 1, len(body)) if first and last else len(body)
        if low >= len(body):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"}, None)
            return
        headers["Content-Range"] = f"bytes {low}-{high - 1}/{len(body)}"
        self._answer(206, body[low:high], headers, fault)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "slow":
            for drop in range(_DROPS):
                self.wfile.write(body[drop * len(body) // _DROPS : (drop + 1) * len(body) // _DROPS])
                self.objects.stopping.wait(_PAUSE_S)
        elif fault is not None:
            self.wfile.write(body[: len(body) // 2])
            if fault == "stall":
                self._wait()
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _wait(self) -> None:
        self.objects.stopping.wait(60)
        self.close_connection = True

    def _listed(self, bucket: Path, prefix: str, delimited: bool) -> bytes:
        """List the objects of `bucket` below `prefix`, or those right below it and the folders among them."""
        keys = [path.relative_to(bucket).as_posix() for path in sorted(bucket.rglob("*")) if path.is_file()]
        keys = [key for key in keys if key.startswith(prefix)]
        deep = {
            prefix + key[len(prefix) :].split("/")[0] + "/" for key in keys if "/" in key[len(prefix) :] and delimited
        }
        objects = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{(bucket / key).stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
            if not delimited or "/" not in key[len(prefix) :]
        )
        folders = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(deep))
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{objects}{folders}</ListBucketResult>".encode()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
