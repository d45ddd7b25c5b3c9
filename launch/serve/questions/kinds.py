"""The questions of the service: one table of addresses, methods of the atlas, and bodies."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from pydantic import ValidationError

from dist_scvi.atlas.cell_map.polygon import cells_in_polygon
from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.groups import group_cells
from dist_scvi.atlas.queries.where import choose_cells
from dist_scvi.launch.serve.limits import Limits
from dist_scvi.launch.serve.questions.requests import (
    AbundanceQuestion,
    CounterfactualQuestion,
    DifferentialExpressionQuestion,
    ExplainQuestion,
    ExpressionQuestion,
    MarkersQuestion,
    NeighborsQuestion,
    Polygon,
    Question,
    WhereQuestion,
    describe_problems,
)
from dist_scvi.launch.serve.served import ServedAtlas
from dist_scvi.launch.serve.watch import TooLargeError, Watch, WatchedAtlas


@dataclass(frozen=True, slots=True)
class QuestionKind:
    """A question that the service answers."""

    path: str
    """Last part of its address."""
    body: type[Question]
    answer: Callable[[WatchedAtlas, Any], Answer]
    """Calls the atlas."""
    check: Callable[[WatchedAtlas, Any, Limits], None]
    """Refuses a question whose answer would be too large, before anything is computed."""
    in_batches: bool = False
    """Whether several that arrive together are answered faster than one by one."""


def answer_question(served: ServedAtlas, kind: QuestionKind, body: Question, limits: Limits, watch: Watch) -> Answer:
    """Answer a question in the calling thread.

    Raises
    ------
    ValueError
        If the atlas refuses the question, with the name of the atlas in place of its path.
    TooLargeError
        If the question exceeds the limits.
    CancelledError
        If it was cancelled.
    """
    view = WatchedAtlas(served.atlas, watch, lambda: served.cell_map)
    try:
        watch.check()
        genes = getattr(body, "genes", ())
        if not isinstance(genes, str) and len(genes) > limits.genes:
            raise TooLargeError(f"{len(genes)} genes are named: this service takes at most {limits.genes} at a time")
        kind.check(view, body, limits)
        answer = kind.answer(view, body)
    except ValueError as error:
        raise type(error)(served.hide_place(str(error))) from error
    return replace(answer, atlas=served.name, notes=tuple(map(served.hide_place, answer.notes)))


def choose(view: WatchedAtlas, cells: Any) -> Any:
    """Return cells as the atlas takes them: those of a polygon as a set.

    Raises
    ------
    ValueError
        If the atlas has no map, or no cell is inside.
    """
    if not isinstance(cells, Polygon):
        return cells
    within = None if cells.where is None else choose_cells(view, cells.where)
    return cells_in_polygon(view.open_map(), cells.polygon, within)


def _neighbors(view: WatchedAtlas, body: NeighborsQuestion) -> Answer:
    arguments = {name: choose(view, value) for name, value in body.arguments().items()}
    # A text is a filter here; for the method of the atlas it may also be the path of a store.
    if isinstance(body.query, str):
        arguments["query"] = choose_cells(view, body.query)
    return view.neighbors(**arguments)


def _call(method: str) -> Callable[[WatchedAtlas, Question], Answer]:
    """Return a function that calls a method of the atlas with the body as arguments."""

    def call(view: WatchedAtlas, body: Question) -> Answer:
        answer: Answer = getattr(view, method)(**{name: choose(view, each) for name, each in body.arguments().items()})
        return answer

    return call


def _explain(view: WatchedAtlas, body: ExplainQuestion) -> Answer:
    kind = QUESTIONS.get(body.query.replace("_", "-"))
    if kind is None:
        raise ValueError(f"query={body.query!r}: one of {', '.join(QUESTIONS)} is needed")
    try:
        asked = kind.body.model_validate(body.asked)
    except ValidationError as error:
        raise ValueError(f"{kind.path}: {describe_problems(error.errors())[0]['msg']}") from None
    arguments = {name: choose(view, each) for name, each in asked.arguments().items()}
    if isinstance(asked, NeighborsQuestion) and isinstance(asked.query, str):
        arguments["query"] = choose_cells(view, asked.query)
    plan = view.explain(kind.path.replace("-", "_"), **arguments)
    row = {"query": plan.query, "engine": plan.engine, "cells": plan.cells, "decoded": plan.decoded}
    table = pd.DataFrame([{**row, "bytes": plan.bytes, "seconds": plan.seconds}])
    return Answer("explain", table, plan.engine, "", {"chosen": plan.cells}, view.uri, view.digest)


def _where(view: WatchedAtlas, body: WhereQuestion) -> Answer:
    cells = choose_cells(view, body.text)
    sizes = {"chosen": cells.n_cells}
    return Answer("where", cells.clauses, "", "", sizes, view.uri, view.digest, 0, {"where": cells.text})


def _any_size(view: WatchedAtlas, body: Question, limits: Limits) -> None:
    """Accept: the size of the answer does not depend on the question."""


def _check_expression(view: WatchedAtlas, body: ExpressionQuestion, limits: Limits) -> None:
    if body.per_cell:
        n_cells = choose_cells(view, choose(view, body.where)).n_cells
        n_genes = 1 if isinstance(body.genes, str) else len(body.genes)
        _check_values(n_cells * n_genes, limits, f"{n_cells:,} cells x {n_genes} genes")


def _check_difference(view: WatchedAtlas, body: DifferentialExpressionQuestion, limits: Limits) -> None:
    if body.engine == "exact":
        plan = view.explain(
            "differential_expression", **{name: choose(view, each) for name, each in body.arguments().items()}
        )
        n_values = plan.decoded * view.n_genes
        _check_values(n_values, limits, f"all values of {plan.cells:,} cells are held by engine='exact':")


def _check_neighbors(view: WatchedAtlas, body: NeighborsQuestion, limits: Limits) -> None:
    listed = body.query if isinstance(body.query, list) else None
    n_points = choose_cells(view, choose(view, body.query)).n_cells if listed is None else len(listed)
    _check_values(5 * n_points * body.k, limits, f"5 columns of {n_points:,} points x k={body.k}")


def _check_markers(view: WatchedAtlas, body: MarkersQuestion, limits: Limits) -> None:
    each = min(body.n_genes or view.n_genes, view.n_genes)
    n_groups = len(group_cells(view, body.by, choose_cells(view, choose(view, body.where))).names)
    _check_values(16 * n_groups * each, limits, f"16 columns of {each} genes of {n_groups} groups")


def _check_values(n_values: int, limits: Limits, described: str) -> None:
    if n_values > limits.values:
        raise TooLargeError(
            f"{described}: {n_values:,} values, this service returns at most {limits.values:,} at a time; choose fewer "
            "cells by where, fewer genes, or groups"
        )


QUESTIONS = {
    kind.path: kind
    for kind in (
        QuestionKind("where", WhereQuestion, _where, _any_size),
        QuestionKind("expression", ExpressionQuestion, _call("expression"), _check_expression),
        QuestionKind(
            "differential-expression",
            DifferentialExpressionQuestion,
            _call("differential_expression"),
            _check_difference,
        ),
        QuestionKind("markers", MarkersQuestion, _call("markers"), _check_markers),
        QuestionKind("neighbors", NeighborsQuestion, _neighbors, _check_neighbors, in_batches=True),
        QuestionKind("abundance", AbundanceQuestion, _call("abundance"), _any_size),
        QuestionKind("counterfactual", CounterfactualQuestion, _call("counterfactual"), _any_size),
        QuestionKind("explain", ExplainQuestion, _explain, _any_size),
    )
}
