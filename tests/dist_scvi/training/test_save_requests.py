"""Wishes of signals and threads: a save is wished for once, a stop until it is heeded."""

import threading
import time

from dist_scvi.training.save_requests import SaveRequests


def test_nothing_is_asked_at_first() -> None:
    assert SaveRequests().read() == (0.0, 0.0)


def test_a_save_is_asked_for_once_and_a_stop_until_it_comes() -> None:
    requests = SaveRequests()
    requests.save()
    assert [requests.read(), requests.read()] == [(1.0, 0.0), (0.0, 0.0)]
    thread = threading.Thread(target=requests.stop)
    thread.start()
    thread.join()
    assert [requests.read(), requests.read()] == [(0.0, 1.0), (0.0, 1.0)]


def test_a_save_is_asked_for_when_the_last_is_too_old(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    requests = SaveRequests()
    requests.every(2.0)
    now[0] += 119
    assert requests.read() == (0.0, 0.0)
    now[0] += 2
    assert [requests.read(), requests.read()] == [(1.0, 0.0), (0.0, 0.0)]
    now[0] += 119
    requests.saved()
    now[0] += 119
    assert requests.read() == (0.0, 0.0)
