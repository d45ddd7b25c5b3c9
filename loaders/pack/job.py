"""The parameters of a packing, its division within the memory, and the checks before it begins."""

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dist_scvi.loaders.arrays.anndata_layout import SOURCE_ROW
from dist_scvi.loaders.arrays.bounded_json import parse_json_object
from dist_scvi.loaders.arrays.csr_rows import gene_type
from dist_scvi.loaders.arrays.obs_columns import missing_column
from dist_scvi.loaders.arrays.pack_manifest import PackSource
from dist_scvi.loaders.cell_store import CellStore, describe_missing_genes
from dist_scvi.loaders.name_lookup import check_list
from dist_scvi.loaders.pack.sorted_parts import settle_rows

Codec = Literal["lz4hc", "lz4", "zstd"]
CODEC_LEVELS: dict[Codec, int] = {"lz4hc": 9, "lz4": 3, "zstd": 3}
"""Compressors of the counts, and their levels."""
BLOCK_CELLS = 8192
SHARD_CELLS = 1 << 20
SHARD_ENTRIES = 1 << 24
_CHUNK_ENTRIES = (1024, 1 << 20)
_CHUNK_CELLS = 64
"""Most mean rows of a chunk; at least half as many."""
_PROCESS_BYTES = 288 << 20
"""Memory of a process after its imports."""
_READ_ENTRIES = 1 << 20
"""Entries read at once, estimated from the mean number in a cell."""
_READ_BYTES = 96 << 20
"""Memory for these, for any types and chunks of the source."""
_PART_BYTES = (32 << 20, 1 << 30)
"""Least and most bytes of rows sorted at once: fewer make too many files, with more a kill loses too much work."""
_PART_COPIES = 3
_SHARD_COPIES = 3
_CACHED_CELLS = 1 << 21
_PROBES = 8
_PROBE_CELLS = 64


@dataclass(frozen=True, slots=True)
class PackJob:
    """What is packed, and how. Equal jobs result in the same bytes, for any `piece_cells`."""

    source: PackSource
    fingerprint: int
    """Checksum of the names and of some rows of the source."""
    seed: int | None
    group_by: str | None
    genes: tuple[str, ...]
    obs_columns: tuple[str, ...]
    codec: Codec
    as_annbatch: bool
    block_cells: int
    shard_cells: int
    shard_entries: int
    piece_cells: int
    """Rows of the source in one piece, the unit in which the first pass is resumed."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the obs of the result: those of the source, and `SOURCE_ROW` if none has that name."""
        return self.obs_columns if SOURCE_ROW in self.obs_columns else (*self.obs_columns, SOURCE_ROW)

    @property
    def n_pieces(self) -> int:
        """Number of pieces of the source."""
        return -(-self.source.n_cells // self.piece_cells)

    def piece_span(self, number: int) -> tuple[int, int]:
        """First row of a piece, and last + 1."""
        return number * self.piece_cells, min((number + 1) * self.piece_cells, self.source.n_cells)

    @property
    def n_blocks(self) -> int:
        """Number of blocks of the result."""
        return -(-self.source.n_cells // self.block_cells)


@dataclass(frozen=True, slots=True)
class Budget:
    """The division of the memory."""

    memory_bytes: int
    processes: int
    source_bytes: int = 0
    """Memory of the open source in a process; see `source_bytes`."""

    @property
    def process_bytes(self) -> int:
        """Memory of each process for its rows. If there are several, the parent, which only waits, is counted too."""
        idle = self.processes + (self.processes > 1)
        return (self.memory_bytes - idle * (_PROCESS_BYTES + self.source_bytes)) // self.processes

    @property
    def part_bytes(self) -> int:
        """Bytes of rows that a process may collect before it sorts them."""
        return min((self.process_bytes - _READ_BYTES) // _PART_COPIES, _PART_BYTES[1])

    def check(self, job: PackJob, *, counts_bytes: int, record_bytes: int) -> None:
        """Refuse to begin with too little memory.

        Parameters
        ----------
        counts_bytes, record_bytes
            Bytes of a count, and of what is kept of a cell in addition to its counts.

        Raises
        ------
        ValueError
            With the memory that is needed.
        """
        if self.processes < 1:
            raise ValueError(f"processes={self.processes}: at least 1 is needed")
        shard = _SHARD_COPIES * job.shard_entries * (counts_bytes + _gene_bytes(job))
        table = _SHARD_COPIES * min(job.shard_cells, job.source.n_cells) * record_bytes
        least = max(shard, table, _READ_BYTES + _PART_COPIES * _PART_BYTES[0])
        if self.process_bytes < least:
            own = _PROCESS_BYTES + self.source_bytes
            needed = self.processes * least + (self.processes + (self.processes > 1)) * own
            raise ValueError(
                f"{self.memory_bytes >> 20} MiB are too little for {self.processes} processes: each sorts rows in "
                f"{least >> 20} MiB beside {own >> 20} MiB of its own; "
                f"give {-(-needed >> 20)} MiB (memory_bytes, --memory)"
                f"{', or fewer processes' if self.processes > 1 else ''}"
            )


def source_bytes(job: PackJob, record_bytes: int) -> int:
    """Return the approximate bytes of an open source: its columns cache `_CACHED_CELLS` values each."""
    return min(job.source.n_cells, _CACHED_CELLS) * record_bytes


@dataclass(frozen=True, slots=True)
class Probe:
    """Results of reading a sample of rows of the source."""

    fingerprint: int
    cell_entries: float
    """Mean entries kept of a cell."""
    counts_bytes: int
    """Bytes of the largest count of the sample, at least 2, as others are probably larger."""


def probe_store(source: CellStore, genes: Sequence[str]) -> Probe:
    """Read a few rows at places all over `source`."""
    place_g = gene_places(source, genes)
    fingerprint = zlib.crc32("\n".join(source.var_names).encode())
    n_cells = n_entries = 0
    counts_bytes = 2
    for start in np.unique(np.linspace(0, max(0, source.n_cells - _PROBE_CELLS), _PROBES).astype(int)).tolist():
        stop = min(start + _PROBE_CELLS, source.n_cells)
        kept, _ = settle_rows(source.read(start, stop), place_g, len(genes))
        names = "\n".join(source.obs_names(start, stop)).encode()
        for found in (kept.counts_e.tobytes(), kept.genes_e.tobytes(), kept.indptr.tobytes(), names):
            fingerprint = zlib.crc32(found, fingerprint)
        n_cells, n_entries = n_cells + kept.n_cells, n_entries + len(kept.counts_e)
        counts_bytes = max(counts_bytes, kept.counts_e.itemsize)
    return Probe(fingerprint, n_entries / n_cells, counts_bytes)


def plan_pieces(job: PackJob, budget: Budget, probe: Probe, *, record_bytes: int, chunk_cells: int) -> PackJob:
    """Choose the pieces so that each fits into one part, and each process has several."""
    # 0.9: cells of a piece can have more entries than the mean. Several pieces for each process balance the load.
    cell_bytes = probe.cell_entries * (probe.counts_bytes + _gene_bytes(job)) + record_bytes + 8
    fitting = _whole_chunks(int(0.9 * budget.part_bytes / cell_bytes), chunk_cells)
    even = -(-job.source.n_cells // (4 * budget.processes)) if budget.processes > 1 else job.source.n_cells
    return replace(job, piece_cells=min(fitting, -(-even // chunk_cells) * chunk_cells))


def read_cells(source: CellStore) -> int:
    """Return the rows to read at once: whole chunks with about `_READ_ENTRIES` entries."""
    wanted = max(1, _READ_ENTRIES * source.n_cells // max(1, source.n_entries))
    return _whole_chunks(wanted, source.chunk_cells)


def chunk_entries(n_entries: int, n_cells: int) -> int:
    """Return the entries of a chunk, a power of two: 32 to 64 mean rows."""
    mean = max(1, _CHUNK_CELLS * n_entries // n_cells)
    return min(max(1 << (mean.bit_length() - 1), _CHUNK_ENTRIES[0]), _CHUNK_ENTRIES[1])


def gene_places(source: CellStore, genes: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return the index of each gene of `source` in `genes`, -1 for those that are not requested."""
    places = {name: place for place, name in enumerate(genes)}
    return np.array([places.get(name, -1) for name in source.var_names], dtype=np.int32)


def check_genes(source: CellStore, genes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the genes to keep, all by default.

    Raises
    ------
    ValueError
        If one is not in the store or occurs twice, or the list is empty.
    """
    check_list("genes", genes)
    present = [str(name) for name in source.var_names]
    if genes is None:
        return tuple(present)
    known = set(present)
    absent = [name for name in genes if name not in known]
    if absent:
        raise ValueError(
            f"{source.uri} lacks {len(absent)} of {len(genes)} genes: {describe_missing_genes(absent, [source])}; "
            "give names of the store's var in genes"
        )
    if len(set(genes)) < len(genes) or not genes:
        raise ValueError(f"genes names {len(genes)}, {len(set(genes))} of them different: give each once, at least one")
    return tuple(genes)


def check_codec(codec: Codec) -> Codec:
    """Return the codec if it is known.

    Raises
    ------
    ValueError
        If it is not.
    """
    if codec not in CODEC_LEVELS:
        raise ValueError(f"codec='{codec}' is not known: give one of {', '.join(CODEC_LEVELS)}")
    return codec


def check_columns(source: CellStore, obs_columns: Sequence[str] | None, group_by: str | None) -> tuple[str, ...]:
    """Return the obs columns to keep, all by default.

    Raises
    ------
    ValueError
        If one, or `group_by`, is missing.
    """
    check_list("obs_columns", obs_columns)
    present = source.obs_columns()
    for key in (*(obs_columns or ()), *([group_by] if group_by is not None else ())):
        if key not in present:
            raise missing_column(key, present, source.uri)
    return tuple(present if obs_columns is None else dict.fromkeys(obs_columns))


def check_place(path: Path, source_uri: str) -> None:
    """Refuse to write into a store, or over the source.

    Raises
    ------
    ValueError
        With advice to choose another path.
    """
    for above in path.parents:
        if (above / "zarr.json").exists() or (above / ".zgroup").exists():
            raise ValueError(f"{path} lies inside the Zarr store {above}: choose a path beside it")
    if "://" not in source_uri and Path(source_uri).is_relative_to(path):
        raise ValueError(f"{path} holds the source {source_uri} itself: choose another path")


def check_disk(folder: Path, job: PackJob, probe: Probe, *, record_bytes: int) -> None:
    """Refuse to begin if the free space of the disk is too small.

    Raises
    ------
    ValueError
        With the space that is needed and the free space.
    """
    entry_bytes = probe.counts_bytes + _gene_bytes(job) + 2  # sorted rows, and about 2 bytes of the result
    needed = int(job.source.n_cells * (probe.cell_entries * entry_bytes + 2 * record_bytes))
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0
    above = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(above).free
    if free + held < needed:
        raise ValueError(
            f"{above} has {free:,} bytes free, about {needed - held:,} are needed to pack {job.source.n_cells:,} cells "
            "there: make room, choose another disk, or keep fewer genes"
        )


def begin_job(folder: Path, job: PackJob) -> PackJob:
    """Write `job` to `folder`, or return the job that was begun there, if it leads to the same result.

    Raises
    ------
    ValueError
        If a different job was begun there.
    """
    file = folder / "job.json"
    requested = json.loads(json.dumps(asdict(job)))
    if not file.exists():
        strange = [child.name for child in folder.iterdir() if not child.name.startswith(".")]
        if strange:
            raise ValueError(f"{folder} is in the way and is no unfinished pack (it holds {strange[0]}): remove it")
        write_file(file, json.dumps(requested).encode())
        return job
    # `piece_cells` depends on memory and processes, which may change. The begun value is kept, as the finished pieces
    # have its size.
    begun = parse_json_object(file.read_bytes(), str(file))
    differing = [key for key in requested if key != "piece_cells" and begun.get(key) != requested[key]]
    if differing:
        shown = "; ".join(f"{key} was {_short(begun.get(key))} and is {_short(requested[key])}" for key in differing)
        raise ValueError(
            f"{folder} holds another pack that was not finished: {shown}. Finish it with the call that began it, or "
            "remove the folder"
        )
    return replace(job, piece_cells=begun["piece_cells"])


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically: it appears complete or not at all, also if the machine stops."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def _whole_chunks(cells: int, chunk_cells: int) -> int:
    """Round down to whole chunks, unless the result would be 0."""
    return cells // chunk_cells * chunk_cells or max(1, cells)


def _gene_bytes(job: PackJob) -> int:
    return np.dtype(gene_type(len(job.genes))).itemsize


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
