"""Write in the background: a thread runs tasks in order, so that training waits only for a copy in memory."""

import queue
import threading
from collections.abc import Callable


class BackgroundWriter:
    """Run tasks in order in a separate thread; an error is raised at the next call.

    At most one task runs and one waits. If training saves faster than storage accepts, it waits: a longer queue would
    use more memory, and lose more in a crash.
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
            Set when the task is done, or will never be done.

        Raises
        ------
        Exception
            The error of an earlier task. No tasks are run after it.
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
                # After an error, tasks are taken from the queue without being run: a thread that ended would leave
                # `do` and `wait` blocked.
                if self._error is None:
                    task[0]()
            except BaseException as error:  # noqa: BLE001 - raised where it can be acted on
                self._error = error
            finally:
                if task is not None:
                    task[1].set()
                self._waiting.task_done()
