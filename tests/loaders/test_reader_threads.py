import os

import pytest

from dist_scvi.loaders.reader_threads import reader_threads, reserve_compute_threads


@pytest.fixture(autouse=True)
def six_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))


def test_reading_uses_all_processors_except_while_some_are_reserved():
    assert reader_threads() == 6
    with reserve_compute_threads(4):
        assert reader_threads() == 2
        with pytest.raises(ZeroDivisionError), reserve_compute_threads(1):
            1 / (reader_threads() - 5)
        assert reader_threads() == 2
    assert reader_threads() == 6


def test_one_thread_always_reads():
    with reserve_compute_threads(9):
        assert reader_threads() == 1


def test_the_share_of_a_worker_is_what_its_launcher_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert reader_threads() == 3
    with reserve_compute_threads(2):
        assert reader_threads() == 1


def test_requests_to_a_network_outnumber_the_processors():
    with reserve_compute_threads(5):
        assert reader_threads(remote=True) == 32


def test_a_negative_number_of_compute_threads_is_refused():
    with pytest.raises(ValueError, match="number=-1: the number of compute threads"), reserve_compute_threads(-1):
        pass
