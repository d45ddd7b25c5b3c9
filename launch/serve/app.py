"""Build the app of a service."""

import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

import dist_scvi
from dist_scvi.launch.serve.content import NotAcceptableError
from dist_scvi.launch.serve.guard import Guard, ServiceMetrics
from dist_scvi.launch.serve.limits import Service
from dist_scvi.launch.serve.map_routes import map_router
from dist_scvi.launch.serve.questions.asking import Asker, Board, BusyError, Together, local_board
from dist_scvi.launch.serve.questions.jobs import JobBoard
from dist_scvi.launch.serve.questions.requests import describe_problems
from dist_scvi.launch.serve.routes import router
from dist_scvi.launch.serve.served import open_served
from dist_scvi.launch.serve.watch import CancelledError

PAGE = Path(__file__).with_name("page") / "public"

_DESCRIPTION = """Questions to minified atlases of SCVI and SCANVI: expected expression, differential expression,
markers and more, from the model and without the counts. Answers are tables in JSON, Arrow IPC or CSV, as the Accept
header asks; they carry the number of cells, the engine and the digest of the atlas, and are the same to the last bit
when repeated."""


def build_app(service: Service, *, board: Board | None = None, together: Together | None = None) -> FastAPI:
    """Open the atlases of a service and return its app, which runs under any ASGI server.

    Parameters
    ----------
    board
        Where long questions go on; by default in this process.
    together
        How questions are answered in batches; see `Asker`.

    Raises
    ------
    ValueError
        If an atlas cannot be opened.
    """
    asker = Asker(service, board or local_board(JobBoard(service.limits)), together)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        asker.close()

    app = FastAPI(
        title="dist_scvi",
        summary="A minified atlas over HTTP",
        description=_DESCRIPTION,
        version=dist_scvi.__version__,
        license_info={"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        docs_url=None,  # its pages load scripts from another site
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=_PROBLEMS,
    )
    metrics = ServiceMetrics()
    app.state.service, app.state.asker, app.state.atlases = service, asker, open_served(service)
    app.include_router(router)
    app.include_router(map_router)
    _add_operations(app, metrics)
    if (PAGE / "index.html").is_file():
        app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    app.add_middleware(Guard, service=service, metrics=metrics)
    return app


def _add_operations(app: FastAPI, metrics: ServiceMetrics) -> None:
    """Add the addresses for those who run the service."""

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, str | int]:
        """Return that the service is alive, and the questions that it is answering."""
        return {"status": "ok", "questions": app.state.asker.n_running}

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def read_metrics() -> Response:
        """Return metrics in the text format of Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _problem(status: int, detail: object, headers: Mapping[str, str] | None = None) -> Response:
    # ASCII: a text of a client may hold half of a pair of surrogates, which UTF-8 does not have.
    body = json.dumps({"detail": detail}, default=str).encode()
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


async def _http_problem(_request: Request, error: HTTPException) -> Response:
    return _problem(error.status_code, error.detail, error.headers)


async def _invalid(_request: Request, error: RequestValidationError) -> Response:
    return _problem(422, describe_problems(error.errors()))


async def _not_acceptable(_request: Request, error: Exception) -> Response:
    return _problem(406, str(error))


async def _refused(_request: Request, error: Exception) -> Response:
    return _problem(422, str(error))


async def _busy(_request: Request, error: BusyError) -> Response:
    return _problem(429 if error.of_client else 503, str(error), {"Retry-After": "1"})


async def _left(_request: Request, _error: Exception) -> Response:
    return _problem(499, "the client has left")


_PROBLEMS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    HTTPException: _http_problem,
    RequestValidationError: _invalid,
    NotAcceptableError: _not_acceptable,
    ValueError: _refused,
    BusyError: _busy,
    CancelledError: _left,
}
