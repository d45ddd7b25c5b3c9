"""Questions that arrive together have the answers that they have alone."""

from typing import Any

import pandas as pd
import pytest

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.serve.limits import Limits
from dist_scvi.launch.serve.questions import batches
from dist_scvi.launch.serve.questions.asking import Asked
from dist_scvi.launch.serve.questions.batches import answer_together
from dist_scvi.launch.serve.questions.kinds import QUESTIONS, answer_question
from dist_scvi.launch.serve.served import ServedAtlas
from dist_scvi.launch.serve.watch import CancelledError, Watch, WatchedAtlas

LIMITS = Limits()
ASKED: list[dict[str, Any]] = [
    {"query": [7, 2, 9], "k": 3},
    {"query": [[0.0, 0.1, 0.2, 0.3]], "k": 3},
    {"query": [1], "k": 3},
    {"query": [[1.0, 0.1, 0.2, 0.3], [0.5, 0.5, 0.5, 0.5]], "k": 3},
    {"query": [1], "k": 4},
    {"query": "label == 'B'", "k": 2},
    {"query": ["cell3"], "k": 3},
    {"query": [402], "k": 3},
]


@pytest.fixture
def served(atlas: Atlas) -> ServedAtlas:
    return ServedAtlas("small", WatchedAtlas(atlas))


def items(served: ServedAtlas, asked: list[dict[str, Any]]) -> list[tuple[Asked, Watch]]:
    kind = QUESTIONS["neighbors"]
    bodies = [kind.body.model_validate(each) for each in asked]
    return [(Asked("c", served, kind, body, ""), Watch(LIMITS)) for body in bodies]


def test_each_question_has_its_own_answer_to_the_last_bit(served: ServedAtlas, monkeypatch: pytest.MonkeyPatch) -> None:
    together, calls = items(served, ASKED), []

    def counted(*arguments: Any) -> Answer:
        calls.append(arguments)
        return answer_question(*arguments)

    monkeypatch.setattr(batches, "answer_question", counted)
    found = answer_together(together, LIMITS)
    assert len(calls) == 5  # three lists of rows and two of vectors with the same k are each searched as one
    for (asked, watch), answer in zip(together, found, strict=True):
        alone = answer_question(served, asked.kind, asked.body, LIMITS, watch)
        assert isinstance(answer, Answer)
        pd.testing.assert_frame_equal(answer.table, alone.table, check_exact=True)
        assert answer.provenance == alone.provenance


def test_a_question_that_is_refused_or_cancelled_does_not_affect_the_others(served: ServedAtlas) -> None:
    together = items(served, [{"query": [1], "k": 3}, {"query": [5_000], "k": 3}, {"query": [2], "k": 3}])
    together[2][1].cancel()
    first, second, third = answer_together(together, LIMITS)
    assert isinstance(first, Answer)
    assert isinstance(second, ValueError)
    assert isinstance(third, CancelledError)


def test_so_many_points_are_joined_that_the_search_stays_exact(served: ServedAtlas) -> None:
    found = answer_together(
        items(served, [{"query": list(range(200)), "k": 1}, {"query": list(range(100)), "k": 1}]), LIMITS
    )
    assert [len(answer.table) for answer in found if isinstance(answer, Answer)] == [200, 100]
    assert {answer.engine for answer in found if isinstance(answer, Answer)} == {"exact"}
