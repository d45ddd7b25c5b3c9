"""Exit codes, and what is said when a command does not end well."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from dist_scvi.errors import LostLeaseError, StoppedError, WeightsDifferError, WorkersFailedError
from dist_scvi.launch.signals import exit_on_signal

_FULL = (errno.ENOSPC, errno.EDQUOT)
OK, FAILED, MISTAKE, AGAIN, INTERRUPTED = 0, 1, 2, 75, 130
"""Done; failed; a mistake in the input; start the same command again; interrupted."""


def exit_code(command: Callable[[], int]) -> int:
    """Run `command`, say in one line on stderr what is wrong, and give the code to exit with."""
    try:
        with exit_on_signal(_leave):
            code = command()
        sys.stdout.flush()
    except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
        return _told(f"error: {error}", MISTAKE)
    except (StoppedError, WorkersFailedError, WeightsDifferError, TimeoutError) as error:
        return _told(f"{error}; start the same command again to go on", AGAIN)
    except BrokenPipeError:  # as in "| head"; what is still buffered must not fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (OSError, LostLeaseError) as error:
        room = "; make room and start the same command again, what was saved before is kept"
        return _told(f"error: {error}{room if getattr(error, 'errno', None) in _FULL else ''}", FAILED)
    except KeyboardInterrupt:
        return _told("interrupted; the same command goes on where it was", INTERRUPTED)
    return code


def _leave() -> NoReturn:
    """End before there is anything to save, or where all that is done is kept anyway."""
    sys.exit(_told("told to stop; start the same command again", AGAIN))


def _told(message: str, code: int) -> int:
    shown = "".join(letter for letter in " ".join(message.split()) if letter.isprintable())
    sys.stderr.write(f"dist-scvi: {shown}\n")
    return code
