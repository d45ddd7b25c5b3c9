"""The service on a socket: who reaches it, and which connections are cut off."""

import json
import socket
import time

import psutil
import pytest

from dist_scvi.launch.serve.uvicorn_server import open_socket

QUESTION = b'{"genes": ["gene1"], "per_cell": true}'


def connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.settimeout(10)
    return sock


def head(length: int, path: str = "/v1/small/expression") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def test_it_listens_on_loopback_only(port: int) -> None:
    listening = {
        c.laddr.ip for c in psutil.Process().net_connections("inet") if c.laddr.port == port and c.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}


def test_a_port_that_is_taken_is_named(port: int) -> None:
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}: .*--port"):
        open_socket("127.0.0.1", port)


def test_several_requests_share_a_connection(port: int) -> None:
    with connected(port) as sock:
        for _ in range(2):
            sock.sendall(head(len(QUESTION)) + QUESTION)
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
            time.sleep(0.05)
            sock.settimeout(0.3)
            try:
                while sock.recv(1 << 16):
                    pass
            except TimeoutError:
                sock.settimeout(10)


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_a_connection_that_pauses_in_the_head_of_a_request_is_cut_off(port: int, sent: bytes) -> None:
    with connected(port) as sock:
        sock.sendall(sent)
        began = time.monotonic()
        with Closed():
            assert sock.recv(100) == b""
        assert time.monotonic() - began < 5


class Closed:
    """A reset is as good an end of a connection as an orderly one."""

    def __enter__(self) -> None: ...
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, ConnectionError)


def test_a_head_that_comes_in_drops_is_cut_off(port: int) -> None:
    with connected(port) as sock, Closed():
        for _ in range(60):
            sock.sendall(b"G")
            time.sleep(0.05)
        raise AssertionError("three seconds of drops were accepted")


def test_a_client_that_pauses_in_the_body_is_told_and_cut_off(port: int) -> None:
    with connected(port) as sock:
        sock.sendall(head(100) + b'{"genes"')
        answer = sock.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 408")
        with Closed():
            while sock.recv(1 << 16):
                pass


def test_what_is_no_request_is_refused(port: int) -> None:
    for content in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 80_000):
        with connected(port) as sock:
            sock.sendall(content)
            with Closed():
                assert sock.recv(1 << 16)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 421")


def test_a_client_that_does_not_accept_its_answer_is_cut_off(port: int) -> None:
    question = json.dumps({"genes": [f"gene{g}" for g in range(20)], "per_cell": True}).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", port))
    with sock:
        for _ in range(40):  # pipelined, so that the answers exceed all buffers
            sock.sendall(head(len(question)) + question)
        here = sock.getsockname()[1]
        deadline = time.monotonic() + 10
        while any(
            c.raddr and c.raddr.port == here for c in psutil.Process().net_connections("tcp") if c.laddr.port == port
        ):
            assert time.monotonic() < deadline, "the connection is still there"
            time.sleep(0.1)


def test_the_service_still_answers(port: int) -> None:
    with connected(port) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
