"""A signal that the time is over calls what stops the run, and no handler outlives it."""

import os
import signal
import threading

import pytest

from dist_scvi.launch.signals import SIGNALS, call_on_signal


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_calls_stop_in_another_thread_while_the_block_goes_on(number: signal.Signals) -> None:
    called, threads = threading.Event(), []

    def stop() -> None:
        threads.append(threading.current_thread())
        called.set()

    with call_on_signal(stop):
        os.kill(os.getpid(), number)
        assert called.wait(20)
    assert threads[0] is not threading.main_thread()


def test_the_handlers_of_before_are_back_after_the_block_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), call_on_signal(print):
        1 / sum(signal.getsignal(number) in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_nothing_changes() -> None:
    found = []

    def run() -> None:
        with call_on_signal(print):
            found.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert found == [signal.getsignal(number) for number in SIGNALS]
