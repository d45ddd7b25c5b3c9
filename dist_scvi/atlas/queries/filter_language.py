"""The language of filters over obs columns, such as ``tissue == 'lung' and n_counts > 500``: text to a tree.

No text is evaluated as Python. Length, depth and number of values are bounded, so that filters from untrusted sources
can be parsed: a command line, a file, a request.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

Value = str | float | int | bool

MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES = 100_000, 32, 10_000

_TOKEN = re.compile(
    r"""
    (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<text>'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*")
    | (?P<quoted>`[^`]+`)
    | (?P<name>[^\W\d][\w.]*)
    | (?P<symbol>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)
    """,
    re.VERBOSE,
)
_BLANK = re.compile(r"\s*")
_FLIPPED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_KEYWORDS = {"and", "or", "not", "in", "is", "None", "True", "False"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One condition on one obs column."""

    column: str
    operator: str
    """``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in``, ``not in``, ``is None`` or ``is not None``."""
    values: tuple[Value, ...]

    def __str__(self) -> str:
        column = self.column if _is_plain(self.column) else f"`{self.column}`"
        if not self.values:
            return f"{column} {self.operator}"
        listed = ", ".join(map(_literal, self.values))
        return f"{column} {self.operator} {f'[{listed}]' if 'in' in self.operator else listed}"


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of a condition."""

    part: "Condition"

    def __str__(self) -> str:
        return f"not ({self.part})"


@dataclass(frozen=True, slots=True)
class Combined:
    """Several conditions joined by ``and`` or ``or``."""

    operator: str
    parts: tuple["Condition", ...]

    def __str__(self) -> str:
        return f" {self.operator} ".join(
            f"({part})" if isinstance(part, Combined) else str(part) for part in self.parts
        )


Condition = Comparison | Not | Combined


def parse(text: str) -> Condition:
    """Parse a filter.

    Parameters
    ----------
    text
        Comparisons of a column with numbers, texts in quotes, ``True`` and ``False`` or a list of these, by ``==``,
        ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in``, ``not in``, and ``is None`` for a missing value, joined by
        ``and``, ``or``, ``not`` and parentheses. A column whose name is not a plain word is written in backticks; a
        column of True and False may be a condition by itself.

    Raises
    ------
    ValueError
        If the text is not in this language, is too long, or is nested too deeply.
    """
    if not isinstance(text, str):
        raise ValueError(f"where={text!r}: a text such as \"cell_type == 'B'\" is needed")  # noqa: TRY004
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"where has {len(text)} characters: at most {MAX_CHARACTERS} are taken")
    parser = _Parser(text)
    condition = parser.any_of(0)
    if parser.kind != "end":
        raise parser.error("'and', 'or' or the end")
    return condition


def comparisons(condition: Condition) -> Iterator[Comparison]:
    """Iterate over the comparisons of a condition, from left to right."""
    if isinstance(condition, Comparison):
        yield condition
    else:
        for part in (condition.part,) if isinstance(condition, Not) else condition.parts:
            yield from comparisons(part)


class _Parser:
    """A recursive descent parser with one token of lookahead."""

    def __init__(self, text: str) -> None:
        self._text, self._stop, self._values = text, 0, 0
        self._advance()

    def _advance(self) -> None:
        blank = _BLANK.match(self._text, self._stop)
        self._start = self._stop if blank is None else blank.end()
        if self._start == len(self._text):
            self.kind, self.token = "end", ""
            return
        found = _TOKEN.match(self._text, self._start)
        if found is None:
            raise self.error("a column, a value or an operator")
        self.kind, self.token, self._stop = str(found.lastgroup), found.group(), found.end()
        if self.kind == "name" and self.token in _KEYWORDS:
            self.kind = "keyword"

    def error(self, needed: str) -> ValueError:
        """Return the error that names the position and the expected tokens."""
        shown = self._text[self._start : self._start + 30]
        found = f"{shown!r} at character {self._start + 1}" if shown else "the end"
        return ValueError(f"where={_shortened(self._text)!r} has {found}: {needed} is needed there")

    def _take(self, *tokens: str) -> bool:
        """Advance past the next token if it is one of `tokens`."""
        if self.kind in ("keyword", "symbol") and self.token in tokens:
            self._advance()
            return True
        return False

    def any_of(self, depth: int) -> Condition:
        """Parse conditions joined by ``or``."""
        # Only parentheses recurse, so this bound keeps any text from exceeding the stack of Python.
        if depth > MAX_DEPTH:
            raise ValueError(f"where={_shortened(self._text)!r} is more than {MAX_DEPTH} levels deep: simplify it")
        parts = [self._all_of(depth)]
        while self._take("or"):
            parts.append(self._all_of(depth))
        return parts[0] if len(parts) == 1 else Combined("or", tuple(parts))

    def _all_of(self, depth: int) -> Condition:
        parts = [self._negated(depth)]
        while self._take("and"):
            parts.append(self._negated(depth))
        return parts[0] if len(parts) == 1 else Combined("and", tuple(parts))

    def _negated(self, depth: int) -> Condition:
        # A loop and not a recursion: any number of `not` needs one level of the stack.
        odd = False
        while self._take("not"):
            odd = not odd
        if self._take("("):
            condition = self.any_of(depth + 1)
            if not self._take(")"):
                raise self.error("')'")
        else:
            condition = self._compared()
        return Not(condition) if odd else condition

    def _compared(self) -> Condition:
        """Parse ``column op value``, ``value op column`` or ``value op column op value``."""
        if self.kind not in ("name", "quoted"):
            value, operator = self._value(), self._operator()
            first = Comparison(self._column(), _FLIPPED[operator], (value,))
            if self.token not in _FLIPPED:
                return first
            return Combined("and", (first, Comparison(first.column, self._operator(), (self._value(),))))
        column = self._column()
        if self._take("is"):
            negated = self._take("not")
            if not self._take("None"):
                raise self.error("None")
            return Comparison(column, "is not None" if negated else "is None", ())
        if self.token in ("in", "not"):
            negated = self._take("not")
            if not self._take("in"):
                raise self.error("'in'")
            return Comparison(column, "not in" if negated else "in", self._list())
        if self.token in _FLIPPED:
            operator = self._operator()
            return Comparison(column, operator, (self._value(),))
        return Comparison(column, "==", (True,))

    def _operator(self) -> str:
        operator = self.token
        if operator not in _FLIPPED:
            raise self.error("a comparison such as '=='")
        self._advance()
        return operator

    def _column(self) -> str:
        if self.kind not in ("name", "quoted"):
            raise self.error("an obs column")
        column = self.token.strip("`")
        self._advance()
        return column

    def _list(self) -> tuple[Value, ...]:
        closing = {"[": "]", "(": ")"}.get(self.token)
        if closing is None:
            raise self.error("a list such as ['T', 'NK']")
        self._advance()
        values = [self._value()]
        while self._take(","):
            if self.token != closing:
                values.append(self._value())
        if not self._take(closing):
            raise self.error(f"',' or {closing!r}")
        return tuple(values)

    def _value(self) -> Value:
        self._values += 1
        if self._values > MAX_VALUES:
            raise ValueError(f"where has more than {MAX_VALUES} values: select by a column, or give rows")
        kind, token = self.kind, self.token
        if kind == "number":
            self._advance()
            return float(token) if any(mark in token for mark in ".eE") else int(token)
        if kind == "text":
            self._advance()
            return re.sub(r"\\(.)", r"\1", token[1:-1])
        if token in ("True", "False") and kind == "keyword":
            self._advance()
            return token == "True"
        raise self.error("a number, a text in quotes, True or False")


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[^\W\d][\w.]*", name) is not None and name not in _KEYWORDS


def _literal(value: Value) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return repr(value)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
