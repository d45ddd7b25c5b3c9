"""Time the queries of an atlas: expression, differential expression and markers.

The atlas is drawn, not trained: latent means around the centres of its leaves and a random decoder, held in memory, so
that the engines are timed and not a disk. Times are of the second call.

    python benchmarks/atlas.py --cells 1000000 --genes 8000 --leaves 200
"""

# ruff: noqa: D102 - the methods are those of AtlasReader
import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dist_scvi.atlas.differential.differential_expression import differential_expression
from dist_scvi.atlas.differential.markers import markers
from dist_scvi.atlas.queries.group_expression import expression
from dist_scvi.atlas.queries.reader import Rows
from dist_scvi.config.schema import ModelConfig
from dist_scvi.inference.encode_decode import LatentCells
from dist_scvi.loaders.arrays.obs_columns import Categorical, categorical_from_codes
from dist_scvi.network.model_spec import ModelSpec

RESULT = Path(__file__).parent / "results" / "atlas.json"
LEVELS = (np.arange(32) + 0.5) / 32
SKETCH_CELLS, LATENT = 256, 10


class DrawnLeaves:
    """Leaves of the drawn atlas; each is a type."""

    columns, levels, has_counts = ("type",), LEVELS, True

    def __init__(self, scale_lsg: Iterator[NDArray[np.float32]], n_cells: NDArray[np.int64]) -> None:
        self.n_leaves, self.n_cells = len(n_cells), n_cells
        self.n_sketch, self.codes = np.minimum(n_cells, SKETCH_CELLS), np.arange(len(n_cells), dtype=np.int32)[:, None]
        parts = [(s.mean(0), s.var(0), s.max(0), np.quantile(np.log2(s), LEVELS, axis=0).T) for s in scale_lsg]
        self._mean, self._var, self._max = (np.stack([part[i] for part in parts]) for i in range(3))
        self._quantiles = np.stack([part[3] for part in parts]).astype(np.float16)

    def scale_mean(self, leaves=None):  # noqa: ANN001, ANN201
        return self._mean[slice(None) if leaves is None else leaves]

    def scale_var(self, leaves=None):  # noqa: ANN001, ANN201
        return self._var[slice(None) if leaves is None else leaves]

    def scale_max(self, leaves=None):  # noqa: ANN001, ANN201
        return self._max[slice(None) if leaves is None else leaves]

    def count_sum(self, leaves=None):  # noqa: ANN001, ANN201
        return 2000.0 * self.scale_mean(leaves) * self.n_cells[slice(None) if leaves is None else leaves][:, None]

    detected = normalized_sum = count_sum

    def quantiles(self, leaves=None, genes=None):  # noqa: ANN001, ANN201
        chosen = self._quantiles[slice(None) if leaves is None else leaves]
        return (chosen if genes is None else chosen[:, genes]).astype(np.float32)


@dataclass(frozen=True)
class DrawnObs:
    """The type of each cell."""

    column: Categorical

    def columns(self) -> list[str]:
        return ["type"]

    def kind(self, key: str) -> str:
        return "categorical"

    def categorical(self, key: str) -> Categorical:
        return self.column


class DrawnAtlas:
    """Cells around the centres of their types, decoded by a random network."""

    uri, digest = "drawn", "0" * 64

    def __init__(self, n_cells: int, n_genes: int, n_leaves: int) -> None:
        rng = np.random.default_rng(0)
        self.n_cells, self.var_names = n_cells, tuple(f"g{gene}" for gene in range(n_genes))
        self.spec = ModelSpec(
            model=ModelConfig(n_latent=LATENT), seed=0, layer=None, var_names=self.var_names, batch=None, label=None,
            categorical_covariates=(), continuous_covariates=(),
        )  # fmt: skip
        self.module = self.spec.build().eval()
        with torch.no_grad():
            self.module.decoder.px_scale_decoder[0].bias.normal_(0, 2)
        self._leaf = np.sort(rng.integers(0, n_leaves, n_cells)).astype(np.int32)
        centres = rng.normal(0, 1.5, (n_leaves, LATENT)).astype(np.float16)
        self._mean = centres[self._leaf] + rng.normal(0, 0.5, (n_cells, LATENT)).astype(np.float16)
        self._normalizer = np.zeros(n_cells, dtype=np.float32)  # its value does not change the work
        names = [f"t{leaf:05d}" for leaf in range(n_leaves)]
        self.obs = DrawnObs(categorical_from_codes("type", names, self._leaf))
        starts = np.searchsorted(self._leaf, np.arange(n_leaves))
        stops = np.minimum(starts + SKETCH_CELLS, np.searchsorted(self._leaf, np.arange(n_leaves), side="right"))
        scales = (
            self._decoded(slice(start, stop)) for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        )
        self.leaves = DrawnLeaves(scales, np.bincount(self._leaf, minlength=n_leaves))

    @torch.no_grad()
    def _decoded(self, rows: slice) -> NDArray[np.float32]:
        from dist_scvi.inference.encode_decode import covariates_of

        cells = self.read_cells(rows)
        return self.module.shares(torch.from_numpy(cells.qzm_nk), covariates_of(cells, self.module.device)).numpy()

    def gene_index(self, genes: list[str]) -> NDArray[np.int64]:
        return np.array([int(gene[1:]) for gene in genes], dtype=np.int64)

    def read_cells(self, rows: Rows = None) -> LatentCells:
        mean_nk = self._mean[slice(None) if rows is None else rows].astype(np.float32)
        n = len(mean_nk)
        return LatentCells(
            self.read_source_row(rows), mean_nk, np.full_like(mean_nk, 0.01), np.full(n, 2000, np.float32),
            np.zeros(n, np.int32), np.full(n, -1, np.int32), np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32),
        )  # fmt: skip

    def read_log_normalizer(self, rows: Rows = None) -> NDArray[np.float32]:
        return self._normalizer[slice(None) if rows is None else rows]

    def read_source_row(self, rows: Rows = None) -> NDArray[np.int64]:
        return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else np.asarray(rows)

    def read_leaf(self, rows: Rows = None) -> NDArray[np.int32]:
        return self._leaf[slice(None) if rows is None else rows]

    def chunks(self, size: int = 65536) -> Iterator[slice]:
        return (slice(at, min(at + size, self.n_cells)) for at in range(0, self.n_cells, size))


def timed(query: Callable[[], object]) -> float:
    """Return the seconds of the second call: the first compiles."""
    query()
    began = time.perf_counter()
    query()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=8000)
    parser.add_argument("--leaves", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    atlas = DrawnAtlas(options.cells, options.genes, options.leaves)
    genes = [f"g{gene}" for gene in range(10)]
    half = options.cells // 2
    groups = {"group1": {"type": "t00000"}, "group2": {"type": "t00001"}, "mode": "change"}
    rows = {"group1": np.arange(min(100_000, half)), "group2": half + np.arange(min(100_000, half)), "mode": "change"}
    found = {
        "cells": options.cells,
        "genes": options.genes,
        "leaves": options.leaves,
        "threads": options.threads,
        "expression_leaves_s": timed(lambda: expression(atlas, genes, "type")),
        "expression_exact_s": timed(lambda: expression(atlas, genes, "type", engine="exact")),
        "de_sketch_s": timed(lambda: differential_expression(atlas, **groups, engine="sketch")),
        "de_pairs_s": timed(lambda: differential_expression(atlas, **rows, engine="pairs")),
        "markers_s": timed(lambda: markers(atlas, "type", n_genes=50)),
    }
    found["expression_exact_cells_per_s"] = options.cells / found["expression_exact_s"]
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
