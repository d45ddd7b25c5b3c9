"""Writing beside the training: in order, one at a time, and what goes wrong is heard."""

import threading

import pytest

from dist_scvi.storage.background_writer import BackgroundWriter

pytestmark = pytest.mark.timeout(60)


def test_things_are_done_in_order_and_all_of_them_before_the_end() -> None:
    saver, done = BackgroundWriter(), []
    for number in range(5):
        saver.do(lambda number=number: done.append(number))
    saver.wait()
    assert done == [0, 1, 2, 3, 4]
    saver.do(lambda: done.append(5))
    saver.close()
    assert done == [0, 1, 2, 3, 4, 5]


def test_who_asks_does_not_wait_for_the_first_but_for_a_third() -> None:
    saver, go, third = BackgroundWriter(), threading.Event(), threading.Event()
    saver.do(lambda: go.wait(30))
    saver.do(lambda: None)

    def ask() -> None:
        saver.do(lambda: None)
        third.set()

    thread = threading.Thread(target=ask)
    thread.start()
    assert not third.wait(0.3)
    go.set()
    assert third.wait(30)
    thread.join()
    saver.close()


def test_an_error_is_raised_to_whoever_asks_next_and_nothing_is_done_after_it() -> None:
    saver, done = BackgroundWriter(), []
    saver.do(lambda: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        saver.wait()
    with pytest.raises(OSError, match="no space"):
        saver.do(lambda: done.append(1))
    saver.close()
    assert done == []
