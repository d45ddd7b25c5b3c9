"""Text from files in a form that is safe to print: no control characters, one line, bounded length."""

import html
import unicodedata
from collections.abc import Mapping

_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that are escaped: controls, invisible formatting such as right-to-left overrides, surrogates, and
line and paragraph separators. Escape codes could rename a terminal's window, hide lines, or fake the output of a
command."""


def printable(value: object, max_length: int = 200) -> str:
    r"""Return `value` as text for a message: control characters as ``\x1b``, cut in the middle beyond `max_length`.

    Every message and table that quotes a name or value from a file uses this function.
    """
    text = str(value)
    if len(text) > max_length:
        # Cut before escaping, so that a value of 10^8 characters costs no more than a short one.
        text = f"{text[: max_length * 2 // 3]} ... {text[-max_length // 4 :]}"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(letter) if unicodedata.category(letter) in _UNSAFE else letter for letter in text)


def printable_lines(text: str) -> str:
    """Return a report of several lines with all other control characters escaped."""
    return "\n".join(printable(line, max(len(line), 1)) for line in text.split("\n"))


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """Return a title and a table of names and texts for a notebook; all text is escaped."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<div><b>{html.escape(title)}</b><table>{cells}</table></div>"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
