"""Tokens, hosts, sizes of bodies and headers of security."""

import httpx
import pytest

from dist_scvi.launch.serve.hosts import host_of, is_loopback, loopback_hosts
from tests.launch.serve.conftest import TOKEN


@pytest.mark.parametrize("path", ["/v1/atlases", "/v1/small", "/v1/jobs/x", "/v1/small/genes", "/metrics"])
def test_data_need_a_token(guarded: httpx.Client, path: str) -> None:
    for header in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
    ):
        refused = guarded.get(path, headers=header)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert guarded.get(path, headers={"Authorization": f"bearer {TOKEN}"}).status_code in (200, 404)


def test_a_question_without_a_token_is_not_read(guarded: httpx.Client) -> None:
    assert guarded.post("/v1/small/markers", json={"by": "label"}).status_code == 401
    assert guarded.get("/healthz").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "[::2]:80"])
def test_a_service_on_loopback_is_not_reached_by_the_name_of_another_site(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/atlases", headers={"Host": host}).status_code == 421


def test_hosts_of_this_machine() -> None:
    assert [
        is_loopback(host) for host in ("localhost", "127.0.0.5", "::1", "[::1]", "0.0.0.0", "::", "example.org")
    ] == [*(True, True, True, True, False, False, False)]
    assert loopback_hosts("0.0.0.0") == ()
    assert [host_of(header) for header in ("LocalHost:80", "127.0.0.1", "[::1]:8", "[::1]")] == [
        *("localhost", "127.0.0.1", "[::1]", "[::1]")
    ]


@pytest.mark.parametrize("path", ["/v1/atlases", "/v1/none", "/none", "/openapi.json"])
def test_every_answer_has_the_headers_of_security(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in headers


def test_a_body_that_is_too_large_is_refused_by_its_length_and_while_it_is_read(client: httpx.Client) -> None:
    large = b'{"genes": ["' + b"x" * 30_000 + b'"]}'
    kind = {"Content-Type": "application/json"}
    assert client.post("/v1/small/expression", content=large, headers=kind).status_code == 413
    pieces = (large[start : start + 4_000] for start in range(0, len(large), 4_000))  # chunked: no length is given
    assert client.post("/v1/small/expression", content=pieces, headers=kind).status_code == 413
