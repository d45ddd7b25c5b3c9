"""The board of jobs: progress, answers, ends, and what is forgotten."""

import time

import pandas as pd
import pytest

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.serve.limits import Limits
from dist_scvi.launch.serve.questions import jobs
from dist_scvi.launch.serve.questions.jobs import JobBoard

ANSWER = Answer("markers", pd.DataFrame({"x": [1]}), "sketch", "own", {}, "small", "d")


@pytest.fixture
def board() -> JobBoard:
    return JobBoard(Limits(kept_jobs=2))


def test_a_job_shows_its_progress_and_then_has_its_answer(board: JobBoard) -> None:
    job = board.start("small", "markers", "tag")
    assert not board.report(job, 70, 1.5)
    assert board.status(job) == {
        "id": job,
        "atlas": "small",
        "question": "markers",
        "state": "running",
        "cells_read": 70,
        "seconds": 1.5,
    }
    assert board.answer(job) is None
    board.finish(job, ANSWER)
    assert board.status(job)["answer"] == f"/v1/jobs/{job}/answer"
    assert board.answer(job) == (ANSWER, "tag")


def test_a_cancelled_job_is_to_end_and_has_no_answer(board: JobBoard) -> None:
    job = board.start("small", "markers", "tag")
    assert board.cancel(job)
    assert board.report(job, 0, 0.0)
    board.finish(job, None)
    assert board.status(job)["state"] == "cancelled"
    assert not board.cancel("none")


def test_the_answer_of_a_finished_job_can_be_dropped(board: JobBoard) -> None:
    job = board.start("small", "markers", "tag")
    board.finish(job, ANSWER)
    assert board.cancel(job)
    assert board.answer(job) is None


def test_the_oldest_finished_jobs_are_forgotten(board: JobBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [board.start("small", "markers", str(number)) for number in range(4)]
    for job in ids[1:]:
        board.finish(job, ANSWER)
    assert [board.status(job) is not None for job in ids] == [True, False, True, True]  # the first is running
    later = time.monotonic() + 601
    monkeypatch.setattr(jobs.time, "monotonic", lambda: later)
    assert board.status(ids[3]) is None


def test_a_job_whose_process_has_ended_fails(board: JobBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    job = board.start("small", "markers", "tag")
    later = time.monotonic() + 31
    monkeypatch.setattr(jobs.time, "monotonic", lambda: later)
    assert board.status(job)["state"] == "failed"
    assert "ask again" in board.status(job)["problem"]
