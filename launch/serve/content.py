"""Answers as bytes: JSON, Arrow or CSV by the Accept header, in pieces, with their identity."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

import pandas as pd

import dist_scvi
from dist_scvi.atlas.queries.answer import Answer, flat_table

JSON, ARROW, CSV = "application/json", "application/vnd.apache.arrow.stream", "text/csv"
TYPES = (JSON, ARROW, CSV)
PIECE_ROWS = 4096


class NotAcceptableError(ValueError):
    """No type of content that a client accepts is one that the service has."""


def choose_type(accept: str | None) -> str:
    """Return the type of content that an Accept header prefers; JSON if it does not matter.

    Raises
    ------
    NotAcceptableError
        If it accepts none of `TYPES`.
    """
    best, best_q = "", 0.0
    for offered in TYPES:
        q = max((q for pattern, q in _accepted(accept or "*/*") if _matches(pattern, offered)), default=0.0)
        if q > best_q:
            best, best_q = offered, q
    if not best:
        raise NotAcceptableError(f"none of {', '.join(TYPES)} is accepted")
    return best


def _accepted(accept: str) -> Iterator[tuple[str, float]]:
    for part in accept.split(","):
        pattern, *parameters = (word.strip().lower() for word in part.split(";"))
        q = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    q = float(parameter[2:])
                except ValueError:
                    q = 0.0
        yield pattern, q if math.isfinite(q) else 0.0


def _matches(pattern: str, offered: str) -> bool:
    kind, _, rest = pattern.partition("/")
    own_kind, _, own_rest = offered.partition("/")
    return kind in ("*", own_kind) and rest in ("*", own_rest)


def question_tag(digest: str, name: str, arguments: Mapping[str, Any], content_type: str) -> str | None:
    """Return the ETag of an answer: the atlas, the question and this version of the package determine its bytes.

    None for an atlas of format 1, which has no digest.
    """
    if not digest:
        return None
    asked = json.dumps([digest, name, arguments, content_type, dist_scvi.__version__], sort_keys=True, default=str)
    return f'"{hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:40]}"'


def answer_headers(answer: Answer) -> dict[str, str]:
    """Return the headers that describe an answer; CSV has no other place for them."""
    return {
        "Answer-Query": answer.kind,
        "Answer-Engine": answer.engine,
        "Answer-Digest": answer.digest,
        "Answer-Cells": str(sum(answer.n_cells.values())),
        "Answer-Rows": str(len(answer.table)),
    }


def encode(answer: Answer, content_type: str) -> Iterator[bytes]:
    """Encode an answer in pieces of some thousand rows."""
    return {JSON: _as_json, ARROW: _as_arrow, CSV: _as_csv}[content_type](answer)


def _as_json(answer: Answer) -> Iterator[bytes]:
    """Yield ``{"provenance": {}, "columns": [], "rows": [{}]}``, in which missing and infinite numbers are null."""
    table = flat_table(answer.table)
    columns = [str(name) for name in table.columns]
    head = json.dumps({"provenance": answer.provenance, "columns": columns}, default=str)
    yield f'{head[:-1]}, "rows": ['.encode()
    for start in range(0, len(table), PIECE_ROWS):
        piece = table.iloc[start : start + PIECE_ROWS]
        values = [_json_values(piece.iloc[:, place]) for place in range(len(columns))]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
        text = json.dumps(rows, allow_nan=False, separators=(",", ":"))[1:-1]
        yield f"{',' if start else ''}{text}".encode()
    yield b"]}"


def _json_values(column: "pd.Series[Any]") -> list[Any]:
    values = column.tolist()
    if column.dtype.kind in "iub":
        return values
    # repr of a number in Python is the shortest text that reads as the same number: nothing is rounded.
    return [_json_value(value) for value in values]


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return None if value is pd.NA or value is pd.NaT else str(value)


def _as_csv(answer: Answer) -> Iterator[bytes]:
    table = flat_table(answer.table)
    for start in range(0, max(len(table), 1), PIECE_ROWS):
        text = StringIO()
        table.iloc[start : start + PIECE_ROWS].to_csv(text, index=False, header=start == 0, lineterminator="\n")
        yield text.getvalue().encode("utf-8", "replace")


def _as_arrow(answer: Answer) -> Iterator[bytes]:
    import pyarrow as pa

    table = answer.to_arrow()
    sink = _Pieces()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=PIECE_ROWS):
            writer.write_batch(batch)
            yield sink.take()
    yield sink.take()


class _Pieces:
    """A file of bytes that are taken out as they come."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Do nothing: all that was written is there."""

    def close(self) -> None:
        """Do nothing: there is no file."""

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken, self._pieces = b"".join(self._pieces), []
        return taken
