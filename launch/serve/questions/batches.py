"""Questions that arrive together: the points of several are searched as one."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.serve.limits import Limits
from dist_scvi.launch.serve.questions.asking import Asked
from dist_scvi.launch.serve.questions.kinds import answer_question
from dist_scvi.launch.serve.questions.requests import NeighborsQuestion
from dist_scvi.launch.serve.watch import CancelledError, Watch

Item = tuple[Asked, Watch]
_MOST_POINTS = 256
"""Up to so many points the search of ``engine="auto"`` is exact, whatever other points are searched with them."""


def answer_together(items: Sequence[Item], limits: Limits) -> list[Answer | Exception]:
    """Answer several questions in the calling thread; one that is refused does not affect the others."""
    answers: dict[int, Answer | Exception] = {}
    for places in _alike(items):
        joined = _answer_joined([items[place] for place in places], limits) if len(places) > 1 else None
        if joined is not None:
            answers.update(zip(places, joined, strict=True))
            continue
        for place in places:  # also if one of the joined questions is wrong: only that one is refused
            asked, watch = items[place]
            try:
                answers[place] = answer_question(asked.served, asked.kind, asked.body, limits, watch)
            except (ValueError, CancelledError) as error:
                answers[place] = error
    return [answers[place] for place in range(len(items))]


def _alike(items: Sequence[Item]) -> Iterator[list[int]]:
    """Yield the places of questions that can be joined: they differ in their points alone."""
    found: dict[str, list[int]] = {}
    points: dict[str, int] = {}
    for place, (asked, _) in enumerate(items):
        key, n = _key(asked, place)
        if points.get(key, 0) + n > _MOST_POINTS:
            yield found.pop(key, [])
            points[key] = 0
        found.setdefault(key, []).append(place)
        points[key] = points.get(key, 0) + n
    yield from found.values()


def _key(asked: Asked, place: int) -> tuple[str, int]:
    body = asked.body
    if not isinstance(body, NeighborsQuestion) or not isinstance(body.query, list) or not body.query:
        return str(place), 1
    if body.engine == "index" or len(body.query) > _MOST_POINTS or isinstance(body.query[0], float):
        return str(place), 1
    kind = type(body.query[0]).__name__
    given: dict[str, Any] = body.model_dump(mode="json", exclude={"query"})
    return json.dumps([asked.served.name, kind, given], sort_keys=True), len(body.query)


def _answer_joined(items: Sequence[Item], limits: Limits) -> list[Answer] | None:
    """Search the points of several questions as one and return the answer of each; None if one of them is wrong."""
    asked, watch = items[0]
    queries: list[list[Any]] = [item.body.arguments()["query"] for item, _ in items]
    body = asked.body.model_copy(update={"query": [point for query in queries for point in query]})
    try:
        answer = answer_question(asked.served, asked.kind, body, limits, watch)
    except (ValueError, CancelledError):
        return None
    parts, start, k = [], 0, asked.body.arguments()["k"]
    for query in queries:
        table = answer.table.iloc[start * k : (start + len(query)) * k].reset_index(drop=True)
        if isinstance(query[0], list):  # latent vectors are named by their numbers
            table["query"] = table["query"] - start
        parts.append(replace(answer, table=table, n_cells={**answer.n_cells, "query": len(query)}))
        start += len(query)
    return parts
