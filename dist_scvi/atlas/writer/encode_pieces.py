"""First pass of minification: encode a piece of the source, and sort its records by their final position.

Each piece leaves four files in the work folder: ``records`` and ``names``, by neighbourhood; ``sketch``, the records
whose draws give the quantiles of each leaf; ``sums``, compressed blocks of sums by leaf. ``index`` has the positions of
neighbourhoods and leaves in them; it is written last, so that a piece with an index is complete. Sums are kept by piece
and not by worker: pieces are the same for any number of workers, and floating-point sums depend on their parts.

Shape letters in this file
    n   cells
    g   genes
    k   latent dimensions
    l   leaves in the piece
    s   kinds of sums
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from dist_scvi.atlas.store.names import FACTOR, LIBRARY, LOG_NORMALIZER
from dist_scvi.atlas.writer.centroids import nearest, sum_groups
from dist_scvi.atlas.writer.plan import SKETCH_CELLS, AtlasPlan, Minified
from dist_scvi.inference.encode_decode import LatentCells, covariates_of
from dist_scvi.loaders.arrays.codecs import compress_floats, decompress_floats
from dist_scvi.loaders.arrays.objects import Objects
from dist_scvi.loaders.data import ColumnValues
from dist_scvi.loaders.order.keyed_hash import hash_rows
from dist_scvi.network.vae import VAE
from dist_scvi.storage.run_storage import RunStorage

N_COUNT_SUMS, N_SCALE_SUMS = 4, 2
"""Sums of counts, detections, squares and normalized counts; of the scale and its square."""
_SKETCH_KEY = 105
_FILES = ("records", "names", "sketch", "sums")


@dataclass(frozen=True, slots=True)
class PieceIndex:
    """Positions of the parts of a piece in its files."""

    record_c: NDArray[np.int64]
    """First record of each neighbourhood, and the end; shape (c + 1,)."""
    name_c: NDArray[np.int64]
    """First byte of the names of each neighbourhood, and the end."""
    leaf_l: NDArray[np.int64]
    """Leaves that are in the piece, ascending."""
    size_l: NDArray[np.int64]
    """Cells of each."""
    sketch_l: NDArray[np.int64]
    """First record of each in ``sketch``, and the end."""
    sums_b: NDArray[np.int64]
    """First byte of each block of sums, and the end; one block for each file of leaves with leaves of the piece."""
    block_b: NDArray[np.int64]
    """Number of the file of leaves of each block."""
    log_variance: NDArray[np.float64]
    """Smallest and largest log variance of each latent dimension, shape (2, k)."""

    def to_bytes(self) -> bytes:
        """Write it as an ``.npz`` file."""
        buffer = io.BytesIO()
        np.savez(buffer, **{name: getattr(self, name) for name in self.__slots__})
        return buffer.getvalue()


def piece_folder(number: int) -> str:
    """Return the folder of a piece in the work folder."""
    return f"pieces/{number:06d}"


def read_piece_index(work: RunStorage, number: int) -> PieceIndex | None:
    """Return the index of a piece; None if the piece is not complete."""
    try:
        content = work.read(f"{piece_folder(number)}/index.npz")
    except FileNotFoundError:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return PieceIndex(**{name: found[name] for name in PieceIndex.__slots__})


def write_piece(plan: AtlasPlan, work: RunStorage, number: int) -> None:
    """Encode the cells of a piece and write its files.

    Raises
    ------
    ValueError
        If a cell is damaged or has no value in a covariate.
    OSError
        If the disk or storage fails.
    """
    start, stop = plan.pieces[number]
    leaf_n = plan.leaves.leaf_of(start, stop)
    present_l, local_n = np.unique(leaf_n, return_inverse=True)
    record_n = np.empty(stop - start, dtype=plan.record)
    sums_slg = np.zeros((N_COUNT_SUMS * plan.has_counts + N_SCALE_SUMS, len(present_l), plan.n_genes))
    for low, high, cells in _batches(plan, start, stop):
        part = slice(low - start, high - start)
        covariates = plan.data.columns_of([(low, high)])
        _fill_records(plan, record_n[part], cells, covariates, low, high)
        # From the record, which is rounded as in the atlas: the sums of a leaf then agree with what queries decode.
        scale_ng = _decode(plan, record_n[part])
        touched_l, group_n = np.unique(local_n[part], return_inverse=True)
        for total_lg, add_lg in zip(sums_slg, _sums(plan, cells, scale_ng, group_n, len(touched_l)), strict=True):
            total_lg[touched_l] += add_lg
    record_n["leaf"] = leaf_n
    names = [str(name).encode() for name in plan.data.store.obs_names(start, stop)]
    record_n["name_bytes"] = [len(name) for name in names]
    _write_files(plan, work, number, record_n, names, present_l, sums_slg)


def sketch_order(leaf_n: NDArray[Any], row_n: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the indices of the cells of the sketches, by leaf: those with the smallest hashes of each leaf."""
    order = np.lexsort((hash_rows(row_n, seed, _SKETCH_KEY), leaf_n))
    sorted_n = leaf_n[order]
    first = np.searchsorted(sorted_n, sorted_n)
    return order[np.arange(len(order)) - first < SKETCH_CELLS]


def latent_cells_of(record_n: NDArray[Any]) -> LatentCells:
    """Return records as cells to decode, at the mean that the atlas stores."""
    return LatentCells(
        record_n["row"],
        record_n["qzm"].astype(np.float32),
        record_n["qzv"].copy(),
        record_n[FACTOR].copy(),
        record_n["batch"].copy(),
        record_n["label"].copy(),
        record_n["categorical"].copy(),
        record_n["continuous"].copy(),
    )


def _batches(plan: AtlasPlan, start: int, stop: int) -> Iterator[tuple[int, int, Minified]]:
    step = plan.batch_cells
    ranges = [(low, min(low + step, stop)) for low in range(start, stop, step)]
    for (low, high), cells in zip(ranges, plan.source(ranges), strict=True):
        yield low, high, cells


def _fill_records(
    plan: AtlasPlan, record_n: NDArray[Any], cells: Minified, covariates: ColumnValues, low: int, high: int
) -> None:
    """Fill in the fields of some cells that are known before decoding."""
    if not (np.isfinite(cells.qzm_nk).all() and np.isfinite(cells.qzv_nk).all() and (cells.qzv_nk > 0).all()):
        at = int(np.argmin((np.isfinite(cells.qzm_nk) & (cells.qzv_nk > 0)).all(axis=1)))
        raise ValueError(
            f"the posterior of row {low + at} is not finite or has no positive variance: the model has diverged or the "
            "minified cells are damaged; train with a lower learning rate, or restore them from a copy"
        )
    record_n["qzm"], record_n["qzv"] = cells.qzm_nk, cells.qzv_nk
    record_n[LIBRARY], record_n[FACTOR] = cells.library_n, cells.factor_n
    record_n["row"] = np.arange(low, high)
    record_n["batch"], record_n["label"] = covariates.batch_n, covariates.label_n
    record_n["categorical"], record_n["continuous"] = covariates.categorical_nc, covariates.continuous_nc
    for column in plan.kept:
        record_n[f"obs/{column.key}"] = column.values(low, high)
    mean_nk = torch.from_numpy(record_n["qzm"].astype(np.float32))
    record_n["neighbourhood"] = nearest(mean_nk, torch.from_numpy(plan.centroids_ck))[0].numpy()


@torch.no_grad()
def _decode(plan: AtlasPlan, record_n: NDArray[Any]) -> NDArray[np.float32]:
    """Decode cells at their stored mean, fill in their normalizer, and return their scale, shape (n, g)."""
    module: VAE = plan.module
    cells = latent_cells_of(record_n)
    z_nk = module.latent(torch.from_numpy(cells.qzm_nk).to(module.device))
    scale_ng, normalizer_n = module.shares_and_normalizer(z_nk, covariates_of(cells, module.device))
    record_n[LOG_NORMALIZER] = 0 if normalizer_n is None else normalizer_n.cpu().numpy()
    found_ng: NDArray[np.float32] = scale_ng.cpu().numpy()
    return found_ng


def _sums(
    plan: AtlasPlan, cells: Minified, scale_ng: NDArray[np.float32], group_n: NDArray[np.int64], n_groups: int
) -> Iterator[Any]:
    """Return the sums of counts and scales of some cells by leaf, in the order of the layers of the table of leaves."""
    n = len(group_n)
    if cells.counts is not None:
        rows = cells.counts
        shape = (n, plan.n_genes)
        counts = sparse.csr_array((rows.counts_e.astype(np.float64), rows.genes_e.astype(np.int64), rows.indptr), shape)
        squares, detected = counts.copy(), counts.copy()
        squares.data **= 2
        detected.data = (counts.data > 0).astype(np.float64)
        ones_n = np.ones(n)
        for table, weight_n in (
            (counts, ones_n),
            (detected, ones_n),
            (squares, ones_n),
            (counts, 1e4 / np.maximum(cells.library_n, 1).astype(np.float64)),
        ):
            of_leaf = sparse.csr_array((weight_n, (group_n, np.arange(n))), (n_groups, n))
            total: Any = of_leaf @ table
            yield total.toarray()
    yield sum_groups(scale_ng, group_n, n_groups)
    yield sum_groups(np.square(scale_ng, dtype=np.float64), group_n, n_groups)


def _write_files(
    plan: AtlasPlan,
    work: RunStorage,
    number: int,
    record_n: NDArray[Any],
    names: list[bytes],
    present_l: NDArray[np.int64],
    sums_slg: NDArray[np.float64],
) -> None:
    n_centroids = len(plan.centroids_ck)
    order_n = np.argsort(record_n["neighbourhood"], kind="stable")
    sketch_n = sketch_order(record_n["leaf"], record_n["row"], plan.seed)
    size_c = np.bincount(record_n["neighbourhood"], minlength=n_centroids)
    bytes_c = np.bincount(record_n["neighbourhood"], record_n["name_bytes"], minlength=n_centroids).astype(np.int64)
    blocks, block_b = [], np.unique(present_l // plan.leaf_rows)
    for block in block_b.tolist():
        inside_l = present_l // plan.leaf_rows == block
        blocks.append(compress_floats(sums_slg[:, inside_l]))
    log_variance_nk = np.log(record_n["qzv"].astype(np.float64))
    index = PieceIndex(
        _offsets(size_c),
        _offsets(bytes_c),
        present_l,
        np.bincount(np.searchsorted(present_l, record_n["leaf"]), minlength=len(present_l)),
        np.append(np.searchsorted(record_n["leaf"][sketch_n], present_l), len(sketch_n)),
        _offsets(np.array([len(block) for block in blocks])),
        block_b,
        np.stack([log_variance_nk.min(axis=0), log_variance_nk.max(axis=0)]),
    )
    contents = (
        record_n[order_n].tobytes(),
        b"".join(names[at] for at in order_n.tolist()),
        record_n[sketch_n].tobytes(),
        b"".join(blocks),
    )
    for name, content in zip(_FILES, contents, strict=True):
        work.write(f"{piece_folder(number)}/{name}", content)
    work.write(f"{piece_folder(number)}/index.npz", index.to_bytes())


def _offsets(size_i: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(size_i)]).astype(np.int64)


def read_records(objects: Objects, number: int, name: str, dtype: np.dtype[Any], start: int, stop: int) -> NDArray[Any]:
    """Read the records ``[start, stop)`` of a file of a piece."""
    size = dtype.itemsize
    content = objects.read(f"{piece_folder(number)}/{name}", start * size, (stop - start) * size)
    return np.frombuffer(bytes(content), dtype=dtype)


def read_sums(objects: Objects, number: int, index: PieceIndex, block: int, plan: AtlasPlan) -> Any:
    """Read the sums of a piece in a file of leaves: which leaves of it, and their sums of shape (s, l, g)."""
    at = int(np.searchsorted(index.block_b, block))
    if at == len(index.block_b) or index.block_b[at] != block:
        return None
    low, high = (int(byte) for byte in index.sums_b[at : at + 2])
    leaf_l = index.leaf_l[index.leaf_l // plan.leaf_rows == block]
    content = bytes(objects.read(f"{piece_folder(number)}/sums", low, high - low))
    values = decompress_floats(content)
    return leaf_l - block * plan.leaf_rows, values.reshape(-1, len(leaf_l), plan.n_genes)
