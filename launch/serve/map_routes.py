"""The addresses of the map: points, their values, density by tile, a picture, and single cells."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from dist_scvi.launch.serve.content import ARROW, question_tag
from dist_scvi.launch.serve.questions.requests import RowsQuestion, SelectQuestion
from dist_scvi.launch.serve.routes import Asking, Served, is_unchanged, json_response, problems, served_atlas
from dist_scvi.launch.serve.served_map import Color, ServedMap, View

MOST_POINTS = 1_000_000
_PNG = "image/png"


def served_map(request: Request, atlas: str) -> ServedMap:
    """Return the map of the atlas that an address names, which may still have to be made."""
    served = served_atlas(request, atlas)
    return served.map


def ready_map(request: Request, atlas: str) -> ServedMap:
    """Return the map of an atlas if it is there."""
    found = served_map(request, atlas)
    if not found.is_ready:
        found.start()
        raise HTTPException(503, "the map is being made: see the state of the map", {"Retry-After": "2"})
    return found


def chosen_view(
    view: Annotated[
        str | None,
        Query(
            max_length=100,
            description="x0,y0,x1,y1 in whole numbers from 0 to 65535; all by default",
            examples=["0,0,32768,32768"],
        ),
    ] = None,
) -> View:
    """Read a rectangle of the map."""
    if view is None:
        return View()
    try:
        x0, y0, x1, y1 = map(int, view.split(","))
    except ValueError:
        raise ValueError(f"view={view[:60]!r}: four whole numbers x0,y0,x1,y1 are needed") from None
    return View(x0, y0, x1, y1)


def chosen_color(
    column: Annotated[str | None, Query(max_length=1_000, description="Colour by this obs column")] = None,
    gene: Annotated[str | None, Query(max_length=1_000, description="Colour by the expression of this gene")] = None,
    *,
    uncertainty: Annotated[bool, Query(description="The uncertainty of the expression instead")] = False,
) -> Color | None:
    """Read by what cells are coloured."""
    if column is not None and gene is not None:
        raise ValueError("column and gene are both given: colour by one of them")
    if gene is not None:
        return Color("uncertainty" if uncertainty else "gene", gene)
    return None if column is None else Color("column", column)


Map = Annotated[ServedMap, Depends(ready_map)]
AView = Annotated[View, Depends(chosen_view)]
AColor = Annotated[Color | None, Depends(chosen_color)]
Where = Annotated[str | None, Query(max_length=100_000, description="Only these cells: a filter over obs columns")]
Most = Annotated[int, Query(ge=1, le=MOST_POINTS, description="About as many points at most, a uniform sample")]
Bins = Annotated[int, Query(ge=1, le=2048)]


map_router = APIRouter(prefix="/v1/{atlas}/map", tags=["map"])


@map_router.get("", responses=problems(404, 422))
async def describe_map(found: Annotated[ServedMap, Depends(served_map)], served: Served, request: Request) -> Response:
    """Describe the map; it is made when it is first requested, and until then its progress is returned."""
    found.start()
    content = found.description()
    if content["state"] == "failed":
        raise HTTPException(503, content["problem"])
    return json_response(request, content, digest=served.atlas.digest if content["state"] == "ready" else "")


@map_router.get("/points", responses=problems(404, 422, 503))
async def read_points(
    found: Map, asker: Asking, request: Request, view: AView, where: Where = None, most: Most = MOST_POINTS
) -> Response:
    """Return coordinates of cells, random in order: any prefix is a uniform sample of the cells in view."""
    if same := _unchanged(found, request, ARROW):
        return same
    points, steps = await asker.run(found.points, view, most, where)
    columns = {"x": np.ascontiguousarray(steps[:, 0]), "y": np.ascontiguousarray(steps[:, 1])}
    return _arrow(found, request, columns, {"n_in_view": points.n_in_view})


@map_router.get("/values", responses=problems(404, 422, 503))
async def read_values(
    found: Map,
    asker: Asking,
    request: Request,
    view: AView,
    color: AColor,
    where: Where = None,
    most: Most = MOST_POINTS,
) -> Response:
    """Return the values of the same points in the same order, as whole numbers, 65535 where there is none."""
    if color is None:
        raise ValueError("column or gene is needed: by what are the cells coloured?")
    if same := _unchanged(found, request, ARROW):
        return same
    values = await asker.run(found.values, view, most, where, color)
    described = await asker.run(found.describe_values, values, color)
    return _arrow(found, request, {"value": values.value_n}, described)


@map_router.get("/tiles", responses=problems(404, 422, 503))
async def read_tiles(
    found: Map,
    asker: Asking,
    request: Request,
    view: AView,
    color: AColor,
    where: Where = None,
    width: Bins = 256,
    height: Bins = 256,
) -> Response:
    """Count all cells in bins, row by row from low y; with a colour also its value, from a uniform sample."""
    if same := _unchanged(found, request, ARROW):
        return same
    counts, colors, described = await asker.run(found.tiles, view, width, height, where, color)
    columns = {"count": counts.ravel()} | ({} if color is None else {"value": colors.ravel()})
    return _arrow(found, request, columns, described)


@map_router.get(
    "/picture", responses={200: {"content": {_PNG: {}}}, **problems(404, 422, 503)}, response_class=Response
)
async def draw_picture(
    found: Map,
    asker: Asking,
    request: Request,
    view: AView,
    color: AColor,
    where: Where = None,
    width: Bins = 512,
    height: Bins = 512,
) -> Response:
    """Draw the density as a PNG; the header ``Map-Values`` describes the colours."""
    if same := _unchanged(found, request, _PNG):
        return same
    png, described = await asker.run(found.picture, view, width, height, where, color)
    return Response(
        png, media_type=_PNG, headers={**_headers(found, request, _PNG), "Map-Values": json.dumps(described)}
    )


@map_router.get("/cell", responses=problems(404, 422, 503))
async def find_cell(
    found: Map,
    asker: Asking,
    request: Request,
    x: Annotated[float, Query(ge=-65_535, le=131_070)] = 0.0,
    y: Annotated[float, Query(ge=-65_535, le=131_070)] = 0.0,
    radius: Annotated[float, Query(gt=0, le=131_070)] = 1_000.0,
    row: Annotated[int | None, Query(ge=0, description="This row instead of the nearest")] = None,
    where: Where = None,
) -> Response:
    """Return the cell nearest to a point of the map, or a row: its name, coordinates and columns of obs."""
    cell = await asker.run(found.cell, x, y, radius, row, where)
    if cell is None:
        raise HTTPException(404, "no cell is so near")
    return json_response(request, cell, digest=found.digest)


@map_router.post("/rows", responses=problems(404, 422, 503))
async def locate_rows(found: Map, asker: Asking, request: Request, body: RowsQuestion) -> Response:
    """Return the coordinates of rows of the atlas."""
    steps = await asker.run(found.locate, body.rows)
    return json_response(request, {"x": steps[:, 0].tolist(), "y": steps[:, 1].tolist()})


@map_router.post("/select", responses=problems(404, 422, 503))
async def count_selection(found: Map, asker: Asking, request: Request, body: SelectQuestion) -> Response:
    """Count the cells of a selection; with `by` also those of each category of an obs column, and all of these."""
    return json_response(request, await asker.run(found.count, body.polygon, body.where, body.within, body.by))


def _headers(found: ServedMap, request: Request, content_type: str) -> dict[str, str]:
    tag = question_tag(found.digest, str(request.url.path), dict(request.query_params), content_type)
    return {"Cache-Control": "no-cache", "Vary": "Accept, Authorization", "ETag": str(tag)}


def _unchanged(found: ServedMap, request: Request, content_type: str) -> Response | None:
    headers = _headers(found, request, content_type)
    return Response(status_code=304, headers=headers) if is_unchanged(request, headers["ETag"]) else None


def _arrow(
    found: ServedMap, request: Request, columns: Mapping[str, NDArray[Any]], described: Mapping[str, Any]
) -> Response:
    import pyarrow as pa

    table = pa.table(dict(columns)).replace_schema_metadata({b"dist_scvi": json.dumps(described).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Response(sink.getvalue().to_pybytes(), media_type=ARROW, headers=_headers(found, request, ARROW))
