"""The questions of the service: one table of addresses, methods of the atlas, and bodies."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from pydantic import ValidationError

from dist_scvi.atlas.cell_map.polygon import cells_in_polygon
from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.cell_values import chosen_rows
from dist_scvi.atlas.queries.groups import group_cells
from dist_scvi.atlas.queries.where import choose_cells
from dist_scvi.launch.serve.limits import Limits
from dist_scvi.launch.serve.questions.requests import (
    AbundanceQuestion,
    AnnotateQuestion,
    CounterfactualQuestion,
    DifferentialExpressionQuestion,
    ExplainQuestion,
    ExpressionQuestion,
    LatentQuestion,
    MarkersQuestion,
    NeighborsQuestion,
    NewNeighborsQuestion,
    Polygon,
    PredictQuestion,
    Question,
    WhereQuestion,
    describe_problems,
)
from dist_scvi.launch.serve.served import ServedAtlas
from dist_scvi.launch.serve.watch import TooLargeError, Watch, WatchedAtlas, watching
from dist_scvi.loaders.arrays.obs_columns import READ_ERRORS
from dist_scvi.loaders.stores.open import open_store


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
    try:
        with watching(watch):
            watch.check()
            genes = getattr(body, "genes", ())
            if not isinstance(genes, str) and len(genes) > limits.genes:
                raise TooLargeError(f"{len(genes)} genes are named: this service takes at most {limits.genes} at once")
            kind.check(served.atlas, body, limits)
            answer = kind.answer(served.atlas, body)
    except ValueError as error:
        found = body.hide_place(served.hide_place(str(error)))
        raise TooLargeError(found) if isinstance(error, TooLargeError) else ValueError(found) from error
    return replace(answer, atlas=served.name, notes=tuple(map(served.hide_place, answer.notes)))


def choose(atlas: WatchedAtlas, cells: Any) -> Any:
    """Return cells as the atlas takes them: those of a polygon as a set.

    Raises
    ------
    ValueError
        If the atlas has no map, or no cell is inside.
    """
    if not isinstance(cells, Polygon):
        return cells
    within = None if cells.where is None else choose_cells(atlas, cells.where)
    return cells_in_polygon(atlas.cell_map, cells.polygon, within)


def _neighbors(atlas: WatchedAtlas, body: NeighborsQuestion) -> Answer:
    arguments = {name: choose(atlas, value) for name, value in body.arguments().items()}
    # A text is a filter here; for the method of the atlas it may also be the path of a store.
    if isinstance(body.query, str):
        arguments["query"] = choose_cells(atlas, body.query)
    return atlas.neighbors(**arguments)


def _call(method: str) -> Callable[[WatchedAtlas, Question], Answer]:
    """Return a function that calls a method of the atlas with the body as arguments."""

    def call(atlas: WatchedAtlas, body: Question) -> Answer:
        answer: Answer = getattr(atlas, method)(
            **{name: choose(atlas, each) for name, each in body.arguments().items()}
        )
        return answer

    return call


def _explain(atlas: WatchedAtlas, body: ExplainQuestion) -> Answer:
    kind = QUESTIONS.get(body.query.replace("_", "-"))
    if kind is None:
        raise ValueError(f"query={body.query!r}: one of {', '.join(QUESTIONS)} is needed")
    try:
        asked = kind.body.model_validate(body.asked)
    except ValidationError as error:
        raise ValueError(f"{kind.path}: {describe_problems(error.errors())[0]['msg']}") from None
    arguments = {name: choose(atlas, each) for name, each in asked.arguments().items()}
    if isinstance(asked, NeighborsQuestion) and isinstance(asked.query, str):
        arguments["query"] = choose_cells(atlas, asked.query)
    plan = atlas.explain(kind.path.replace("-", "_"), **arguments)
    row = {"query": plan.query, "engine": plan.engine, "cells": plan.cells, "decoded": plan.decoded}
    table = pd.DataFrame([{**row, "bytes": plan.bytes, "seconds": plan.seconds}])
    return Answer("explain", table, plan.engine, "", {"chosen": plan.cells}, atlas.uri, atlas.digest)


def _where(atlas: WatchedAtlas, body: WhereQuestion) -> Answer:
    cells = choose_cells(atlas, body.text)
    sizes = {"chosen": cells.n_cells}
    return Answer("where", cells.clauses, "", "", sizes, atlas.uri, atlas.digest, 0, {"where": cells.text})


def _any_size(atlas: WatchedAtlas, body: Question, limits: Limits) -> None:
    """Accept: the size of the answer does not depend on the question."""


def _check_expression(atlas: WatchedAtlas, body: ExpressionQuestion, limits: Limits) -> None:
    if body.per_cell:
        n_cells = choose_cells(atlas, choose(atlas, body.where)).n_cells
        n_genes = 1 if isinstance(body.genes, str) else len(body.genes)
        _check_values(n_cells * n_genes, limits, f"{n_cells:,} cells x {n_genes} genes")


def _check_difference(atlas: WatchedAtlas, body: DifferentialExpressionQuestion, limits: Limits) -> None:
    if body.engine == "exact":
        plan = atlas.explain(
            "differential_expression", **{name: choose(atlas, each) for name, each in body.arguments().items()}
        )
        n_values = plan.decoded * atlas.n_genes
        _check_values(n_values, limits, f"all values of {plan.cells:,} cells are held by engine='exact':")


def _predict(atlas: WatchedAtlas, body: PredictQuestion) -> Answer:
    text, rows = chosen_rows(atlas, choose(atlas, body.where), body.indices)
    found = atlas.predict(rows, body.soft)
    names = pd.Index(atlas.obs_names(rows))
    table = found if isinstance(found, pd.DataFrame) else pd.DataFrame({"label": found}, index=names)
    sizes, asked = {"all": len(table)}, {"where": text, "soft": body.soft}
    return Answer("predict", table, "classifier", "", sizes, atlas.uri, atlas.digest, 0, asked)


def _annotate(atlas: WatchedAtlas, body: AnnotateQuestion) -> Answer:
    return atlas.annotate(body.file, **body.arguments())


def _neighbors_of_new(atlas: WatchedAtlas, body: NewNeighborsQuestion) -> Answer:
    return atlas.neighbors(body.file, **body.arguments())


def _check_predict(atlas: WatchedAtlas, body: PredictQuestion, limits: Limits) -> None:
    _check_cells(atlas, body, len(atlas.spec.label.categories) if body.soft and atlas.spec.label else 1, limits)


def _check_latent(atlas: WatchedAtlas, body: LatentQuestion, limits: Limits) -> None:
    _check_cells(atlas, body, atlas.n_latent * (1 + body.return_dist), limits)


def _check_cells(atlas: WatchedAtlas, body: PredictQuestion | LatentQuestion, n_columns: int, limits: Limits) -> None:
    listed = body.indices
    n_cells = choose_cells(atlas, choose(atlas, body.where)).n_cells if listed is None else len(listed)
    _check_values(n_cells * n_columns, limits, f"{n_cells:,} cells x {n_columns} columns")


def _check_upload(_atlas: WatchedAtlas, body: AnnotateQuestion | NewNeighborsQuestion, limits: Limits) -> None:
    try:
        n_cells = open_store(body.file, layer=body.layer).n_cells
    except READ_ERRORS as error:
        raise ValueError(f"{body.file} cannot be read: {error}") from error
    if n_cells > limits.cells:
        raise TooLargeError(f"{n_cells:,} new cells: this service takes at most {limits.cells:,} at a time")
    each = 7 if isinstance(body, AnnotateQuestion) else 5 * body.k
    _check_values(each * n_cells, limits, f"{each} values of each of {n_cells:,} new cells")


def _check_neighbors(atlas: WatchedAtlas, body: NeighborsQuestion, limits: Limits) -> None:
    listed = body.query if isinstance(body.query, list) else None
    n_points = choose_cells(atlas, choose(atlas, body.query)).n_cells if listed is None else len(listed)
    _check_values(5 * n_points * body.k, limits, f"5 columns of {n_points:,} points x k={body.k}")


def _check_markers(atlas: WatchedAtlas, body: MarkersQuestion, limits: Limits) -> None:
    each = min(body.n_genes or atlas.n_genes, atlas.n_genes)
    n_groups = len(group_cells(atlas, body.by, choose_cells(atlas, choose(atlas, body.where))).names)
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
        QuestionKind("latent", LatentQuestion, _call("latent"), _check_latent),
        QuestionKind("predict", PredictQuestion, _predict, _check_predict),
        QuestionKind("abundance", AbundanceQuestion, _call("abundance"), _any_size),
        QuestionKind("counterfactual", CounterfactualQuestion, _call("counterfactual"), _any_size),
        QuestionKind("explain", ExplainQuestion, _explain, _any_size),
    )
}

UPLOADS = {
    kind.path: kind
    for kind in (
        QuestionKind("annotate", AnnotateQuestion, _annotate, _check_upload),
        QuestionKind("neighbors-of-new-cells", NewNeighborsQuestion, _neighbors_of_new, _check_upload),
    )
}
"""Questions about a file with new cells."""
