"""Questions that take longer than a client waits: their progress, their answers, and their end."""

import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.serve.limits import Limits

State = Literal["running", "done", "failed", "cancelled"]
_SILENT_S = 30.0
"""A running job without news for so long is lost: the process that computed it has ended."""


@dataclass(slots=True)
class JobRecord:
    """What is known of a job."""

    atlas: str
    question: str
    tag: str
    """Identity of the question and of its atlas, without the type of content."""
    state: State = "running"
    cells_read: int = 0
    seconds: float = 0.0
    problem: str = ""
    answer: Answer | None = None
    cancelled: bool = False
    """Whether a client has asked for its end."""
    heard_s: float = field(default_factory=time.monotonic)

    def public(self, job_id: str) -> dict[str, Any]:
        """Return what clients are told."""
        shown: dict[str, Any] = {
            "id": job_id,
            "atlas": self.atlas,
            "question": self.question,
            "state": self.state,
            "cells_read": self.cells_read,
            "seconds": round(self.seconds, 3),
        }
        if self.state == "done":
            shown["answer"] = f"/v1/jobs/{job_id}/answer"
        return {**shown, "problem": self.problem} if self.problem else shown


class JobBoard:
    """The jobs of a service. One per service: in its process, or in an actor that all replicas of Ray Serve reach.

    The process that computes a job reports to the board; clients may be answered by another one.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._lock = limits, threading.Lock()
        self._jobs: dict[str, JobRecord] = {}

    def start(self, atlas: str, question: str, tag: str) -> str:
        """Add a job and return its identifier, which cannot be guessed: it is all that a client needs to read it."""
        job_id = secrets.token_urlsafe(18)
        with self._lock:
            self._forget()
            self._jobs[job_id] = JobRecord(atlas, question, tag)
        return job_id

    def report(self, job_id: str, cells_read: int, seconds: float) -> bool:
        """Note the progress of a job and return whether it is to end."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return True
            job.cells_read, job.seconds, job.heard_s = cells_read, seconds, time.monotonic()
            return job.cancelled

    def finish(self, job_id: str, answer: Answer | None, problem: str = "") -> None:
        """Note the answer of a job, or the problem with it; without both it was cancelled."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return
            job.state = "done" if answer is not None else "failed" if problem else "cancelled"
            job.answer, job.problem, job.heard_s = answer, problem, time.monotonic()
            self._forget()

    def cancel(self, job_id: str) -> bool:
        """Ask for the end of a job, or drop its answer; return whether there is such a job."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return False
            job.cancelled, job.answer = True, None
            if job.state == "done":
                job.state = "cancelled"
            return True

    def status(self, job_id: str) -> dict[str, Any] | None:
        """Return what clients are told of a job, None if there is no such job."""
        with self._lock:
            self._forget()
            job = self._jobs.get(job_id)
            return None if job is None else job.public(job_id)

    def answer(self, job_id: str) -> tuple[Answer, str] | None:
        """Return the answer of a finished job and its tag."""
        with self._lock:
            job = self._jobs.get(job_id)
            return None if job is None or job.answer is None else (job.answer, job.tag)

    def _forget(self) -> None:
        """Drop old answers, the oldest if there are too many, and note jobs that went silent."""
        now = time.monotonic()
        for job in self._jobs.values():
            if job.state == "running" and now - job.heard_s > _SILENT_S:
                job.state, job.problem, job.heard_s = "failed", "the process that computed it has ended: ask again", now
        ended = [key for key, job in self._jobs.items() if job.state != "running"]
        old = [key for key in ended if now - self._jobs[key].heard_s > self._limits.kept_s]
        most = max(0, len(ended) - self._limits.kept_jobs)
        for key in {*old, *ended[:most]}:
            del self._jobs[key]
