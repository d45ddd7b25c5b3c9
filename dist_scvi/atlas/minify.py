"""A minified atlas is written: each cell's posterior and total count, with the model, and no counts.

Shape letters in this file
    n   cells
    k   latent dimensions
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.atlas import ATLAS_FORMAT, CELLS, FACTOR, MANIFEST, MODEL, describing_files
from dist_scvi.inference.encode_decode import latent_cells
from dist_scvi.inference.output_identity import cells_fingerprint, digest, model_fingerprint, probes
from dist_scvi.inference.resumable_zarr import Shards, sync_tree, written_in_shards
from dist_scvi.loaders import CellData
from dist_scvi.loaders.arrays.anndata_layout import (
    LIBRARY,
    QZM,
    QZV,
    SOURCE_ROW,
    finish_table,
    new_array,
    new_categorical,
    new_root,
    new_strings,
)
from dist_scvi.loaders.arrays.obs_columns import Categorical, Numeric, Ranges
from dist_scvi.loaders.cell_store import open_column
from dist_scvi.loaders.name_lookup import check_list
from dist_scvi.loaders.stream import row_stream
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_files import save_model
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.world import World

_CHUNK_CELLS = 4096
_SHARD_CELLS = 1 << 18


@dataclass(frozen=True, slots=True)
class Minified:
    """What an atlas keeps of some cells in place of their counts."""

    qzm_nk: NDArray[np.float32]
    """Mean of q(z | x)."""
    qzv_nk: NDArray[np.float32]
    """Variance of q(z | x)."""
    library_n: NDArray[np.float32]
    """Total count."""
    factor_n: NDArray[np.float32]
    """What shares are multiplied by: total count, size factor, or the exponential of a latent library's mean."""


@dataclass(frozen=True, slots=True)
class _Column:
    """An obs column that is carried over."""

    source: Categorical | Numeric

    def values(self, start: int, stop: int) -> Any:
        if isinstance(self.source, Categorical):
            return self.source.codes(start, stop)
        return self.source.stored[start:stop]

    def describe(self, n_cells: int) -> dict[str, Any]:
        """Tell the column from others: its categories or type, and a few of its values."""
        kind = self.source.vocabulary if isinstance(self.source, Categorical) else str(self.values(0, 1).dtype)
        return {"kind": kind, "probed": digest(*(self.values(*span) for span in probes(n_cells)))}


def minify(
    module: VAE,
    spec: ModelSpec,
    data: CellData,
    path: Path,
    *,
    obs_columns: Sequence[str] = (),
    world: World | None = None,
    lineage: dict[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode every cell of `data` once and write the minified atlas `path`.

    Every worker calls it with the same arguments, but for its place in `world`; each encodes a part. Memory does not
    grow with the number of cells. The atlas appears when it is complete, or not at all. After a kill or an error the
    same call, by any number of workers, goes on where it was; what is unfinished lies beside it in ``.partial-NAME``.

    Parameters
    ----------
    obs_columns
        obs columns to carry over, beside the covariates of the model and its label.
    lineage
        Plain values that say where the model comes from; kept in the manifest.
    overwrite
        Replace an atlas that is already there.
    on_progress
        Called on rank 0 with the cells done before and by this worker, and these with its share of those left.

    Raises
    ------
    ValueError
        If `data` does not fit the model, a column is missing, `path` exists, or another process is writing it.
    OSError
        If the disk is full, fails or may not be written.

    Notes
    -----
    ``obsm/scvi_latent_qzm``, ``obsm/scvi_latent_qzv`` and ``obs/observed_lib_size`` are the names of scvi-tools 1.4.2,
    model/_scvi.py. Rows are those of the source, in its order; ``obs/source_row`` numbers them.
    """
    data = fit_to_spec(data, spec)
    module.eval()

    def encoded(rows: Ranges) -> Iterator[Minified]:
        for minibatch in row_stream(data, iter(rows)):
            cells = latent_cells(module, minibatch)
            yield Minified(cells.qzm_nk, cells.qzv_nk, minibatch.library_n.astype(np.float32), cells.library_n)

    write_atlas(
        path,
        module,
        spec,
        data,
        encoded,
        identity={"of": "counts"},
        obs_columns=obs_columns,
        world=world or World(),
        lineage=lineage,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def write_atlas(
    path: Path,
    module: VAE,
    spec: ModelSpec,
    data: CellData,
    minified: Callable[[Ranges], Iterable[Minified]],
    *,
    identity: Mapping[str, Any],
    obs_columns: Sequence[str] = (),
    world: World,
    lineage: dict[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the atlas `path`, whole or not at all, going on where it was killed.

    Parameters
    ----------
    data
        The cells, with the codes of the model; of its store only obs is read here.
    minified
        Is given rising ranges of rows, and gives what is kept of each.
    question
        Plain values that decide, beside model, cells and columns, what `minified` gives.
    obs_columns, world, lineage, overwrite, on_progress
        As of `minify`.

    Raises
    ------
    ValueError, OSError
        As `minify`.
    """
    columns = _columns(data, obs_columns)
    shard = min(_SHARD_CELLS, -(-data.n_cells // (16 * _CHUNK_CELLS)) * _CHUNK_CELLS)

    def finish(unfinished: Path) -> None:
        save_model(unfinished / MODEL, module, spec)
        manifest = {
            "format": ATLAS_FORMAT,
            "n_cells": data.n_cells,
            "n_genes": data.n_genes,
            "source": {"uri": data.store.uri, "layer": data.store.layer, "n_entries": data.store.n_entries},
            "lineage": lineage or {},
            "described": describing_files(unfinished),
        }
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1))
        sync_tree(unfinished / MANIFEST)

    asked = {
        "format": ATLAS_FORMAT,
        "model": model_fingerprint(module, spec),
        "cells": cells_fingerprint(data),
        "columns": {key: column.describe(data.n_cells) for key, column in columns.items()},
        "chunk_cells": _CHUNK_CELLS,
        **identity,
    }
    with written_in_shards(
        path,
        asked,
        lambda unfinished: _create(unfinished / CELLS, spec, data, columns, shard),
        n_cells=data.n_cells,
        shard_cells=shard,
        world=world,
        check_free=partial(_check_free, path, overwrite=overwrite),
        finish=finish,
        group=CELLS,
    ) as shards:
        _fill(shards, spec, data, columns, minified, on_progress)


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another path, or allow it to be replaced (overwrite=True, --overwrite)")
    if path.exists() and not (path / MANIFEST).is_file():
        raise ValueError(f"{path} is no minified atlas and is not replaced: give another path")


def _columns(data: CellData, obs_columns: Sequence[str]) -> dict[str, _Column]:
    """Choose the columns to carry over: what decoding needs, the label, and what was asked for."""
    needed = [data.batch, data.label, *data.categorical_covariates, *data.continuous_covariates]
    columns = {column.key: _Column(column) for column in needed if column is not None}
    check_list("obs_columns", obs_columns)
    for key in obs_columns:
        if key in columns:
            continue
        if key in (LIBRARY, FACTOR, SOURCE_ROW):
            raise ValueError(f"obs column '{key}' cannot be carried over: the atlas has one of that name, rename it")
        columns[key] = _Column(open_column(data.store, key))
    return columns


def _create(path: Path, spec: ModelSpec, data: CellData, columns: dict[str, _Column], shard: int) -> None:
    """Create the arrays, empty."""
    n, k = data.n_cells, spec.model.n_latent
    path.parent.mkdir(parents=True)
    root = new_root(path, spec.var_names)
    new_rows = partial(new_array, chunk_rows=_CHUNK_CELLS, shard_rows=shard)
    new_rows(root, f"obsm/{QZM}", (n, k), np.float32)
    new_rows(root, f"obsm/{QZV}", (n, k), np.float32)
    obs = root.create_group("obs")
    new_strings(obs, "_index", n, chunk_rows=shard)
    new_rows(obs, SOURCE_ROW, (n,), np.int64)
    own = [LIBRARY, *([FACTOR] if spec.own_library else []), SOURCE_ROW]
    for name in own[:-1]:
        new_rows(obs, name, (n,), np.float32)
    for key, column in columns.items():
        if isinstance(column.source, Categorical):
            vocabulary = column.source.vocabulary
            new_categorical(obs, key, vocabulary, n, chunk_rows=_CHUNK_CELLS, shard_rows=shard)
        else:
            new_rows(obs, key, (n,), column.values(0, 1).dtype)
    finish_table(obs, [*columns, *own])


def _fill(
    shards: Shards,
    spec: ModelSpec,
    data: CellData,
    columns: dict[str, _Column],
    minified: Callable[[Ranges], Iterable[Minified]],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Fill this worker's shards, each in one write: a shard written in parts would be read back and packed again."""
    tell = on_progress if on_progress is not None and shards.world.rank == 0 else lambda *_: None
    chunks = [
        [(at, min(at + _CHUNK_CELLS, stop)) for at in range(start, stop, _CHUNK_CELLS)] for start, stop in shards.spans
    ]
    cells = iter(minified([rows for shard in chunks for rows in shard]))
    done = shards.cells_before
    tell(done, shards.share)
    for (start, stop), shard in zip(shards.spans, chunks, strict=True):
        held = list(islice(cells, len(shard)))
        shards.write(start, stop, _arrays(spec, data, columns, held, start, stop))
        done += stop - start
        tell(done, shards.share)


def _arrays(
    spec: ModelSpec, data: CellData, columns: dict[str, _Column], held: list[Minified], start: int, stop: int
) -> dict[str, Any]:
    """Give all that is written of the cells of a shard, by its place."""
    written: dict[str, Any] = {
        f"obsm/{QZM}": np.concatenate([cells.qzm_nk for cells in held]),
        f"obsm/{QZV}": np.concatenate([cells.qzv_nk for cells in held]),
        f"obs/{LIBRARY}": np.concatenate([cells.library_n for cells in held]),
        f"obs/{SOURCE_ROW}": np.arange(start, stop),
        "obs/_index": data.store.obs_names(start, stop),
    }
    if spec.own_library:
        written[f"obs/{FACTOR}"] = np.concatenate([cells.factor_n for cells in held])
    for key, column in columns.items():
        name = f"obs/{key}/codes" if isinstance(column.source, Categorical) else f"obs/{key}"
        written[name] = column.values(start, stop)
    return written
