"""Exit codes of the commands, and the line on standard error that explains them."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from dist_scvi.errors import LostLeaseError, StoppedError, WeightsDifferError, WorkersFailedError
from dist_scvi.launch.signals import exit_on_signal
from dist_scvi.loaders.arrays.printable import printable

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "not enough memory",
    "failed to map segment",
    "can't start new thread",
)
OK, FAILED, MISTAKE, AGAIN, INTERRUPTED = 0, 1, 2, 75, 130
MEANINGS = {
    OK: "done",
    MISTAKE: "a mistake in the input, named in one line",
    AGAIN: "not finished: start the same command again to continue",
    FAILED: "storage or something else failed",
    INTERRUPTED: "interrupted",
}
"""Exit codes for scripts; ``--help`` prints them."""


def exit_code(command: Callable[[], int]) -> int:  # noqa: PLR0911 - one for each kind of end
    """Run `command`, print an error in one line on standard error, and return the exit code."""
    try:
        with exit_on_signal(_leave):
            code = command()
        sys.stdout.flush()
    except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
        return _report(f"error: {error}", MISTAKE)
    except (StoppedError, WorkersFailedError, WeightsDifferError, TimeoutError) as error:
        return _report(f"{error}; start the same command again to continue", AGAIN)
    except BrokenPipeError:  # as in "| head"; the rest of the buffer must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (OSError, LostLeaseError) as error:
        room = "; free some space and start the same command again, what was saved before is kept"
        return _report(f"error: {error}{room if getattr(error, 'errno', None) in _FULL else ''}", FAILED)
    except (MemoryError, ImportError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        found = " ".join(str(error).split())[:200] or type(error).__name__
        return _report(f"error: the memory that this process may use is too small ({found}): give it more", FAILED)
    except KeyboardInterrupt:
        return _report("interrupted; the same command continues where it was", INTERRUPTED)
    return code


def _lacks_memory(error: Exception) -> bool:
    """Return whether `error` means that memory or a thread could not be allocated."""
    # torch, and the loader of shared libraries, have no type of their own for it.
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def _leave() -> NoReturn:
    """Exit when there is nothing to save, or when everything done so far is saved already."""
    sys.exit(_report("stop requested; start the same command again to continue", AGAIN))


def _report(message: str, code: int) -> int:
    shown = printable(" ".join(message.split()), max_length=4000)
    sys.stderr.write(f"dist-scvi: {shown}\n")
    return code
