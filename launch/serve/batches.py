"""Questions that arrive together: equal ones are answered once, and points whose neighbours are searched as one."""

from collections.abc import Sequence

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.serve.asking import Asked
from dist_scvi.launch.serve.limits import Limits
from dist_scvi.launch.serve.questions import answer_question
from dist_scvi.launch.serve.watch import CancelledError, Watch


def answer_together(items: Sequence[tuple[Asked, Watch]], limits: Limits) -> list[Answer | Exception]:
    """Answer several questions in the calling thread; one that is refused does not affect the others."""
    answers: list[Answer | Exception | None] = [None] * len(items)
    first: dict[str, int] = {}
    for place, (asked, watch) in enumerate(items):
        before = first.get(asked.tag) if asked.tag else None
        if before is not None and isinstance(found := answers[before], Answer):
            answers[place] = found
            continue
        first[asked.tag] = place
        try:
            answers[place] = answer_question(asked.served, asked.kind, asked.body, limits, watch)
        except (ValueError, CancelledError) as error:
            answers[place] = error
    return [answer for answer in answers if answer is not None]
