"""Values of the command line are read whole or refused with an example."""

import argparse
from collections.abc import Callable

import pytest

from dist_scvi.launch.argument_types import at_least, pair, size_bytes, span, time_s


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (at_least(0), "0", 0),
        (span, "4", (4, 4)),
        (span, "2:8", (2, 8)),
        (size_bytes, "512MiB", 512 << 20),
        (size_bytes, "1.5 GiB", 3 << 29),
        (time_s, "00:30:00", 1800),
        (time_s, "2-00:00:05", 172_805),
        (time_s, "100:00:00", 360_000),
        (pair("a=b"), "key=value=more", ("key", "value=more")),
    ],
)
def test_what_is_written_as_it_should_be_is_read(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (at_least(1), "0", "from 1 on"),
        (at_least(1), "²", "from 1 on"),
        (span, "8:2", "as in 2:8"),
        (span, "2:", "whole number"),
        (size_bytes, "64", "512MiB"),
        (size_bytes, "0GiB", "512MiB"),
        (size_bytes, "-1GiB", "512MiB"),
        (time_s, "24", "24:00:00"),
        (time_s, "0:00:00", "24:00:00"),
        (time_s, "1:60:00", "24:00:00"),
        (pair("label=value"), "label=", "write it as label=value"),
    ],
)
def test_what_is_not_is_refused(read: Callable[[str], object], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        read(text)
