"""Second pass of minification: gather the rows of each file of the atlas from all pieces, and order them.

Shape letters in this file
    n   cells of a file and the rest of its neighbourhoods
    c   neighbourhoods
    k   latent dimensions
    p   pieces
"""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.store.manifest import LogVariance
from dist_scvi.atlas.store.names import (
    CELLS,
    FACTOR,
    LEAF,
    LIBRARY,
    LOG_NORMALIZER,
    LOG_VARIANCE_CODE,
    QZM,
    QZV,
    SOURCE_ROW,
)
from dist_scvi.atlas.writer.columns import KeptColumn
from dist_scvi.atlas.writer.encode_pieces import PieceIndex, piece_folder, read_records
from dist_scvi.atlas.writer.plan import AtlasPlan
from dist_scvi.atlas.writer.work import AtlasWork, Listed
from dist_scvi.loaders.arrays.codecs import encode_texts
from dist_scvi.loaders.arrays.objects import Objects
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.order.keyed_hash import hash_rows

_ORDER_KEY = 104
_CODES = 255


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Positions of the cells of each neighbourhood in the atlas and in each piece."""

    offset_c: NDArray[np.int64]
    """First row of each neighbourhood, and the end."""
    indices: Sequence[PieceIndex]
    log_variance: LogVariance

    def neighbourhoods(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first neighbourhood of rows ``[start, stop)``, and the last + 1."""
        first = int(np.searchsorted(self.offset_c, start, side="right")) - 1
        return first, int(np.searchsorted(self.offset_c, stop, side="left"))


def row_order(indices: Sequence[PieceIndex]) -> RowOrder:
    """Join the indices of all pieces."""
    size_c = np.sum([np.diff(index.record_c) for index in indices], axis=0)
    low_k = np.min([index.log_variance[0] for index in indices], axis=0)
    high_k = np.max([index.log_variance[1] for index in indices], axis=0)
    step_k = (high_k - low_k) / _CODES
    error = float(np.expm1(step_k.max() / 4))
    log_variance = LogVariance(offset=tuple(low_k.tolist()), step=tuple(step_k.tolist()), max_relative_sd_error=error)
    return RowOrder(np.concatenate([[0], np.cumsum(size_c)]).astype(np.int64), indices, log_variance)


def own_columns(plan: AtlasPlan) -> dict[str, np.dtype[Any]]:
    """Return the columns that the atlas adds to obs, and their types."""
    row_type, leaf_type = (
        ("<u4" if plan.n_cells < 1 << 32 else "<i8"),
        ("<u2" if plan.leaves.n_leaves < 1 << 16 else "<u4"),
    )
    found = {LIBRARY: "<f4", FACTOR: "<f4", LOG_NORMALIZER: "<f4", SOURCE_ROW: row_type, LEAF: leaf_type}
    if not plan.spec.own_library:
        del found[FACTOR]
    if not plan.has_normalizer:
        del found[LOG_NORMALIZER]
    return {name: np.dtype(kind) for name, kind in found.items()}


def cells_mark(number: int) -> str:
    """Return the name of the mark of a finished file of rows."""
    return f"marks/cells/{number:06d}.json"


def write_cells(plan: AtlasPlan, work: AtlasWork, objects: Objects, order: RowOrder, number: int) -> None:
    """Write the rows of file `number` of every array of cells."""
    start, stop = number * plan.chunk_rows, min((number + 1) * plan.chunk_rows, plan.n_cells)
    # Whole neighbourhoods, also if they begin or end in another file: the place of a cell depends on all their cells.
    first, last = order.neighbourhoods(start, stop)
    record_n, names = _gather(plan, objects, order, first, last)
    # By hash within a neighbourhood, so that its first rows are a uniform sample, for any order of the source.
    sorted_n = np.lexsort((hash_rows(record_n["row"], plan.seed, _ORDER_KEY), record_n["neighbourhood"]))
    record_n = record_n[sorted_n]
    base = int(order.offset_c[first])
    _write_statistics(plan, work, order, record_n, number, first, last)
    inside = slice(start - base, stop - base)
    chosen_n = record_n[inside]
    listed: Listed = {}
    for name, values in _arrays(plan, order, chosen_n).items():
        ends = "/0" * (values.ndim - 1)
        listed |= work.write(f"{CELLS}/{name}/c/{number}{ends}", padded(values, plan.chunk_rows))
    texts = [names[at] for at in sorted_n[inside].tolist()]
    for low in range(0, len(texts), plan.name_rows):
        part = texts[low : low + plan.name_rows]
        part += [""] * (plan.name_rows - len(part))
        listed |= work.write(f"{CELLS}/obs/_index/c/{(start + low) // plan.name_rows}", encode_texts(part))
    work.mark(cells_mark(number), listed)


def statistics_name(number: int) -> str:
    """Return the name of the scratch file of the neighbourhoods that begin in a file of rows."""
    return f"neighbourhoods/{number:06d}.npz"


def padded(values: NDArray[Any], rows: int) -> bytes:
    """Return the bytes of a chunk of `rows` rows, padded with 0 at the end."""
    lacking = rows - len(values)
    if lacking:
        values = np.concatenate([values, np.zeros((lacking, *values.shape[1:]), dtype=values.dtype)])
    return np.ascontiguousarray(values).tobytes()


def _gather(
    plan: AtlasPlan, objects: Objects, order: RowOrder, first: int, last: int
) -> tuple[NDArray[Any], list[str]]:
    """Read the records and names of the neighbourhoods ``[first, last)`` from all pieces."""
    parts, names = [], []
    for number, index in enumerate(order.indices):
        low, high = int(index.record_c[first]), int(index.record_c[last])
        part_n = read_records(objects, number, "records", plan.record, low, high)
        name_low, name_high = int(index.name_c[first]), int(index.name_c[last])
        content = bytes(objects.read(f"{piece_folder(number)}/names", name_low, name_high - name_low))
        cut_n = np.concatenate([[0], np.cumsum(part_n["name_bytes"])]).tolist()
        names += [content[low:high].decode() for low, high in itertools.pairwise(cut_n)]
        parts.append(part_n)
    return np.concatenate(parts), names


def _arrays(plan: AtlasPlan, order: RowOrder, record_n: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return all arrays of cells except the names, by their path."""
    low_k, step_k = np.array(order.log_variance.offset), np.array(order.log_variance.step)
    code_nk = np.rint((np.log(record_n["qzv"].astype(np.float64)) - low_k) / np.where(step_k > 0, step_k, 1))
    found: dict[str, NDArray[Any]] = {
        f"obsm/{QZM}": record_n["qzm"],
        f"obsm/{QZV}": np.maximum(record_n["qzv"], np.finfo(np.float16).smallest_subnormal).astype("<f2"),
        f"obsm/{LOG_VARIANCE_CODE}": code_nk.clip(0, _CODES).astype(np.uint8),
    }
    place = {SOURCE_ROW: "row", LEAF: "leaf"}
    for name, kind in own_columns(plan).items():
        found[f"obs/{name}"] = record_n[place.get(name, name)].astype(kind)
    return found | {f"obs/{column_array(column)}": record_n[f"obs/{column.key}"] for column in plan.kept}


def column_array(column: KeptColumn) -> str:
    """Return the array of a kept column below obs."""
    return f"{column.key}/codes" if isinstance(column.source, Categorical) else column.key


def _write_statistics(
    plan: AtlasPlan, work: AtlasWork, order: RowOrder, record_n: NDArray[Any], number: int, first: int, last: int
) -> None:
    """Write radius and leaves of the neighbourhoods that begin in file `number`, all of whose cells are in memory."""
    begins_c = order.offset_c[first:last]
    own = slice(*np.searchsorted(begins_c, [number * plan.chunk_rows, (number + 1) * plan.chunk_rows]).tolist())
    local_n = record_n["neighbourhood"] - first
    away_n = np.linalg.norm(record_n["qzm"].astype(np.float32) - plan.centroids_ck[record_n["neighbourhood"]], axis=1)
    radius_c = np.zeros(last - first, dtype=np.float32)
    np.maximum.at(radius_c, local_n, away_n)
    n_leaves = plan.leaves.n_leaves
    pair_n, size_n = np.unique(local_n.astype(np.int64) * n_leaves + record_n["leaf"], return_counts=True)
    mine_n = (pair_n // n_leaves >= own.start) & (pair_n // n_leaves < own.stop)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        number_c=np.arange(first, last)[own],
        radius_c=radius_c[own],
        pair=pair_n[mine_n] + first * n_leaves,
        cells=size_n[mine_n],
    )
    work.scratch.write(statistics_name(number), buffer.getvalue())
