"""Every end of a command has one line and one exit code."""

from typing import NoReturn

import pytest

from dist_scvi.errors import LostLeaseError, StoppedError, WeightsDifferError, WorkersFailedError
from dist_scvi.launch.exit_codes import AGAIN, FAILED, INTERRUPTED, MISTAKE, OK, exit_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a mistake"), MISTAKE),
        (FileNotFoundError("a mistake"), MISTAKE),
        (FloatingPointError("a mistake"), MISTAKE),
        (StoppedError("stopped"), AGAIN),
        (WorkersFailedError("lost"), AGAIN),
        (WeightsDifferError("differ"), AGAIN),
        (TimeoutError("late"), AGAIN),
        (OSError(28, "No space left on device", "/run/x"), FAILED),
        (LostLeaseError("taken over"), FAILED),
        (MemoryError("Unable to allocate 1 TiB"), FAILED),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), FAILED),
        (RuntimeError("can't start new thread"), FAILED),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), FAILED),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
def test_an_end_is_told_in_one_line_with_its_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> NoReturn:
        raise error

    assert exit_code(command) == code
    said = capsys.readouterr().err
    assert said.startswith("dist-scvi: ")
    assert said.count("\n") == 1
    assert (str(error) in said) or isinstance(error, KeyboardInterrupt)
    assert ("start the same command again" in said) == (code == AGAIN or getattr(error, "errno", 0) == 28)


def test_a_command_says_its_own_code_and_what_nobody_foresaw_is_not_hidden() -> None:
    assert exit_code(lambda: OK) == 0
    assert exit_code(lambda: AGAIN) == 75
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ImportError("cannot import name")])
def test_a_bug_is_not_taken_for_a_lack_of_memory(error: Exception) -> None:
    def command() -> NoReturn:
        raise error

    with pytest.raises(type(error)):
        exit_code(command)
