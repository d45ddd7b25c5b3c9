"""A run has one writer: who it is, when it may be followed, and that the one before then writes no more."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dist_scvi.errors import LostLeaseError
from dist_scvi.storage import lease as lease_module
from dist_scvi.storage.lease import Driver, Holder, check_not_locked, claim, holder_of
from dist_scvi.storage.run_storage import LocalStorage

pytestmark = pytest.mark.timeout(60)
ELSEWHERE = Driver("far-away", "another boot", 1, 0.0, "theirs")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.05)
    monkeypatch.setattr(lease_module, "SILENT_S", 1.0)


@pytest.fixture
def place(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "run")


def held_by(place: LocalStorage, driver: Driver, **fields: object) -> Holder:
    """Write the lease of another process."""
    holder = Holder(driver, 1, 1, "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")
    holder = dataclasses.replace(holder, **fields)
    place.write(f"lease/{holder.number:010d}.json", json.dumps(dataclasses.asdict(holder)).encode())
    return holder


@pytest.fixture(scope="module")
def ended() -> Driver:
    """A process of this host that is gone."""
    script = (
        "import dataclasses, json; from dist_scvi.storage.lease import Driver; "
        "print(json.dumps(dataclasses.asdict(Driver.this())))"
    )
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=50).stdout
    return Driver(**json.loads(told))


def wait_for(condition: object, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_a_process_that_runs_is_not_followed_and_one_that_ended_is_at_once(place: LocalStorage, ended: Driver) -> None:
    first = claim(place, Driver.this())
    with pytest.raises(ValueError, match=r"run is being written by process \d+ on .*: one run has one writer; wait"):
        claim(place, Driver.this())
    with pytest.raises(ValueError, match="one run has one writer"):
        check_not_locked(place)
    first.release()
    check_not_locked(place)
    held_by(place, ended, number=5)
    began = time.monotonic()
    second = claim(place, Driver.this())
    assert second.holder.number == 6
    assert time.monotonic() - began < lease_module.SILENT_S
    second.release()


def test_workers_started_anew_by_the_same_driver_follow_each_other_and_the_one_before_writes_no_more(
    place: LocalStorage,
) -> None:
    driver = Driver.this()
    first = claim(place, driver)
    first.check()
    second = claim(place, driver)
    with pytest.raises(LostLeaseError, match="was taken over by start 2 of the run while this one"):
        first.check()
    first.release()
    second.check()
    holder = holder_of(place)
    assert holder is not None
    assert (holder.number, holder.released) == (2, False)
    second.release()


def test_a_process_number_given_again_is_not_taken_for_the_process_that_had_it() -> None:
    driver = Driver.this()
    assert driver.is_dead() is False
    assert dataclasses.replace(driver, begun=driver.begun - 1000).is_dead() is True
    assert ELSEWHERE.is_dead() is None


def test_one_on_another_host_is_followed_once_it_is_silent(
    place: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    held_by(place, ELSEWHERE, saved_step=70)
    began = time.monotonic()
    mine = claim(place, Driver.this())
    assert time.monotonic() - began >= lease_module.SILENT_S
    assert (mine.holder.number, mine.holder.saved_step) == (2, 70)
    assert "waiting up to 1 s for it to renew its lease" in caplog.text
    mine.release()


def test_one_on_another_host_that_gives_signs_of_life_is_not_followed(place: LocalStorage) -> None:
    holder = held_by(place, ELSEWHERE)
    timer = threading.Timer(0.3, lambda: held_by(place, ELSEWHERE, beat=holder.beat + 1))
    timer.start()
    with pytest.raises(ValueError, match="is being written by process 1 on far-away"):
        claim(place, Driver.this())
    timer.join()


def test_of_many_that_claim_at_once_one_gets_it(place: LocalStorage, ended: Driver) -> None:
    held_by(place, ended)
    barrier, got, refused = threading.Barrier(8), [], []

    def try_it() -> None:
        barrier.wait()
        try:
            got.append(claim(place, Driver.this()))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].check()
    got[0].release()


def test_it_is_renewed_and_tells_where_the_run_is(place: LocalStorage) -> None:
    mine = claim(place, Driver.this(), workers=3)
    mine.update(row={"step": 5, "kind": "train"})
    assert wait_for(lambda: (holder_of(place) or mine.holder).row == {"step": 5, "kind": "train"})
    mine.update(saved_step=4)
    holder = holder_of(place)
    assert holder is not None
    assert (holder.saved_step, holder.workers, holder.row) == (4, 3, {"step": 5, "kind": "train"})
    assert wait_for(lambda: (holder_of(place) or mine.holder).beat > holder.beat)
    mine.release()


def test_storage_that_fails_for_a_while_does_not_end_the_lease(
    place: LocalStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine = claim(place, Driver.this())
    with monkeypatch.context() as broken:
        broken.setattr(LocalStorage, "write", _fail)
        assert wait_for(lambda: "could not be renewed: disk on fire" in caplog.text)
    beat = mine.holder.beat
    assert wait_for(lambda: (holder_of(place) or mine.holder).beat > beat)
    mine.release()


def _fail(*_: object) -> None:
    raise OSError("disk on fire")


def test_a_lease_that_makes_no_sense_is_named(place: LocalStorage) -> None:
    place.write("lease/0000000003.json", b"{}")
    with pytest.raises(ValueError, match=r"lease/0000000003\.json is not a lease .*: remove it if no process"):
        claim(place, Driver.this())


def test_there_is_none_before_the_first(place: LocalStorage) -> None:
    assert holder_of(place) is None
    check_not_locked(place)
    first = claim(place, Driver.this())
    assert first.holder.number == 1
    first.release()
