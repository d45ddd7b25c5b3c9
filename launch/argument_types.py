"""Types of command-line arguments: numbers, sizes, ranges, times, pairs."""

import argparse
import re
from collections.abc import Callable

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)")


def at_least(low: int) -> Callable[[str], int]:
    """Return the argument type of whole numbers of at least `low`."""

    def number(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number from {low} on is needed")
        return int(text)

    return number


def span(text: str) -> tuple[int, int]:
    """Read ``N`` or ``MIN:MAX``, whole numbers of at least 1."""
    low, found, high = text.partition(":")
    least, most = at_least(1)(low), at_least(1)(high if found else low)
    if least > most:
        raise argparse.ArgumentTypeError(f"{text!r}: the smaller number comes first, as in {most}:{least}")
    return least, most


def size_bytes(text: str) -> int:
    """Return the bytes of a size with its unit, such as 512MiB."""
    number, unit = text[:-3].strip(), text[-3:]
    if unit not in UNITS or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", number) or float(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a size such as 512MiB or 2GiB is needed")
    return int(float(number) * UNITS[unit])


def time_s(text: str) -> int:
    """Return the seconds of ``[DAYS-]HH:MM:SS``."""
    found = _TIME.fullmatch(text)
    seconds = 0
    if found:
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = ((24 * days + hours) * 60 + minutes) * 60 + rest
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r}: a time such as 24:00:00 or 2-00:00:00 is needed")
    return seconds


def pair(example: str) -> Callable[[str], tuple[str, str]]:
    """Return the argument type of ``KEY=VALUE``, neither of them empty; errors show `example`."""

    def read(text: str) -> tuple[str, str]:
        key, _, value = text.partition("=")
        if not (key and value):
            raise argparse.ArgumentTypeError(f"{text!r}: write it as {example}")
        return key, value

    return read
