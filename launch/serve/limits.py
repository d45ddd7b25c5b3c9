"""What a service offers and what it allows a client: atlases, tokens, and bounds of every request."""

import hashlib
import hmac
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TAKEN = ("atlases", "jobs")
"""Words that follow ``/v1/`` in other addresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a request, so that no client can take the memory or the time of the others."""

    cells: int = 2_000_000
    """Cells that one question may decode."""
    genes: int = 1_000
    """Genes that one question may name."""
    values: int = 50_000_000
    """Numbers of an answer, or of decoded cells in memory."""
    wait_s: float = 5.0
    """How long a client waits for an answer before its question becomes a job."""
    question_s: float = 600.0
    """How long a question, also one that is a job, may take."""
    body_bytes: int = 1 << 20
    """Size of a question."""
    upload_bytes: int = 1 << 30
    """Size of a file with cells to annotate."""
    receive_s: float = 10.0
    """How long a connection may pause while it sends, or send the head of a request."""
    send_s: float = 30.0
    """How long a client may take to accept what it is sent."""
    questions_per_client: int = 8
    """Questions of one client at a time, jobs included."""
    questions: int = 256
    """Questions of all clients at a time; most of them wait."""
    threads: int = field(default_factory=lambda: max(2, len(os.sched_getaffinity(0))))
    """Questions that are computed at a time."""
    kept_jobs: int = 64
    """Finished jobs whose answers are kept, for `kept_s`."""
    kept_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """All that an app is built from; it travels to the replicas of Ray Serve."""

    atlases: Mapping[str, str]
    """Paths or URLs by name."""
    storage_options: Mapping[str, str] = field(default_factory=dict)
    token_hashes: tuple[str, ...] = ()
    """SHA-256 of each bearer token that is accepted; without any, no token is needed."""
    hosts: tuple[str, ...] = ()
    """Names by which clients may address the service; any if empty."""
    limits: Limits = field(default_factory=Limits)

    def accepts(self, token: str) -> bool:
        """Return whether `token` is one of the service, in a time that does not depend on which characters agree."""
        offered = hash_token(token)
        # A list and not a generator: `any` would stop at the first match and tell which token it was.
        return any([hmac.compare_digest(offered, known) for known in self.token_hashes])  # noqa: C419

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `service_from` makes it again."""
        return asdict(self)


def service_from(values: Mapping[str, Any]) -> Service:
    """Make a service from plain values, as a file of Ray Serve has them.

    Raises
    ------
    TypeError
        If a key is not known.
    """
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Service(**{**given, "limits": Limits(**values.get("limits", {}))})


def hash_token(token: str) -> str:
    """Return the SHA-256 of a token in hexadecimal digits."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def read_tokens(path: Path) -> tuple[str, ...]:
    """Return the hashes of the tokens in a file, one on each line.

    Raises
    ------
    ValueError
        If there is none, or one is short enough to be guessed.
    """
    tokens = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    if not tokens:
        raise ValueError(
            f"--token-file {path} holds no token: write one on each line, such as that of 'openssl rand -hex 32'"
        )
    short = next((token for token in tokens if len(token) < 16), None)
    if short is not None:
        raise ValueError(
            f"--token-file {path}: a token has {len(short)} characters: at least 16 are needed, such as those of "
            "'openssl rand -hex 32'"
        )
    return tuple(hash_token(token) for token in tokens)


def name_atlases(words: Sequence[str]) -> dict[str, str]:
    """Return the paths or URLs of atlases by their names; each word is ``NAME=PATH`` or a path that has one.

    Raises
    ------
    ValueError
        If a name is not allowed, or two atlases have the same.
    """
    named: dict[str, str] = {}
    for word in words:
        name, found, place = word.partition("=")
        if not found or not _NAME.fullmatch(name):
            name, place = _name_of(word), word
        if not _NAME.fullmatch(name) or name in _TAKEN:
            raise ValueError(
                f"{word}: {name!r} cannot be the name of an atlas: write NAME={place}, with letters and digits"
            )
        if name in named:
            raise ValueError(f"{named[name]} and {place} are both called {name!r}: write NAME=PATH for one of them")
        named[name] = place
    return named


def _name_of(place: str) -> str:
    """Name an atlas after its folder, or after that of its run if it is called ``atlas``."""
    parts = [part for part in place.rstrip("/").split("/") if part not in ("", ".", "..")]
    if "://" not in place:
        parts = [part for part in Path(place).expanduser().resolve().parts if part != "/"]
    named = [part for part in parts[-2:] if part != "atlas"]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", named[-1]).strip("-._") if named else "atlas"
