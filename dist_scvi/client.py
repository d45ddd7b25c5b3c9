"""An atlas that a service has: the methods are those of `Atlas`, and so are the answers."""

import inspect
import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from http.client import HTTPException
from pathlib import Path
from typing import Any, Concatenate, ParamSpec
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.query_plan import QueryPlan

P = ParamSpec("P")
_ARROW, _JSON, _H5AD = "application/vnd.apache.arrow.stream", "application/json", "application/x-hdf5"
_TRIES, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 8, 0.25, 5.0
_AGAIN = (429, 500, 502, 503, 504)
"""Status of a service that is busy, or one of whose replicas has just ended: Ray Serve then answers with 500."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        """Refuse: the token would follow to wherever the answer points."""


@dataclass(frozen=True, slots=True, eq=False)
class RemoteCells:
    """Some cells of the atlas of a service; it is accepted wherever cells are."""

    text: str
    n_cells: int
    clauses: pd.DataFrame
    """For each clause of the filter, the cells that fulfil it, and those that fulfil it and all previous ones."""

    def __repr__(self) -> str:
        return f"{self.n_cells:,} cells: {self.text}\n{self.clauses.to_string(index=False)}"


def connect(url: str, token: str | None = None, *, atlas: str | None = None, timeout_s: float = 60.0) -> "RemoteAtlas":
    """Connect to an atlas of a service that ``dist-scvi serve`` runs.

    Parameters
    ----------
    url
        Where the service is, such as ``http://localhost:8321``.
    token
        Bearer token, if the service needs one.
    atlas
        Name of the atlas; not needed if the service has only one.
    timeout_s
        How long the service may be silent.

    Raises
    ------
    ValueError
        If the service has no such atlas, or several and none is named.
    PermissionError
        If the token is missing or wrong.
    ConnectionError
        If there is no service.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"url={url!r}: an address such as http://localhost:8321 is needed")
    connection = _Connection(url.rstrip("/"), token, timeout_s)
    found = {each["name"]: each for each in connection.get("/v1/atlases")}
    if atlas is None and len(found) != 1:
        raise ValueError(f"{url} has {len(found)} atlases: name one of {', '.join(found)} with atlas=")
    name = atlas or next(iter(found))
    if name not in found:
        raise ValueError(f"{url} has no atlas {name!r}: it has {', '.join(found)}")
    return RemoteAtlas(connection, found[name])


def _asked(path: str, method: Callable[Concatenate[Any, P], Answer]) -> Callable[Concatenate["RemoteAtlas", P], Answer]:
    """Return the method that asks a service what `method` of an atlas computes, with the same arguments."""
    signature = inspect.signature(method)

    @wraps(method)
    def ask(atlas: "RemoteAtlas", /, *positional: P.args, **named: P.kwargs) -> Answer:
        arguments = dict(signature.bind(atlas, *positional, **named).arguments)
        del arguments[next(iter(signature.parameters))]
        return atlas.ask(path, arguments)

    return ask


class RemoteAtlas:
    """An atlas of a service, opened by `connect`."""

    def __init__(self, connection: "_Connection", description: Mapping[str, Any]) -> None:
        self._connection, self.description = connection, dict(description)
        self.name, self.digest = str(description["name"]), str(description["digest"])
        self.n_cells, self.n_genes = int(description["n_cells"]), int(description["n_genes"])
        self.n_latent = int(description["n_latent"])

    expression = _asked("expression", Atlas.expression)
    differential_expression = _asked("differential-expression", Atlas.differential_expression)
    markers = _asked("markers", Atlas.markers)
    abundance = _asked("abundance", Atlas.abundance)
    counterfactual = _asked("counterfactual", Atlas.counterfactual)

    latent = _asked("latent", Atlas.latent)

    def predict(
        self,
        indices: Any = None,
        soft: bool = False,  # noqa: FBT001, FBT002 - the position in scvi-tools
        *,
        where: Any = None,
    ) -> NDArray[np.object_] | pd.DataFrame:
        """Predict the labels of cells; see `Atlas.predict`."""
        table = self.ask("predict", {"indices": indices, "soft": soft, "where": where}).table
        return table if soft else table["label"].to_numpy(dtype=object)

    @wraps(Atlas.neighbors)
    def neighbors(self, query: Any, k: int = 15, **named: Any) -> Answer:
        """See `Atlas.neighbors`; new cells are an AnnData or the path of an .h5ad file."""
        if _is_new(query):
            return self._ask_about(query, "neighbors-of-new-cells", {"k": k, **named})
        return self.ask("neighbors", {"query": query, "k": k, **named})

    @wraps(Atlas.annotate)
    def annotate(self, new_counts: Any, label: str | None = None, **named: Any) -> Answer:
        """See `Atlas.annotate`; the cells are an AnnData or the path of an .h5ad file."""
        return self._ask_about(new_counts, "annotate", {"label": label, **named})

    @property
    def uri(self) -> str:
        """Address of the atlas."""
        return f"{self._connection.url}/v1/{quote(self.name)}"

    @property
    def var_names(self) -> tuple[str, ...]:
        """Genes, in the order of the model."""
        return tuple(self.var.index)

    @property
    def var(self) -> pd.DataFrame:
        """Columns of the genes."""
        found = self._connection.get(f"/v1/{quote(self.name)}/genes?limit=100000")
        table = pd.DataFrame(found).sort_values("index", kind="stable")
        return table.set_index("name").drop(columns="index").rename_axis(None)

    def where(self, text: str) -> RemoteCells:
        """Choose cells by a filter, see `Atlas.where`, and count them."""
        answer = self.ask("where", {"text": text})
        return RemoteCells(text, int(answer.n_cells["chosen"]), answer.table)

    def explain(self, query: str, /, **arguments: Any) -> QueryPlan:
        """Estimate the cost of a query; see `Atlas.explain`."""
        row = self.ask("explain", {"query": query, "asked": arguments}).table.iloc[0].to_dict()
        return QueryPlan(**{str(key): value.item() if hasattr(value, "item") else value for key, value in row.items()})

    def summarize_column(self, key: str) -> dict[str, Any]:
        """Return the categories of an obs column with their cells, or the range and quantiles of its numbers."""
        found: dict[str, Any] = self._connection.get(f"/v1/{quote(self.name)}/obs/{quote(key, safe='')}")
        return found

    def ask(self, path: str, arguments: Mapping[str, Any]) -> Answer:
        """Ask a question by the last part of its address; wait for its end if it becomes a job.

        Raises
        ------
        ValueError
            If the service refuses it.
        """
        body = json.dumps({key: _plain(value) for key, value in arguments.items()}).encode()
        return self._connection.answer(f"/v1/{quote(self.name)}/{path}", body, _JSON)

    def _ask_about(self, new_cells: Any, path: str, arguments: Mapping[str, Any]) -> Answer:
        """Send new cells as a file, and ask about them."""
        given = {key: _plain(value) for key, value in arguments.items() if value is not None}
        query = urlencode(
            {key: str(value).lower() if isinstance(value, bool) else value for key, value in given.items()}
        )
        with _as_file(new_cells) as file:
            return self._connection.answer(f"/v1/{quote(self.name)}/{path}?{query}", file, _H5AD)

    def __repr__(self) -> str:
        return f"Atlas {self.name} of {self.n_cells:,} cells and {self.n_genes:,} genes at {self._connection.url}"


class _Connection:
    """Requests to a service. All of them only read, so each may be repeated."""

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        self.url, self._timeout_s = url, timeout_s
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._opener = urllib.request.build_opener(_NoRedirect)

    def get(self, path: str) -> Any:
        """Return plain values."""
        return json.loads(self._request(path, {"Accept": _JSON}).body)

    def answer(self, path: str, body: bytes | Path, kind: str) -> Answer:
        """Ask a question and wait for its answer."""
        found = self._request(path, {"Accept": _ARROW, "Content-Type": kind}, body)
        if found.status != 202:
            return _read_answer(found.body)
        try:
            self._wait(found.location)
        except BaseException:  # an interrupt, above all: nobody will fetch the answer
            self._request(found.location, {}, method="DELETE")
            raise
        return _read_answer(self._request(f"{found.location}/answer", {"Accept": _ARROW}).body)

    def _wait(self, job: str) -> None:
        """Wait for the end of a job.

        Raises
        ------
        ValueError
            If it failed.
        """
        pause_s = 0.1
        while (status := self.get(job))["state"] == "running":
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)
        if status["state"] != "done":
            raise ValueError(status.get("problem") or f"the question was {status['state']}")

    def _request(
        self, path: str, headers: Mapping[str, str], body: bytes | Path | None = None, method: str | None = None
    ) -> "_Response":
        for attempt in range(_TRIES):
            with body.open("rb") if isinstance(body, Path) else nullcontext(body) as data:
                request = urllib.request.Request(self.url + path, data, {**self._headers, **headers}, method=method)
                if isinstance(body, Path):
                    request.add_header("Content-Length", str(body.stat().st_size))
                try:
                    with self._opener.open(request, timeout=self._timeout_s) as response:
                        return _Response(response.status, response.headers.get("Location", ""), response.read())
                except urllib.error.HTTPError as error:
                    if error.code not in _AGAIN or attempt == _TRIES - 1:
                        raise _problem(error) from None
                except (OSError, HTTPException) as error:
                    if attempt == _TRIES - 1:
                        raise ConnectionError(f"no answer from {self.url}: {error}") from error
            time.sleep(min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S))
        raise AssertionError("the last attempt returns or raises")


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    location: str
    body: bytes


def _read_answer(body: bytes) -> Answer:
    import pyarrow as pa

    with pa.ipc.open_stream(body) as reader:
        return Answer.from_arrow(reader.read_all())


def _is_new(query: Any) -> bool:
    return (
        isinstance(query, Path) or hasattr(query, "write_h5ad") or (isinstance(query, str) and query.endswith(".h5ad"))
    )


@contextmanager
def _as_file(new_cells: Any) -> Iterator[Path]:
    """Yield the path of an .h5ad file with the cells.

    Raises
    ------
    ValueError
        If they are neither an AnnData nor such a file.
    """
    if hasattr(new_cells, "write_h5ad"):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cells.h5ad"
            new_cells.copy().write_h5ad(file)
            yield file
        return
    if not _is_new(new_cells) or not Path(new_cells).is_file():
        raise ValueError(
            f"{new_cells!r}: an AnnData or the path of an .h5ad file is needed to send new cells to a service"
        )
    yield Path(new_cells)


def _problem(error: urllib.error.HTTPError) -> Exception:
    """Return the error that the atlas itself would raise."""
    try:
        detail = json.loads(error.read(1 << 16))["detail"]
    except (ValueError, KeyError, TypeError, OSError):
        detail = error.reason
    if isinstance(detail, list):
        detail = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in detail)
    if error.code in (401, 403):
        return PermissionError(detail)
    return (ValueError if 400 <= error.code < 500 else ConnectionError)(detail)


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold; a mask becomes rows."""
    if isinstance(value, RemoteCells):
        return value.text
    if isinstance(value, np.ndarray | pd.Series | pd.Index):
        array = np.asarray(value)
        return np.flatnonzero(array).tolist() if array.dtype == bool else array.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | range):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value
