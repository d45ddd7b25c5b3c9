"""The outermost layer of the app: tokens, hosts, sizes and pauses of bodies, headers of security, and metrics."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from starlette.exceptions import HTTPException

from dist_scvi.launch.serve.hosts import host_of
from dist_scvi.launch.serve.limits import Service, hash_token

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LEAST_BYTES_PER_S = 16 << 10
UPLOAD_TYPES = ("application/x-hdf5", "application/octet-stream")
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]


class ServiceMetrics:
    """Counters of a process for Prometheus."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "dist_scvi_requests", "Requests", ["route", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "dist_scvi_request_seconds",
            "Time to the first byte of an answer",
            ["route"],
            registry=self._registry,
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )

    def count(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        """Count a request by its route, never by its address: that would make a series for every guess of a client."""
        route = getattr(scope.get("route"), "path", "other")
        known = method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class RefusedError(HTTPException):
    """A request is refused. FastAPI lets this kind of error pass when it is raised while a body is read."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        # What is left of the body is not read: the connection cannot be used again.
        super().__init__(status, message, {"Connection": "close", **(headers or {})})


class Guard:
    """Wraps the app. It is plain ASGI, so that it holds under every server."""

    def __init__(self, app: App, service: Service, metrics: ServiceMetrics) -> None:
        self._app, self._service, self._metrics = app, service, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        began_s, status = time.monotonic(), 0

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
                self._metrics.count(scope, scope["method"], status, time.monotonic() - began_s)
            await send(message)

        try:
            scope["client_key"] = self._admit(scope)
            await self._app(scope, self._bounded(scope, receive), sent)
        except RefusedError as refused:
            if status:
                raise
            await _refuse(sent, refused)

    def _admit(self, scope: Scope) -> str:
        """Check host and token, and return the key by which the questions of the client are counted."""
        headers = dict(scope["headers"])
        host = host_of(headers.get(b"host", b"").decode("latin-1"))
        # A page of another site can make its name point to this machine, and would then read the answers.
        if self._service.hosts and host not in self._service.hosts:
            raise RefusedError(421, "this service is not known by the host name of the request")
        client = str((scope.get("client") or ("unknown",))[0])
        if not self._service.token_hashes or not _needs_token(scope["path"]):
            return client
        kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() != "bearer" or not self._service.accepts(token.strip()):
            raise RefusedError(401, "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"})
        return hash_token(token.strip())

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Return `receive` with a bound on the size of the body and on the pauses of the client."""
        limits, headers = self._service.limits, dict(scope["headers"])
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().decode("latin-1")
        most = limits.upload_bytes if kind in UPLOAD_TYPES else limits.body_bytes
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > most:
            raise RefusedError(413, f"the body is larger than {most:,} bytes, the limit of this service")
        size, complete, began_s = 0, False, time.monotonic()

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal size, complete
            if complete:  # what follows is the end of the connection, which may take as long as the answer
                return await receive()
            # A client that sends a byte from time to time is as slow as one that pauses.
            left_s = began_s + limits.receive_s + size / _LEAST_BYTES_PER_S - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), min(left_s, limits.receive_s))
            except TimeoutError:
                raise RefusedError(408, "the body arrives too slowly, or not at all") from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > most:
                raise RefusedError(413, f"the body is larger than {most:,} bytes, the limit of this service")
            return message

        return bounded


def _needs_token(path: str) -> bool:
    """Return whether an address has data; the page itself has none, and asks for the token."""
    return path.startswith("/v1") or path == "/metrics"


async def _refuse(send: Send, refused: RefusedError) -> None:
    body = json.dumps({"detail": refused.detail}).encode()
    named = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(refused.headers or {})}
    headers = [(name.lower().encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": refused.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
