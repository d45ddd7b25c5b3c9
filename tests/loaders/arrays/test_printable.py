"""What files hold reaches a terminal without its escape codes, on one line, in bounded length."""

import pytest

from dist_scvi.loaders.arrays.printable import printable, printable_lines


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("T cell", "T cell"),
        ("naïve β", "naïve β"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("liver\u202egnul", "liver\\u202egnul"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (ValueError("\x07"), "\\x07"),
        (12, "12"),
    ],
)
def test_control_characters_are_shown_as_escapes(value, shown):
    assert printable(value) == shown


def test_long_values_are_cut_in_the_middle():
    shown = printable("a" * 10**7 + "end")
    assert len(shown) < 220
    assert shown.startswith("aaa")
    assert shown.endswith("end")


def test_reports_keep_their_lines():
    assert printable_lines("a\n  \x1b[31mb\n") == "a\n  \\x1b[31mb\n"
