"""Write in the background: one task after the other in a thread, so that training waits only for a copy in memory."""

import queue
import threading
from collections.abc import Callable


class BackgroundWriter:
    """Run tasks in order, in a thread of its own; an error is raised at the next call.

    At most one task runs and one waits: training that saves faster than storage accepts waits. A longer queue would use
    memory without bound, and lose more with a crash.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Callable[[], None], threading.Event] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> threading.Event:
        """Add a task.

        Returns
        -------
        Event
            Set when it is done, or never will be.

        Raises
        ------
        Exception
            The error of an earlier task; no more are run then.
        """
        self.check()
        over = threading.Event()
        self._waiting.put((work, over))
        return over

    def check(self) -> None:
        """Raise the error of a task, if there was one."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until all tasks are done.

        Raises
        ------
        Exception
            The error of a task.
        """
        self._waiting.join()
        self.check()

    def close(self) -> None:
        """Wait until all tasks are done and end the thread; errors are left to `check`."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            task = self._waiting.get()
            try:
                if task is None:
                    return
                if self._error is None:
                    task[0]()
            except BaseException as error:  # noqa: BLE001 - raised where it can be acted on
                self._error = error
            finally:
                if task is not None:
                    task[1].set()
                self._waiting.task_done()
