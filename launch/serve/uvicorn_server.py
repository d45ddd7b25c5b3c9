"""Run the app under uvicorn on one machine, with connections cut off that pause inside a request or an answer."""

import asyncio
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dist_scvi.launch.serve.app import build_app
from dist_scvi.launch.serve.limits import Limits, Service


def server_of(service: Service) -> uvicorn.Server:
    """Return the server of a service, not yet started."""
    config = uvicorn.Config(
        build_app(service),
        http=type("Protocol", (GuardedProtocol,), {"limits": service.limits}),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client could name any address as its own
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=1 << 16,
    )
    return uvicorn.Server(config)


class GuardedProtocol(H11Protocol):
    """A connection that is closed if it keeps the service waiting.

    uvicorn waits forever for the end of the head of a request, and for a client to accept its answer.
    """

    limits: Limits
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Expect the head of a request."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head()
        elif self.conn.trailing_data[0]:  # a part of the next head
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_head()
        self._stop_send()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Expect the client to accept what waits for it."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.limits.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has accepted it."""
        self._stop_send()
        super().resume_writing()

    def _wait_for_head(self) -> None:
        # A timer that runs is kept: a head that comes in drops does not restart it.
        self._head_timer = self._head_timer or self.loop.call_later(self.limits.receive_s, self.transport.abort)

    def _stop_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_send(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host`; port 0 takes any that is free.

    Raises
    ------
    OSError
        If the port is taken, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise OSError(
            error.errno, f"cannot listen on {host} port {port}: {error.strerror}; choose another --port"
        ) from error
    sock.settimeout(0)
    return sock
