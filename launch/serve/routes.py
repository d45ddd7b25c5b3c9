"""The addresses of the service: atlases, their genes and columns, questions, and jobs."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import Response, StreamingResponse

from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.serve.content import (
    ARROW,
    CSV,
    JSON,
    PIECE_ROWS,
    NotAcceptableError,
    answer_headers,
    choose_type,
    encode,
    question_tag,
)
from dist_scvi.launch.serve.guard import UPLOAD_TYPES
from dist_scvi.launch.serve.questions.asking import Asked, Asker
from dist_scvi.launch.serve.questions.kinds import QUESTIONS, UPLOADS, QuestionKind
from dist_scvi.launch.serve.questions.requests import NewCellsQuestion, Question
from dist_scvi.launch.serve.served import ServedAtlas

_PROBLEM = {
    "application/json": {
        "schema": {"type": "object", "required": ["detail"], "properties": {"detail": {}}},
        "example": {"detail": "obs column 'cell_typ' does not exist: did you mean 'cell_type'?"},
    }
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of error answers for the OpenAPI file."""
    meanings = {
        401: "A valid bearer token is needed",
        404: "There is no such atlas, column or job",
        406: "No type of content that the client accepts is available",
        413: "The body is too large",
        415: "The body is of another type",
        422: "The question is refused: what was found, and what is needed",
        429: "The client asks too many questions at a time",
        503: "The service answers as many questions as it can",
    }
    return {status: {"description": meanings[status], "content": _PROBLEM} for status in (401, *statuses)}


def served_atlas(request: Request, atlas: str) -> ServedAtlas:
    """Return the atlas that an address names."""
    found: ServedAtlas | None = request.app.state.atlases.get(atlas)
    if found is None:
        raise HTTPException(404, f"there is no atlas of this name: {', '.join(request.app.state.atlases)}")
    return found


def asker_of(request: Request) -> Asker:
    """Return what answers the questions of this app."""
    asker: Asker = request.app.state.asker
    return asker


Served = Annotated[ServedAtlas, Depends(served_atlas)]
Asking = Annotated[Asker, Depends(asker_of)]

router = APIRouter(prefix="/v1", tags=["atlas"])


def json_response(request: Request, content: Any, *, digest: str = "") -> Response:
    """Return plain values as JSON, with an ETag if an atlas determines them."""
    headers = {"Cache-Control": "no-cache", "Vary": "Accept, Authorization"}
    if digest:
        tag = question_tag(digest, str(request.url.path), dict(request.query_params), JSON)
        headers["ETag"] = str(tag)
        if is_unchanged(request, tag):
            return Response(status_code=304, headers=headers)
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    return Response(body, media_type=JSON, headers=headers)


def is_unchanged(request: Request, tag: str | None) -> bool:
    """Return whether the client has the answer with this ETag."""
    held = request.headers.get("if-none-match", "")
    return tag is not None and (
        held.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in held.split(","))
    )


@router.get("/atlases", responses=problems())
async def list_atlases(request: Request) -> Response:
    """List the atlases of this service."""
    return json_response(request, [_described(served) for served in request.app.state.atlases.values()])


@router.get("/jobs/{job}", responses=problems(404), tags=["jobs"])
async def job_status(job: str, asker: Asking, request: Request) -> Response:
    """Return the state of a job: ``running``, ``done``, ``failed`` or ``cancelled``, with the cells read so far."""
    status = await asker.board("status", job)
    if status is None:
        raise HTTPException(404, "there is no such job: it was dropped, or never was")
    return json_response(request, status)


@router.get("/jobs/{job}/answer", responses=problems(404, 406), tags=["jobs"])
async def job_answer(job: str, asker: Asking, request: Request) -> Response:
    """Return the answer of a finished job."""
    content_type = choose_type(request.headers.get("accept"))
    found = await asker.board("answer", job)
    if found is None:
        raise HTTPException(404, "there is no such answer: see the state of the job")
    answer, tag = found
    return await respond(asker, answer, content_type, question_tag(tag, "", {}, content_type))


@router.delete("/jobs/{job}", status_code=204, responses=problems(404), tags=["jobs"])
async def cancel_job(job: str, asker: Asking) -> Response:
    """Cancel a job, or drop its answer."""
    if not await asker.board("cancel", job):
        raise HTTPException(404, "there is no such job: it was dropped, or never was")
    return Response(status_code=204)


@router.get("/{atlas}", responses=problems(404))
async def describe_atlas(served: Served, request: Request) -> Response:
    """Describe an atlas: its cells, genes, obs columns, batches, labels and leaves, and the questions to it."""
    return json_response(request, _described(served), digest=served.atlas.digest)


def _described(served: ServedAtlas) -> dict[str, Any]:
    return {**served.description, "questions": [*QUESTIONS, *UPLOADS]}


@router.get("/{atlas}/genes", responses=problems(404, 422))
async def find_genes(
    served: Served,
    asker: Asking,
    request: Request,
    q: Annotated[str, Query(max_length=200, description="Part of a name or symbol", examples=["CD3"])] = "",
    limit: Annotated[int, Query(ge=1, le=100_000)] = 20,
) -> Response:
    """Find genes by a part of their name or symbol, those first that begin with it."""
    found = await asker.run(served.find_genes, q, limit)
    return json_response(request, found, digest=served.atlas.digest)


@router.get("/{atlas}/obs/{column}", responses=problems(404))
async def summarize_column(served: Served, asker: Asking, request: Request, column: str) -> Response:
    """Return the categories of an obs column with their cells, or the range and quantiles of its numbers."""
    try:
        found = await asker.run(served.summarize_column, column)
    except ValueError as error:
        raise HTTPException(404, served.hide_place(str(error))) from error
    return json_response(request, found, digest=served.atlas.digest)


def _question_endpoint(kind: QuestionKind) -> Callable[..., Any]:
    async def ask(served: Served, asker: Asking, request: Request, body: Question) -> Response:
        tag = question_tag(served.atlas.digest, kind.path, body.model_dump(mode="json"), "")
        return await _answered(request, asker, Asked(request.scope["client_key"], served, kind, body, tag or ""))

    ask.__annotations__["body"] = kind.body  # FastAPI reads it: the body and its schema differ from kind to kind
    ask.__name__ = kind.path.replace("-", "_")
    return ask


def _upload_endpoint(kind: QuestionKind) -> Callable[..., Any]:
    async def ask(served: Served, asker: Asking, request: Request, question: NewCellsQuestion) -> Response:
        if request.headers.get("content-type", "").split(";")[0].strip() not in UPLOAD_TYPES:
            raise HTTPException(415, f"the body is an .h5ad file, of type {UPLOAD_TYPES[0]}")
        choose_type(request.headers.get("accept"))  # before the file is sent
        client = request.scope["client_key"]
        with asker.uploading(client):
            path, file_digest = await receive_file(request)
        given = {**question.model_dump(mode="json"), "file": file_digest}
        tag = question_tag(served.atlas.digest, kind.path, given, "")
        question.set_file(path)
        asked = Asked(client, served, kind, question, tag or "", on_end=path.unlink)
        return await _answered(request, asker, asked)

    ask.__annotations__["question"] = Annotated[kind.body, Query()]
    ask.__name__ = kind.path.replace("-", "_")
    return ask


async def receive_file(request: Request) -> tuple[Path, str]:
    """Write the body of a request to a file of its own, piece by piece; return its path and SHA-256.

    The guard of the app bounds its size and the pauses of the client.
    """
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(prefix="dist-scvi-upload-", suffix=".h5ad", delete=False) as file:
        try:
            async for piece in request.stream():
                digest.update(piece)
                file.write(piece)
        except BaseException:
            Path(file.name).unlink()
            raise
    return Path(file.name), digest.hexdigest()


async def _answered(request: Request, asker: Asker, asked: Asked) -> Response:
    """Answer a question, or return the job that it became."""
    try:
        content_type = choose_type(request.headers.get("accept"))
        typed = question_tag(asked.tag, "", {}, content_type) if asked.tag else None
        unchanged = is_unchanged(request, typed)
    except NotAcceptableError:
        asked.end()
        raise
    if unchanged:
        asked.end()
        return Response(status_code=304, headers={"ETag": str(typed)})
    found = await asker.ask(asked, lambda: until_gone(request), preferred_wait(request))
    if isinstance(found, Answer):
        return await respond(asker, found, content_type, typed)
    return Response(
        json.dumps(await asker.board("status", found)),
        status_code=202,
        media_type=JSON,
        headers={"Location": f"/v1/jobs/{found}", "Retry-After": "1", "Cache-Control": "no-store"},
    )


def _responses(*more: int) -> dict[int | str, dict[str, Any]]:
    names = ("ETag", "Answer-Query", "Answer-Engine", "Answer-Digest", "Answer-Cells", "Answer-Rows")
    table = {
        "type": "object",
        "properties": {
            "provenance": {"type": "object"},
            "columns": {"type": "array", "items": {"type": "string"}},
            "rows": {"type": "array", "items": {"type": "object"}},
        },
    }
    return {
        200: {
            "description": "The table, with the provenance of its numbers",
            "headers": {name: {"schema": {"type": "string"}} for name in names},
            "content": {
                JSON: {"schema": table},
                ARROW: {"schema": {"type": "string", "format": "binary"}},
                CSV: {"schema": {"type": "string"}},
            },
        },
        202: {"description": "The answer takes longer: the question became a job, see Location"},
        304: {"description": "The client has the answer, as its If-None-Match says"},
        **problems(404, 406, 413, *more, 422, 429, 503),
    }


for _kind in QUESTIONS.values():
    router.add_api_route(
        f"/{{atlas}}/{_kind.path}",
        _question_endpoint(_kind),
        methods=["POST"],
        summary=str(_kind.body.__doc__).splitlines()[0],
        responses=_responses(),
    )
for _kind in UPLOADS.values():
    router.add_api_route(
        f"/{{atlas}}/{_kind.path}",
        _upload_endpoint(_kind),
        methods=["POST"],
        summary=str(_kind.body.__doc__).splitlines()[0],
        responses=_responses(415),
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "An .h5ad file with the raw counts of the new cells",
                "content": {UPLOAD_TYPES[0]: {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )


async def respond(asker: Asker, answer: Answer, content_type: str, tag: str | None) -> Response:
    """Return an answer in the requested type; a large one is encoded while it is sent."""
    headers = {**answer_headers(answer), "Cache-Control": "no-cache", "Vary": "Accept, Authorization"}
    if tag:
        headers["ETag"] = tag
    if len(answer.table) > PIECE_ROWS:
        return StreamingResponse(encode(answer, content_type), media_type=content_type, headers=headers)
    body = await asker.run(lambda: b"".join(encode(answer, content_type)))
    return Response(body, media_type=content_type, headers=headers)


async def until_gone(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def preferred_wait(request: Request) -> float | None:
    """Return how long the client waits: ``Prefer: respond-async`` or ``Prefer: wait=SECONDS`` (RFC 7240)."""
    for preference in request.headers.get("prefer", "").lower().split(","):
        name, _, value = preference.strip().partition("=")
        if name == "respond-async":
            return 0.0
        if name == "wait" and value.isdecimal():
            return float(value[:6])
    return None
