"""Write a minified atlas with many workers: sample, encode, gather; complete or absent, and continued after a kill.

Shape letters in this file
    s   cells of the sample
    k   latent dimensions
    c   neighbourhoods
"""

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.store.names import FORMAT_2, MANIFEST
from dist_scvi.atlas.writer.centroids import k_means, n_neighbourhoods, sample_ranges
from dist_scvi.atlas.writer.columns import KeptColumn, LeafTable, choose_columns, choose_leaves
from dist_scvi.atlas.writer.encode_pieces import read_piece_index, write_piece
from dist_scvi.atlas.writer.plan import LEAF_GENE_BYTES, AtlasPlan, CellSource
from dist_scvi.atlas.writer.work import AtlasWork
from dist_scvi.atlas.writer.write_cells import cells_mark, row_order, write_cells
from dist_scvi.atlas.writer.write_leaves import leaves_mark, write_leaves
from dist_scvi.atlas.writer.write_tables import Described, write_tables
from dist_scvi.inference.output_identity import cells_fingerprint, digest, model_fingerprint, probes, to_json
from dist_scvi.inference.resumable_zarr import (
    check_same_on_all,
    explain_write_errors,
    lock_folder,
    run_on_first,
)
from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.data import CellData
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.storage.run_storage import open_run_storage
from dist_scvi.world import World

log = logging.getLogger(__name__)
DEFAULT_LEAF_BUDGET = 1 << 30
_CENTROIDS = "centroids.npy"


@dataclass(frozen=True, slots=True)
class AtlasOptions:
    """Content of an atlas besides latents; see the arguments of `dist_scvi.atlas.minify.minify`."""

    obs_columns: Sequence[str] = ()
    leaf_columns: Sequence[str] | None = None
    leaf_budget_bytes: int = DEFAULT_LEAF_BUDGET
    seed: int = 0

    def most_leaves(self, n_genes: int) -> int:
        """Return how many leaves the budget allows.

        Raises
        ------
        ValueError
            If it allows none.
        """
        most = self.leaf_budget_bytes // (LEAF_GENE_BYTES * n_genes)
        if most < 1:
            raise ValueError(
                f"leaf_budget_bytes={self.leaf_budget_bytes}: one leaf of {n_genes} genes takes "
                f"{LEAF_GENE_BYTES * n_genes} bytes"
            )
        return most


def write_atlas(
    path: str | Path,
    module: VAE,
    spec: ModelSpec,
    data: CellData,
    source: CellSource,
    *,
    has_counts: bool,
    identity: Mapping[str, Any],
    var: pd.DataFrame,
    options: AtlasOptions,
    world: World,
    lineage: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the atlas `path`, completely or not at all, and continue where an earlier call was killed.

    Parameters
    ----------
    data
        The cells, with the codes of the model; of its store only obs is read here.
    source
        Function that receives ascending ranges of rows, and returns the kept data of each.
    has_counts
        Whether it returns counts as well.
    identity
        Plain values on which, besides model, cells and options, the result of `source` depends.
    var
        Columns of the genes of the model, in its order.
    world, lineage, overwrite, storage_options, on_progress
        As in `dist_scvi.atlas.minify.minify`.

    Raises
    ------
    ValueError, OSError
        As `dist_scvi.atlas.minify.minify`.
    """
    uri = atlas_uri(path)
    run_on_first(world, lambda: check_free(uri, overwrite=overwrite, storage_options=storage_options))
    kept, dropped = choose_columns(data, options.obs_columns)
    described_by = {
        "format": FORMAT_2,
        "model": model_fingerprint(module, spec),
        "cells": cells_fingerprint(data),
        "columns": {column.key: _describe(column, data.n_cells) for column in kept},
        "leaf_columns": options.leaf_columns,
        "leaf_budget_bytes": options.leaf_budget_bytes,
        "seed": options.seed,
        **identity,
    }
    text = to_json(described_by)
    check_same_on_all(world, text)
    leaves = _choose_leaves(data, kept, spec, options, world)
    work = AtlasWork(uri, digest(text), storage_options)
    with ExitStack() as stack, explain_write_errors(Path(uri)):

        def begin() -> None:
            stack.enter_context(_locked(work))
            check_free(uri, overwrite=overwrite, storage_options=storage_options)
            work.begin()
            work.scratch.write("identity.json", text.encode())

        run_on_first(world, begin)
        centroids_ck = _centroids(data, source, work, options.seed, world)
        plan = AtlasPlan(module, spec, data, source, has_counts, tuple(kept), leaves, centroids_ck, options.seed)
        described = Described(
            str(described_by["model"]),
            {"layer": data.store.layer, **cells_fingerprint(data)},
            dict(lineage or {}),
            dropped,
            options.leaf_budget_bytes,
            var,
        )
        _write_parts(plan, work, described, world, on_progress)


def atlas_uri(path: str | Path) -> str:
    """Return a URL as it is, and a path as an absolute one."""
    return str(path) if "://" in str(path) else str(Path(path).expanduser().resolve())


def check_free(uri: str, *, overwrite: bool, storage_options: Mapping[str, str] | None = None) -> None:
    """Refuse a path that is in use.

    Raises
    ------
    ValueError
        If there is an atlas that may not be replaced, or any other file or folder.
    """
    there = open_run_storage(uri, storage_options=storage_options).names()
    if "://" not in uri and Path(uri).exists() and not there:
        return  # an empty folder
    if there and not overwrite:
        raise ValueError(f"{uri} exists: give another path, or allow it to be replaced (overwrite=True, --overwrite)")
    if there and MANIFEST not in there:
        raise ValueError(f"{uri} is no minified atlas and is not replaced: give another path")


def _describe(column: KeptColumn, n_cells: int) -> dict[str, Any]:
    """Return an identification of a column: its categories or type, and a few of its values."""
    kind = column.source.vocabulary if isinstance(column.source, Categorical) else column.dtype.str
    return {"kind": kind, "probed": digest(*(column.values(*span) for span in probes(n_cells)))}


def _choose_leaves(
    data: CellData, kept: Sequence[KeptColumn], spec: ModelSpec, options: AtlasOptions, world: World
) -> LeafTable:
    """Find the leaves on rank 0; the columns themselves stay with each worker."""
    n_genes = len(spec.var_names)

    def choose() -> tuple[list[str], tuple[NDArray[np.int64], ...]]:
        most = options.most_leaves(n_genes)
        budget = f"{options.leaf_budget_bytes} bytes for {n_genes} genes"
        table = choose_leaves(data, kept, options.leaf_columns, most=most, budget=budget)
        return [column.key for column in table.columns], table.keys

    names, keys = run_on_first(world, choose)
    sources = {column.key: column.source for column in kept}
    found = tuple(source for name in names if isinstance(source := sources[name], Categorical))
    return LeafTable(found, keys)


def _locked(work: AtlasWork) -> AbstractContextManager[None]:
    """Lock the work folder against other processes.

    Object storage has no locks. There, mixed files of two writers are detected by their hashes in the manifest.
    """
    return nullcontext() if work.remote else lock_folder(Path(work.folder))


def _centroids(data: CellData, source: CellSource, work: AtlasWork, seed: int, world: World) -> NDArray[np.float32]:
    """Encode a sample of the cells and compute centroids, or read those of an earlier start."""

    def stored() -> NDArray[np.float32] | None:
        try:
            found: NDArray[np.float32] = np.load(io.BytesIO(work.scratch.read(_CENTROIDS)), allow_pickle=False)
        except FileNotFoundError:
            return None
        return found

    there = run_on_first(world, stored)
    if there is not None:
        return there
    ranges = sample_ranges(data.n_cells, data.store.chunk_cells, seed)
    mine = ranges[world.rank :: world.size]
    encoded = [cells.qzm_nk.astype(np.float16).astype(np.float32) for cells in source(mine)]
    # By range and then in the order of `ranges`: k-means rounds by the order of its points, which must not depend on
    # the number of workers.
    parts = world.from_all(dict(zip(mine, encoded, strict=True)))
    by_range = {span: mean_sk for part in parts for span, mean_sk in part.items()}

    def find() -> NDArray[np.float32]:
        points_sk = np.concatenate([by_range[span] for span in ranges])
        found_ck = k_means(points_sk, min(n_neighbourhoods(data.n_cells), len(points_sk)), seed)
        buffer = io.BytesIO()
        np.save(buffer, found_ck)
        work.scratch.write(_CENTROIDS, buffer.getvalue())
        return found_ck

    return run_on_first(world, find)


def _write_parts(
    plan: AtlasPlan,
    work: AtlasWork,
    described: Described,
    world: World,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    pieces = plan.pieces
    left = run_on_first(world, lambda: [at for at in range(len(pieces)) if read_piece_index(work.scratch, at) is None])
    log.info("%s: %d of %d pieces are encoded", work.uri, len(pieces) - len(left), len(pieces))
    report = on_progress if on_progress is not None and world.rank == 0 else lambda *_: None
    done = plan.n_cells - sum(pieces[at][1] - pieces[at][0] for at in left)
    share = done + sum(pieces[at][1] - pieces[at][0] for at in left[world.rank :: world.size])
    report(done, share)
    for at in _dealt(left, world):
        write_piece(plan, work.scratch, at)
        done += pieces[at][1] - pieces[at][0]
        report(done, share)
    world.wait()
    indices = [index for at in range(len(pieces)) if (index := read_piece_index(work.scratch, at)) is not None]
    order, objects = row_order(indices), work.scratch_objects()
    for write, mark, count in (
        (write_cells, cells_mark, -(-plan.n_cells // plan.chunk_rows)),
        (write_leaves, leaves_mark, -(-plan.leaves.n_leaves // plan.leaf_rows)),
    ):
        lacking = run_on_first(world, lambda: [at for at in range(count) if work.done(mark(at)) is None])  # noqa: B023 - called at once
        for at in _dealt(lacking, world):
            write(plan, work, objects, order, at)
        world.wait()
    run_on_first(world, lambda: work.finish(write_tables(plan, work, order, described)))


def _dealt(parts: Sequence[int], world: World) -> Iterator[int]:
    """Assign parts to workers in turn. They wait for each other after each round, and thus soon detect a lost one."""
    # No wait after a last round in which some workers have no part: these would not take part in it.
    mine = parts[world.rank :: world.size]
    for place, part in enumerate(mine):
        yield part
        if place < len(parts) // world.size:
            world.wait()
