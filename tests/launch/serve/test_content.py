"""Which type of content is chosen, and how answers are encoded."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.serve.content import (
    ARROW,
    CSV,
    JSON,
    PIECE_ROWS,
    NotAcceptableError,
    choose_type,
    encode,
    question_tag,
)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("text/*", CSV),
        ("text/html, application/vnd.apache.arrow.stream;q=0.9, */*;q=0.1", ARROW),
        ("application/json;q=0, text/csv;q=0.001", CSV),
        ("application/json;q=x, TEXT/CSV", CSV),
    ],
)
def test_the_type_that_a_client_prefers_is_chosen(accept: str | None, chosen: str) -> None:
    assert choose_type(accept) == chosen


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "application/json;q=nan"])
def test_a_client_that_accepts_none_of_the_types_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptableError):
        choose_type(accept)


@pytest.fixture(params=[3, PIECE_ROWS + 5, 0])
def answer(request: pytest.FixtureRequest) -> Answer:
    n, rng = request.param, np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "name": pd.Categorical([f"a,{row % 3}" for row in range(n)]),
            "x": rng.normal(size=n).astype(np.float32),
            "y": np.where(np.arange(n) % 2, np.nan, rng.normal(size=n)),
            "n": np.arange(n),
            "up": np.arange(n) % 2 == 0,
        },
        index=pd.Index([f"g{row}" for row in range(n)], dtype=object),
    )
    return Answer("expression", table, "exact", "own", {"all": n}, "small", "d" * 64, 3, {"genes": ["a"]}, ("a note",))


def test_an_answer_comes_back_from_arrow_to_the_last_bit(answer: Answer) -> None:
    back = Answer.from_arrow(pa.ipc.open_stream(b"".join(encode(answer, ARROW))).read_all())
    pd.testing.assert_frame_equal(back.table, answer.table, check_exact=True)
    assert back.provenance == answer.provenance


def test_json_holds_the_provenance_and_every_number_exactly(answer: Answer) -> None:
    found = json.loads(b"".join(encode(answer, JSON)))
    assert found["provenance"] == json.loads(json.dumps(answer.provenance))
    assert found["columns"] == ["index", *answer.table.columns]
    assert len(found["rows"]) == len(answer.table)
    for column in ("x", "y"):
        values = [np.nan if row[column] is None else row[column] for row in found["rows"]]
        np.testing.assert_array_equal(np.array(values, np.float64), answer.table[column].to_numpy(np.float64))


def test_csv_is_what_pandas_writes(answer: Answer) -> None:
    text = b"".join(encode(answer, CSV)).decode()
    assert text == answer.table.rename_axis("index").reset_index().to_csv(index=False)
    assert len(pd.read_csv(io.StringIO(text))) == len(answer.table)


def test_infinite_numbers_are_null_in_json() -> None:
    table = pd.DataFrame({"x": [np.inf, -np.inf, 1.0]})
    answer = replace(Answer("a", table, "", "", {}, "", ""), notes=())
    assert [row["x"] for row in json.loads(b"".join(encode(answer, JSON)))["rows"]] == [None, None, 1.0]


@pytest.mark.parametrize("content_type", [JSON, ARROW, CSV])
def test_a_large_answer_is_encoded_piece_by_piece(content_type: str) -> None:
    table = pd.DataFrame({"x": np.arange(3 * PIECE_ROWS, dtype=np.float64)})
    pieces = encode(Answer("a", table, "", "", {}, "", ""), content_type)
    assert isinstance(pieces, Iterator)
    sizes = [len(piece) for piece in pieces]
    assert len(sizes) >= 3
    assert max(sizes) < 0.5 * sum(sizes)


def test_the_tag_depends_on_the_atlas_the_question_and_the_type_and_not_on_the_order_of_arguments() -> None:
    tag = question_tag("d", "markers", {"by": "a", "seed": 0}, JSON)
    assert tag == question_tag("d", "markers", {"seed": 0, "by": "a"}, JSON)
    others = [("e", "markers", {"by": "a", "seed": 0}, JSON), ("d", "m", {"by": "a", "seed": 0}, JSON)]
    others += [("d", "markers", {"by": "a", "seed": 1}, JSON), ("d", "markers", {"by": "a", "seed": 0}, CSV)]
    assert tag not in {question_tag(*other) for other in others}
    assert question_tag("", "markers", {}, JSON) is None
