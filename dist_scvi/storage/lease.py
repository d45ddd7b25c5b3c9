"""The lease of a run: only the process that has it may write. It renews the lease, and loses it if it stops doing so.

Leases are numbered objects; the one with the highest number is valid. A process takes over by creating the next number;
of several processes only one succeeds. The lease relies neither on clocks nor on locks: hosts differ in time, object
storage has no locks, and those of network disks are lost with their server.
"""

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil

from dist_scvi.errors import LostLeaseError
from dist_scvi.loaders.arrays.bounded_json import parse_json_object
from dist_scvi.storage.run_storage import RunStorage

log = logging.getLogger(__name__)

_FOLDER = "lease"
_GIVEN_UP: set[tuple[str, int]] = set()
"""Leases that this process has released, by driver and number."""
RENEW_S = 3.0
SILENT_S = 15.0
"""A holder on another host, whose process cannot be looked up, counts as dead after this time without renewal."""


def printable(text: str) -> str:
    """Replace control characters, which a terminal would execute."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@dataclass(frozen=True, slots=True)
class Driver:
    """The process that started a run, by which others determine whether it still runs."""

    host: str
    realm: str
    """Boot and process namespace: process numbers are only comparable within one."""
    pid: int
    begun: float
    """Start time of the process: a process number may be reused."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def this(cls) -> Self:
        """Describe this process."""
        return cls(socket.gethostname(), _realm(), os.getpid(), psutil.Process().create_time())

    def is_dead(self) -> bool | None:
        """Return whether the process has ended; None if it cannot be looked up on this host."""
        if (self.host, self.realm) != (socket.gethostname(), _realm()):
            return None
        try:
            process = psutil.Process(self.pid)
            return bool(abs(process.create_time() - self.begun) > 1 or process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True, slots=True)
class Holder:
    """The content of a lease: which process has it, and the state of the run."""

    driver: Driver
    number: int
    """How many times the run has been started, this time included."""
    workers: int
    since: str
    renewed: str
    beat: int = 0
    released: bool = False
    saved_step: int | None = None
    """The newest step that was ever saved in this run."""
    row: dict[str, Any] | None = None
    """The last line of metrics."""

    def __str__(self) -> str:
        return printable(f"process {self.driver.pid} on {self.driver.host}, since {self.since}")


class Lease:
    """The right to write a run, kept alive by a thread until it is released."""

    def __init__(self, place: RunStorage, holder: Holder) -> None:
        self._place, self._holder, self._lock = place, holder, threading.Lock()
        self._stop, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def holder(self) -> Holder:
        """The content of this lease."""
        return self._holder

    def update(self, *, row: dict[str, Any] | None = None, saved_step: int | None = None) -> None:
        """Update the state of the run with the next renewal; a saved step is written immediately."""
        with self._lock:
            self._holder = replace(
                self._holder,
                row=row or self._holder.row,
                saved_step=self._holder.saved_step if saved_step is None else saved_step,
            )
        if saved_step is not None:
            self._renew()

    def check(self) -> None:
        """Check that this lease is still valid, before something is written.

        Raises
        ------
        LostLeaseError
            If another start of the run has taken over.
        """
        # By number, without reading: a higher number is a takeover whatever it contains.
        numbers = _numbers(self._place)
        if self._lost or (numbers and numbers[-1] > self._holder.number):
            self._lost = True
            raise LostLeaseError(
                f"{self._place.uri} was taken over by start {numbers[-1] if numbers else '?'} of the run while this "
                f"one (start {self._holder.number}) was silent; this one ends and writes nothing more"
            )

    def release(self) -> None:
        """Stop the renewal and mark the run as free, so that another start need not wait."""
        # The thread ends first: a renewal after the release would mark the lease as in use again.
        self._stop.set()
        self._thread.join()
        if not self._lost:
            _GIVEN_UP.add((self._holder.driver.key, self._holder.number))
            self._renew(released=True)

    def _keep(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                self.check()
                self._renew()
            except LostLeaseError as error:
                log.warning("%s", error)
                return
            # Not a loss: storage may recover, and the lease stays valid until another process creates a higher number.
            except OSError as error:
                log.warning("the lease of %s could not be renewed: %s", self._place.uri, error)

    def _renew(self, *, released: bool = False) -> None:
        with self._lock:
            self._holder = replace(self._holder, beat=self._holder.beat + 1, renewed=_now(), released=released)
            self._place.write(_name(self._holder.number), _packed(self._holder))


def claim(place: RunStorage, driver: Driver, *, workers: int = 1) -> Lease:
    """Take the lease of the run in `place`.

    Parameters
    ----------
    driver
        The process that starts the run. Workers that the same driver starts again take over from those before.

    Raises
    ------
    ValueError
        If another process writes the run.

    Notes
    -----
    A holder on this host is looked up among the processes. One on another host is alive if it renews its lease within
    15 s.
    """
    while True:
        before = holder_of(place)
        if before is not None and not _may_follow(place, before, driver):
            raise _refusal(place, before)
        now = _now()
        number = before.number + 1 if before else 1
        holder = Holder(driver, number, workers, now, now, saved_step=before.saved_step if before else None)
        # If `create` returns False, another process has created this number first. The loop then looks at its lease.
        if place.create(_name(number), _packed(holder)):
            for old in _numbers(place):
                if old < number:
                    place.remove(_name(old))
            return Lease(place, holder)


def holder_of(place: RunStorage) -> Holder | None:
    """Read the valid lease; None if there has been none.

    Raises
    ------
    ValueError
        If it is not a lease of this package.
    """
    for number in reversed(_numbers(place)):
        try:
            return _holder(number, place.read(_name(number)))
        except FileNotFoundError:
            continue  # a process that takes over removes the earlier leases
        except ValueError as error:
            raise ValueError(
                f"{place.uri}/{_name(number)} is not a lease ({error}): remove it if no process writes the run"
            ) from error
    return None


def _holder(number: int, content: bytes) -> Holder:
    tree = parse_json_object(content, _name(number))
    driver: Any = tree.get("driver")
    row, saved = tree.get("row"), tree.get("saved_step")
    _check_types(driver, {"host": str, "realm": str, "pid": int, "begun": float | int, "key": str})
    needed = {"workers": int, "since": str, "renewed": str, "beat": int, "released": bool}
    _check_types(tree, {**needed, "saved_step": int | None, "row": dict | None, "driver": dict, "number": int})
    datetime.fromisoformat(tree["renewed"])
    if row is not None:
        _check_types({key: row.get(key) for key in ("step", "kind")}, {"step": int, "kind": str})
    if saved is not None and not 0 <= saved < 10**10:
        raise ValueError(f"saved_step is {saved}")
    return Holder(**{**tree, "driver": Driver(**driver), "number": number})


def _check_types(tree: Any, types: Mapping[str, Any]) -> None:
    """Check that a mapping has these keys and no others, with values of these types."""
    if not isinstance(tree, dict) or tree.keys() != types.keys():
        raise ValueError(f"the keys {', '.join(types)} are needed")
    wrong = [key for key, kind in types.items() if not isinstance(tree[key], kind)]
    if wrong:
        raise ValueError(f"{wrong[0]} is {tree[wrong[0]]!r:.80}")


def check_not_locked(place: RunStorage) -> None:
    """Refuse a run that `claim` would refuse, if this can be determined without waiting.

    Raises
    ------
    ValueError
        If another process of this host writes the run.
    """
    before = holder_of(place)
    if before is not None and not _is_free(before) and before.driver.is_dead() is False:
        raise _refusal(place, before)


def _refusal(place: RunStorage, before: Holder) -> ValueError:
    return ValueError(
        f"{place.uri} is being written by {before}: one run has one writer; wait for it, end it, or train into a new "
        "folder with run=PATH"
    )


def _is_free(before: Holder) -> bool:
    """Return whether a lease is released. This process records its own releases, in case storage failed meanwhile."""
    return before.released or (before.driver.key, before.number) in _GIVEN_UP


def _may_follow(place: RunStorage, before: Holder, driver: Driver) -> bool:
    """Return whether `driver` may take over from `before`."""
    if _is_free(before) or before.driver.key == driver.key:
        return True
    dead = before.driver.is_dead()
    return _falls_silent(place, before) if dead is None else dead


def _falls_silent(place: RunStorage, before: Holder) -> bool:
    """Wait for a holder on another host to renew its lease; return whether it does not."""
    # The number of renewals is compared and not their time, which is by the clock of the other host.
    log.warning("the run was last written by %s; waiting up to %.0f s for it to renew its lease", before, SILENT_S)
    deadline = time.monotonic() + SILENT_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENT_S / 10))
        now = holder_of(place)
        if now is None or now.released:
            return True
        if (now.number, now.beat) != (before.number, before.beat):
            return False
    return True


def _numbers(place: RunStorage) -> list[int]:
    found = [re.fullmatch(r"(\d{10})\.json", name) for name in place.names(_FOLDER)]
    return sorted(int(match[1]) for match in found if match)


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:010d}.json"


def _packed(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _realm() -> str:
    """Return the identifiers of the boot and of the process namespace, or on other systems the boot time."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return str(psutil.boot_time())
