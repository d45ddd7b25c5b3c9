"""A server on this machine that gives out a folder by HTTP and as S3 buckets, and misbehaves when told to.

A path-style request for an S3 object is that for a file by plain HTTP, with a signature that is not looked at; the
folders at the top are the buckets. Only the list of a bucket is a request of its own.
"""

import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Fault = int | Literal["silent", "stall", "cut", "slow"]
"""A status; or no answer at all, half an answer and then nothing, half an answer and then the end, a drop at a time."""

_DROPS, _PAUSE_S = 10, 0.1


class ObjectServer:
    """Serves the files below `root` while its context lasts. Each request takes one of the faults it was given."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[tuple[str, str]] = []
        """Method and path of all that came, also of those that met a fault."""
        self.stopping = threading.Event()
        self._faults: Iterator[Fault] = iter(())
        self._lock = threading.Lock()

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

    def inflict(self, faults: Iterable[Fault]) -> None:
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
