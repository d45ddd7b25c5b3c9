"""Time the queries of an atlas, and measure what its sketches and samples lose.

The atlas is drawn, not trained: latent means around the centres of its leaves and a random decoder. Queries of many
genes read it from memory, so that the engines are timed and not a disk; opening, and memory by number of cells, are
measured on atlases on disk of few genes, each in a process of its own. Times are of the second call.

    python benchmarks/atlas.py --cells 1000000 --genes 8000 --leaves 200 --on-disk 100000 1000000
"""

# ruff: noqa: D102 - the methods are those of AtlasReader
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_array

from dist_scvi.atlas.differential.all_pairs import SortedSample, compare_pairs
from dist_scvi.atlas.differential.differential_expression import differential_expression
from dist_scvi.atlas.differential.markers import markers
from dist_scvi.atlas.differential.sides import decoded_side
from dist_scvi.atlas.differential.sketch import _spread
from dist_scvi.atlas.queries.group_expression import expression
from dist_scvi.atlas.queries.reader import Rows
from dist_scvi.atlas.writer.plan import Minified
from dist_scvi.atlas.writer.write_atlas import AtlasOptions, write_atlas
from dist_scvi.config.schema import ModelConfig
from dist_scvi.inference.encode_decode import LatentCells
from dist_scvi.loaders.arrays.obs_columns import Categorical, categorical_from_codes
from dist_scvi.loaders.stores.memory_store import MemoryStore
from dist_scvi.network.fit_data import open_for
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.world import World

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


ON_DISK = """
import sys, time
began = time.process_time(); from dist_scvi.atlas.atlas import open_atlas; imports = time.process_time() - began
import torch; torch.set_num_threads(1)
began = time.perf_counter(); atlas = open_atlas(sys.argv[1]); opened = time.perf_counter() - began
genes = list(atlas.var_names[:10])
atlas.expression(genes, "type", engine="exact")  # reads and verifies every file once
began = time.perf_counter(); atlas.expression(genes, "type", engine="exact"); exact = time.perf_counter() - began
# Not ru_maxrss, which a process inherits from the one that started it.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) / 1024
print(imports, opened, atlas.n_cells / exact, peak)
"""


def on_disk(folder: Path, n_cells: int, n_genes: int = 100) -> dict[str, float]:
    """Write an atlas of drawn cells, and measure opening, decoding and memory in another process."""
    drawn = DrawnAtlas(n_cells, n_genes, 50)
    names = [f"cell{row}" for row in range(n_cells)]
    kinds = pd.Categorical.from_codes(drawn.read_leaf(), [f"t{leaf:05d}" for leaf in range(50)])
    counts = csr_array((n_cells, n_genes), dtype=np.float32)
    store = MemoryStore(AnnData(counts, pd.DataFrame({"type": kinds}, names), pd.DataFrame(index=drawn.var_names)))
    store.uri = "drawn"

    def rows(ranges: list[tuple[int, int]]) -> Iterator[Minified]:
        for start, stop in ranges:
            cells = drawn.read_cells(slice(start, stop))
            yield Minified(cells.qzm_nk, cells.qzv_nk, cells.library_n, cells.library_n)

    began = time.perf_counter()
    write_atlas(
        folder / str(n_cells), drawn.module, drawn.spec, open_for(store, drawn.spec), rows, has_counts=False,
        identity={"of": "drawn"}, var=pd.DataFrame(index=drawn.var_names), options=AtlasOptions(leaf_columns=["type"]),
        world=World(), lineage={},
    )  # fmt: skip
    wrote_s = time.perf_counter() - began
    command = [sys.executable, "-c", ON_DISK, str(folder / str(n_cells))]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.split()
    names_of = ("import_cpu_s", "open_s", "exact_cells_per_s_1_thread", "peak_mib")
    return {"cells": n_cells, "genes": n_genes, "write_s": wrote_s} | dict(zip(names_of, map(float, said), strict=True))


def losses(atlas: "DrawnAtlas", n_pairs: int = 4) -> dict[str, float]:
    """Mean errors of a probability against all pairs of all cells: of 32 quantiles, of even and of plain samples."""
    errors: dict[str, list[float]] = {"sketch": [], "pairs": [], "plain sample of as many cells": []}
    rng = np.random.default_rng(0)
    for number in range(n_pairs):
        rows = [np.flatnonzero(atlas.read_leaf() == leaf)[:4000] for leaf in (2 * number, 2 * number + 1)]
        values = {"all": [], "sketch": [], "pairs": [], "plain sample of as many cells": []}
        for place, row_m in enumerate(rows):
            seeds, one = (number, place), (None,)
            everything = decoded_side(atlas, row_m, one, None, seeds=seeds).parts[0]
            quantile_gq = np.quantile(everything.log2_gp, LEVELS, axis=1, method="hazen").T.astype(np.float16)
            points_gp = np.empty((len(quantile_gq), 128), dtype=np.float32)
            _spread(quantile_gq.astype(np.float32), points_gp)
            plain_m = rng.permutation(row_m)[:1000]
            values["all"].append(everything)
            values["sketch"].append(SortedSample(points_gp, 1.0))
            values["pairs"].append(decoded_side(atlas, row_m, one, 1000, seeds=seeds).parts[0])
            values["plain sample of as many cells"].append(
                decoded_side(atlas, plain_m, one, None, seeds=(number, place + 7)).parts[0]
            )
        own_g = compare_pairs(*values["all"], 0.25, 1e-8, 1e-11).plus_g
        more = [
            compare_pairs(
                *(decoded_side(atlas, row_m, (None,), None, seeds=(seed, 0)).parts[0] for row_m in rows),
                0.25, 1e-8, 1e-11,
            ).plus_g
            for seed in range(100, 106)
        ]  # fmt: skip
        for name, found in errors.items():
            # A sketch is compared with the draws that it is made of, samples with the mean over other draws.
            truth_g = own_g if name == "sketch" else np.mean(more, axis=0)
            scores = compare_pairs(*values[name], 0.25, 1e-8, 1e-11)
            found.append(float(np.abs(scores.plus_g - truth_g).mean()))
    return {name: float(np.mean(found)) for name, found in errors.items()}


def timed(query: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the second call, the first compiles, and those of all processors."""
    query()
    began, cpu = time.perf_counter(), time.process_time()
    query()
    return time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=8000)
    parser.add_argument("--leaves", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--on-disk", type=int, nargs="*", default=[100_000, 1_000_000], metavar="CELLS")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    atlas = DrawnAtlas(options.cells, options.genes, options.leaves)
    genes = [f"g{gene}" for gene in range(10)]
    half = options.cells // 2
    groups = {"group1": {"type": "t00000"}, "group2": {"type": "t00001"}, "mode": "change"}
    rows = {"group1": np.arange(min(100_000, half)), "group2": half + np.arange(min(100_000, half)), "mode": "change"}
    found = {key: getattr(options, key) for key in ("cells", "genes", "leaves", "threads")}
    queries: dict[str, Callable[[], object]] = {
        "expression_leaves_s": lambda: expression(atlas, genes, "type"),
        "expression_exact_s": lambda: expression(atlas, genes, "type", engine="exact"),
        "de_sketch_s": lambda: differential_expression(atlas, **groups, engine="sketch"),
        "de_pairs_s": lambda: differential_expression(atlas, **rows, engine="pairs"),
        "markers_s": lambda: markers(atlas, "type", n_genes=50),
    }
    for name, query in queries.items():
        found[name], found[f"{name[:-2]}_cpu_s"] = timed(query)
        print(name, found[name], flush=True)
    found["expression_exact_cells_per_cpu_s"] = options.cells / found["expression_exact_cpu_s"]
    found["mean_error_of_a_probability"] = losses(atlas)
    found["load_average"] = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found["on_disk"] = [on_disk(Path(folder), n_cells) for n_cells in options.on_disk]
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
