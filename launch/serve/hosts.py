"""Loopback addresses, and the names by which a service on one of them is known."""

from ipaddress import ip_address

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Return whether `host` is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def loopback_hosts(host: str) -> tuple[str, ...]:
    """Return the names by which clients address a service on `host`; none, and thus any, if it is no loopback."""
    return (*_LOOPBACK, host) if is_loopback(host) else ()


def host_of(header: str) -> str:
    """Return the host of a Host header, without its port and in lower case."""
    name = header.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.rsplit(":", 1)[0]
