"""Two drivers for one run: one writes it, the other is refused or takes over from the dead."""

from collections.abc import Callable

import pytest

from dist_scvi.storage import lease
from dist_scvi.storage.lease import Driver, claim
from tests.launch.fault_runs import (
    STEP,
    Crew,
    Toy,
    assert_at_most_one_save_lost,
    assert_undisturbed,
    fault,
    finish_here,
    train_here,
    until,
)

pytestmark = pytest.mark.timeout(240)


def test_a_second_driver_is_refused_until_the_first_is_killed_and_then_takes_over_at_once(
    toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENT_S", 1e9)  # a process of this host is looked up, not waited for
    (first,) = crew.begin(toy, workers=1, faults={0: [fault(STEP, "slow", 5, times=99)]})
    until(lambda: 4 in toy.saved())
    metrics = (toy.files / "metrics.jsonl").read_bytes()
    ended = train_here(toy)
    assert ended.codes == [2]
    assert f"is being written by process {first.pid} on" in ended.said
    assert (toy.files / "metrics.jsonl").read_bytes().startswith(metrics)
    first.end()
    assert_at_most_one_save_lost(toy)
    finish_here(toy)
    assert_undisturbed(toy, undisturbed(1))


def test_of_two_drivers_that_start_at_the_same_moment_one_trains(
    toy: Toy, crew: Crew, undisturbed: Callable[[int], Toy]
) -> None:
    both = [crew.begin(toy, workers=1, faults={0: [fault(STEP, "slow", 2, times=6)]}) for _ in range(2)]
    codes = [crew.end(toy, team).codes[0] for team in both]
    assert sorted(codes) == [0, 2]
    assert_undisturbed(toy, undisturbed(1))


def test_a_driver_on_another_host_is_believed_while_it_renews_its_lease(
    toy: Toy, undisturbed: Callable[[int], Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENT_S", 3.0)
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    held = claim(toy.place, Driver(host="elsewhere", realm="another boot", pid=1, begun=0.0))
    ended = train_here(toy)
    assert ended.codes == [2]
    assert "is being written by process 1 on elsewhere" in ended.said
    assert not toy.steps_taken()
    held._stop.set()  # it falls silent
    held._thread.join()
    finish_here(toy)
    assert_undisturbed(toy, undisturbed(1))
    with pytest.raises(lease.LostLeaseError, match="was taken over by start 2 of the run"):
        held.check()
