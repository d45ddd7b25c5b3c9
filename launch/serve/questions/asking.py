"""Run questions in threads: a bounded number at a time, for a bounded number of each client, stopped when it leaves."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.serve.limits import Service
from dist_scvi.launch.serve.questions.jobs import JobBoard
from dist_scvi.launch.serve.questions.kinds import QuestionKind, answer_question
from dist_scvi.launch.serve.questions.requests import Question
from dist_scvi.launch.serve.served import ServedAtlas
from dist_scvi.launch.serve.watch import CancelledError, Watch

_REPORT_S = 0.5


class BusyError(Exception):
    """The client, or all clients together, ask more questions than the service takes at a time."""

    def __init__(self, message: str, *, of_client: bool) -> None:
        super().__init__(message)
        self.of_client = of_client


Board = Callable[..., Awaitable[Any]]
"""Calls a method of the `JobBoard` by name, in this process or in an actor: ``await board("status", job_id)``."""


def local_board(board: JobBoard) -> Board:
    """Return the calls of a board of this process."""

    async def call(method: str, *arguments: Any) -> Any:
        return getattr(board, method)(*arguments)

    return call


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of a client."""

    client: str
    served: ServedAtlas
    kind: QuestionKind
    body: Question
    tag: str
    on_end: Callable[[], None] | None = None
    """Called when the question has ended in any way, also that of a job."""

    def end(self) -> None:
        """Release what the question holds."""
        if self.on_end is not None:
            self.on_end()


Together = Callable[[Asked, Watch], Awaitable[Answer]]
"""Answers a question together with others that arrive at the same time."""


class Asker:
    """Answers the questions of all clients of this process.

    Parameters
    ----------
    board
        Where questions go on that take longer than a client waits.
    together
        How questions of the kinds that gain by it are answered in batches; by default one by one, as the others.
    """

    def __init__(self, service: Service, board: Board, together: Together | None = None) -> None:
        self.limits, self.board = service.limits, board
        self._pool = ThreadPoolExecutor(service.limits.threads, thread_name_prefix="question")
        self._of_client: Counter[str] = Counter()
        self._together = together
        self._followers: set[asyncio.Task[None]] = set()

    @property
    def n_running(self) -> int:
        """Questions that are computed or wait for it."""
        return self._of_client.total()

    async def ask(
        self, asked: Asked, has_left: Callable[[], Awaitable[None]], wait_s: float | None = None
    ) -> Answer | str:
        """Answer a question, or return the identifier of the job that it became.

        Parameters
        ----------
        has_left
            Returns when the client has left; the question is then cancelled.
        wait_s
            How long the client waits; that of the limits by default, and never longer.

        Raises
        ------
        BusyError
            If the client, or all together, ask too much.
        ValueError
            If the question is refused.
        CancelledError
            If the client left.
        """
        watch = Watch(self.limits)
        try:
            task = self._started(asked, watch)
        except BusyError:
            asked.end()
            raise
        leaving: asyncio.Future[Any] = asyncio.ensure_future(has_left())
        try:
            wait_s = self.limits.wait_s if wait_s is None else min(wait_s, self.limits.wait_s)
            waited: set[asyncio.Future[Any]] = {task, leaving}
            await asyncio.wait(waited, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            watch.cancel()
            raise
        finally:
            leaving.cancel()
        if task.done():
            return task.result()
        if leaving.done() and not leaving.cancelled():
            watch.cancel()
            task.add_done_callback(_ignore)
            raise CancelledError("the client has left")
        job_id: str = await self.board("start", asked.served.name, asked.kind.path, asked.tag)
        follower = asyncio.create_task(self._follow(job_id, task, watch))
        self._followers.add(follower)  # the loop itself keeps only a weak reference to a task
        follower.add_done_callback(self._followers.discard)
        return job_id

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in a thread of the questions."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def close(self) -> None:
        """End the threads; questions that wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _started(self, asked: Asked, watch: Watch) -> "asyncio.Future[Answer]":
        self._admit(asked.client)
        work: Awaitable[Answer] = (
            self._together(asked, watch)
            if self._together is not None and asked.kind.in_batches
            else self.run(answer_question, asked.served, asked.kind, asked.body, self.limits, watch)
        )
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._release(asked.client))
        task.add_done_callback(lambda _: asked.end())
        return task

    @contextmanager
    def uploading(self, client: str) -> Iterator[None]:
        """Count an upload as a question of its client while the block runs.

        Raises
        ------
        BusyError
            As `ask`.
        """
        self._admit(client)
        try:
            yield
        finally:
            self._release(client)

    def _admit(self, client: str) -> None:
        if self._of_client[client] >= self.limits.questions_per_client:
            raise BusyError(
                f"{self.limits.questions_per_client} questions of this client are being answered: wait for one of them",
                of_client=True,
            )
        if self.n_running >= self.limits.questions:
            raise BusyError("the service answers as many questions as it can: try again", of_client=False)
        self._of_client[client] += 1

    def _release(self, client: str) -> None:
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]

    async def _follow(self, job_id: str, task: "asyncio.Future[Answer]", watch: Watch) -> None:
        """Report the progress of a job to the board until it ends."""
        while not task.done():
            if await self.board("report", job_id, watch.cells_read, watch.seconds):
                watch.cancel()
            await asyncio.wait({task}, timeout=_REPORT_S)
        await self.board("report", job_id, watch.cells_read, watch.seconds)
        try:
            await self.board("finish", job_id, task.result())
        except CancelledError:
            await self.board("finish", job_id, None)
        except ValueError as error:
            await self.board("finish", job_id, None, str(error))
        except Exception:
            await self.board("finish", job_id, None, "the service failed to answer; its log has the reason")
            raise


def _ignore(task: "asyncio.Future[Answer]") -> None:
    """Take the outcome of a question that nobody waits for, which asyncio would otherwise log."""
    if not task.cancelled():
        task.exception()
