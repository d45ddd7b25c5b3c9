"""The second pass of packing: writes every file of the result from one contiguous stretch of each part.

Each file is written by one task only, so that tasks need no lock. A finished task leaves a file in ``done`` and is not
repeated.
"""

import io
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from dist_scvi.loaders.arrays.anndata_layout import (
    SOURCE_ROW,
    finish_table,
    new_array,
    new_categorical,
    new_root,
    new_strings,
)
from dist_scvi.loaders.arrays.csr_rows import count_bits, gene_type
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.arrays.pack_manifest import COLLECTION, FORMAT_VERSION, MANIFEST_KEY, MEMBER, SUMS, Manifest
from dist_scvi.loaders.arrays.zarr_access import open_to_write
from dist_scvi.loaders.pack.job import CODEC_LEVELS, PackJob, chunk_entries, write_file
from dist_scvi.loaders.pack.scatter import Source, list_parts
from dist_scvi.loaders.pack.sorted_parts import (
    COUNTS,
    ENTRIES,
    ROWS,
    gather_entries,
    gather_records,
    joint_types,
    sum_edges,
)

_NAMES_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Gathering:
    """What all tasks of the second pass need."""

    folder: Path
    """Working folder with ``pieces``, ``done``, ``edges.npy`` and the unfinished ``store``."""
    path: Path
    """The unfinished AnnData."""
    columns: tuple[str, ...]
    """Columns of obs, by the number of their field in the records; `SOURCE_ROW`, if it was added, is last."""
    n_cells: int
    block_cells: int
    shard_cells: int
    """Cells of a file of obs: a whole number of blocks, at most all."""
    n_entries: int
    chunk_entries: int
    """Entries of a chunk of ``X``."""
    shard_entries: int
    """Entries of a file of ``X``: a whole number of chunks, at most all."""
    counts_type: np.dtype[Any]
    genes_type: np.dtype[Any]
    records_type: np.dtype[Any]

    @property
    def n_shards(self) -> int:
        """Files of ``X/data``."""
        return -(-self.n_entries // self.shard_entries)

    @property
    def n_tables(self) -> int:
        """Files of an obs column."""
        return -(-self.n_cells // self.shard_cells)

    def entries_of_shard(self, number: int) -> tuple[int, int]:
        """First entry of a file of ``X/data``, and last + 1."""
        return number * self.shard_entries, min((number + 1) * self.shard_entries, self.n_entries)

    def cells_of_shard(self, number: int) -> int:
        """Cells that are reported as written with a file of ``X/data``, by its share of the entries."""
        low, high = (self.n_cells * entry // self.n_entries for entry in self.entries_of_shard(number))
        return high - low


def begin_gathering(job: PackJob, folder: Path) -> Gathering:
    """Return sizes and types of the result, from those of all parts."""
    parts = list_parts(folder / "pieces")
    edges = sum_edges(parts)
    counts_type, records_type = joint_types(parts)
    write_file(folder / "edges.npy", _saved(edges))
    n_entries = int(edges[-1, ENTRIES])
    chunk = min(chunk_entries(n_entries, job.source.n_cells), job.shard_entries)
    return Gathering(
        folder=folder,
        path=folder / "store" / MEMBER if job.as_annbatch else folder / "store",
        columns=job.columns,
        n_cells=job.source.n_cells,
        block_cells=job.block_cells,
        shard_cells=min(job.shard_cells, job.n_blocks * job.block_cells),
        n_entries=n_entries,
        chunk_entries=chunk,
        shard_entries=min(job.shard_entries, max(1, -(-n_entries // chunk)) * chunk),
        counts_type=counts_type,
        genes_type=np.dtype(gene_type(len(job.genes))),
        records_type=records_type,
    )


def create_store(plan: Gathering, source: Source) -> None:
    """Create all arrays of the result, unless they exist."""
    made = plan.folder / "store"
    if made.exists():
        for aside in made.rglob("*.partial"):  # of a write that was killed
            aside.unlink()
        return
    aside = plan.folder / ".store"
    shutil.rmtree(aside, ignore_errors=True)
    if plan.path != made:
        zarr.create_group(aside, attributes=COLLECTION)
    root = new_root(aside / plan.path.relative_to(made), source.job.genes)
    _write_var(root["var"], source)
    _create_matrix(plan, root, source.job)
    _create_table(plan, root, source)
    aside.rename(made)


def _write_var(var: Any, source: Source) -> None:
    """Keep the columns of var, such as symbols, of the genes that are kept; categories become text."""
    frame = source.store.read_var().loc[list(source.job.genes)]
    for key, column in frame.items():
        if column.dtype.kind in "biuf" and isinstance(column.dtype, np.dtype):
            new_array(var, str(key), (len(frame),), column.dtype, chunk_rows=len(frame))[:] = column.to_numpy()
        else:
            texts = column.astype(object).where(column.notna(), "").map(str)
            new_strings(var, str(key), len(frame))[:] = texts.to_numpy(dtype=object)
    finish_table(var, [str(key) for key in frame.columns])


def write_shard(plan: Gathering, number: int) -> int:
    """Write file `number` of ``X/data`` and of ``X/indices``, and return its share of the cells."""
    low, high = plan.entries_of_shard(number)
    kinds = plan.counts_type, plan.genes_type
    edges = np.load(plan.folder / "edges.npy")
    counts_e, genes_e = gather_entries(list_parts(plan.folder / "pieces"), edges, low, high, kinds)
    _store(plan.path, "X/data", low, counts_e)
    _store(plan.path, "X/indices", low, genes_e)
    chunks = np.add.reduceat(count_bits(counts_e), np.arange(0, high - low, plan.chunk_entries), dtype=np.int64)
    write_file(plan.folder / "done" / f"shard{number:06d}.npy", _saved(chunks))
    return plan.cells_of_shard(number)


def write_table(plan: Gathering, number: int) -> int:
    """Write file `number` of ``X/indptr`` and of every column of obs."""
    edges = np.load(plan.folder / "edges.npy")
    first = number * plan.shard_cells // plan.block_cells
    last = min(first + plan.shard_cells // plan.block_cells, len(edges) - 1)
    records_n = gather_records(list_parts(plan.folder / "pieces"), edges, first, last, plan.records_type)
    low = int(edges[first, ROWS])
    indptr = edges[first, ENTRIES] + np.concatenate([[0], np.cumsum(records_n["length"], dtype=np.int64)])
    _store(plan.path, "X/indptr", low, indptr if last == len(edges) - 1 else indptr[:-1])
    for at, key in enumerate(plan.columns):
        values_n = records_n[str(at) if str(at) in (plan.records_type.names or ()) else "row"]
        codes = f"obs/{key}/codes"
        _store(plan.path, codes if (plan.path / codes).exists() else f"obs/{key}", low, values_n)
    for start in range(0, len(records_n), _NAMES_CHUNK):
        names_n = np.char.decode(records_n["name"][start : start + _NAMES_CHUNK], "utf-8")
        _store(plan.path, "obs/_index", low + start, names_n.astype(object))
    write_file(plan.folder / "done" / f"table{number:06d}", b"")
    return 0


def unfinished(plan: Gathering) -> tuple[list[int], list[int]]:
    """Return the numbers of the files of ``X`` and of obs that are not written yet."""
    done = {file.name for file in (plan.folder / "done").iterdir()}
    shards = [number for number in range(plan.n_shards) if f"shard{number:06d}.npy" not in done]
    return shards, [number for number in range(plan.n_tables) if f"table{number:06d}" not in done]


def finish_store(plan: Gathering, job: PackJob) -> None:
    """Write the sums and the manifest.

    Raises
    ------
    ValueError
        If the cells or counts written differ from those read.
    """
    # The sums come from both ends: those of the edges from the source, those of the chunks from the arrays written.
    edges = np.load(plan.folder / "edges.npy")
    chunks = [np.load(plan.folder / "done" / f"shard{number:06d}.npy") for number in range(plan.n_shards)]
    chunk_counts = np.concatenate([np.zeros(0, dtype=np.int64), *chunks])
    if (edges[-1, ROWS], chunk_counts.sum()) != (plan.n_cells, edges[-1, COUNTS]):
        raise ValueError(
            f"{edges[-1, ROWS]} cells and {chunk_counts.sum()} counts were written of {plan.n_cells} cells and "
            f"{edges[-1, COUNTS]} counts: the files in {plan.folder} were changed meanwhile, remove it and pack again"
        )
    root = zarr.open_group(plan.path, mode="r+", use_consolidated=False)
    root.create_group(SUMS, attributes={"encoding-type": "dict", "encoding-version": "0.1.0"}, overwrite=True)
    sums = {"chunk_counts": chunk_counts}
    sums |= {"block_entries": np.diff(edges[:, ENTRIES]), "block_counts": np.diff(edges[:, COUNTS])}
    for name, values in sums.items():
        new_array(root, f"{SUMS}/{name}", values.shape, np.int64, chunk_rows=max(1, min(len(values), 1 << 16)))
        _store(plan.path, f"{SUMS}/{name}", 0, values)
    root.attrs[MANIFEST_KEY] = _manifest(plan, job, int(edges[-1, COUNTS])).to_dict()
    with warnings.catch_warnings():  # anndata consolidates too, and over plain HTTP a store cannot be listed otherwise
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(plan.path)


def _manifest(plan: Gathering, job: PackJob, count_sum: int) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        source=job.source,
        n_cells=plan.n_cells,
        n_genes=len(job.genes),
        n_entries=plan.n_entries,
        count_sum=count_sum,
        seed=job.seed,
        group_by=job.group_by,
        codec=job.codec,
        counts_dtype=plan.counts_type.name,
        genes_dtype=plan.genes_type.name,
        chunk_entries=plan.chunk_entries,
        shard_entries=plan.shard_entries,
        block_cells=plan.block_cells,
        shard_cells=plan.shard_cells,
    )


def _create_matrix(plan: Gathering, root: zarr.Group, job: PackJob) -> None:
    shape = [plan.n_cells, len(job.genes)]
    attributes: dict[str, Any] = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape}
    matrix = root.create_group("X", attributes=attributes)
    codecs = [BloscCodec(cname=job.codec, clevel=CODEC_LEVELS[job.codec], shuffle="shuffle"), Crc32cCodec()]
    for name, kind in (("data", plan.counts_type), ("indices", plan.genes_type)):
        new_array(
            matrix,
            name,
            (plan.n_entries,),
            kind,
            chunk_rows=plan.chunk_entries,
            shard_rows=plan.shard_entries,
            codecs=codecs,
        )
    start_type = np.int32 if plan.n_entries < 1 << 31 else np.int64
    length = (plan.n_cells + 1,)
    new_array(matrix, "indptr", length, start_type, chunk_rows=plan.block_cells, shard_rows=plan.shard_cells)


def _create_table(plan: Gathering, root: zarr.Group, source: Source) -> None:
    table, n_cells = root.create_group("obs"), plan.n_cells
    chunk, shard = plan.block_cells, plan.shard_cells
    for at, column in enumerate(source.columns):
        if isinstance(column, Categorical):
            new_categorical(table, column.key, column.vocabulary, n_cells, chunk_rows=chunk, shard_rows=shard)
        else:
            new_array(table, column.key, (n_cells,), plan.records_type[str(at)], chunk_rows=chunk, shard_rows=shard)
    if len(plan.columns) > len(source.columns):
        new_array(table, SOURCE_ROW, (n_cells,), np.int64, chunk_rows=chunk, shard_rows=shard)
    new_strings(table, "_index", n_cells, chunk_rows=min(_NAMES_CHUNK, plan.shard_cells))
    finish_table(table, plan.columns)


def _store(folder: Path, name: str, low: int, values: NDArray[Any]) -> None:
    """Write whole files of an array, from row `low` on, and wait until they are on the disk."""
    array: Any = open_to_write(folder / name)
    array[low : low + len(values)] = values
    length = (array.shards or array.chunks)[0]
    for number in range(low // length, -(-(low + len(values)) // length)):
        with (folder / name / array.metadata.encode_chunk_key((number,))).open("rb") as file:
            os.fsync(file.fileno())


def _saved(values: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()
