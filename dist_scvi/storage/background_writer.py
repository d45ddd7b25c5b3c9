"""Writing beside the training: one thing after the other in a thread, so that training waits only for a copy."""

import queue
import threading
from collections.abc import Callable


class BackgroundWriter:
    """Does what it is given, in order, in a thread of its own; errors reach whoever asks for the next.

    At most one thing is done and one waits: a training that saves faster than storage takes waits for it.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Callable[[], None], threading.Event] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> threading.Event:
        """Have `work` done soon.

        Returns
        -------
        Event
            Set when it is done, or never will be.

        Raises
        ------
        Exception
            What went wrong with something before; nothing is done any more then.
        """
        self.check()
        over = threading.Event()
        self._waiting.put((work, over))
        return over

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until all is done.

        Raises
        ------
        Exception
            What went wrong.
        """
        self._waiting.join()
        self.check()

    def close(self) -> None:
        """Wait until all is done, and end; what went wrong is left to `check`."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            given = self._waiting.get()
            try:
                if given is None:
                    return
                if self._error is None:
                    given[0]()
            except BaseException as error:  # noqa: BLE001 - raised where it can be acted on
                self._error = error
            finally:
                if given is not None:
                    given[1].set()
                self._waiting.task_done()
