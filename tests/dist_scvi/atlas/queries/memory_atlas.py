"""An atlas in memory, in any order of rows and cut into any chunks, as the queries read it."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp

from dist_scvi.inference.encode_decode import LatentCells, covariates_of, draw_posterior
from dist_scvi.loaders.arrays.obs_columns import Categorical, categorical_from_values
from dist_scvi.loaders.order.keyed_hash import hash_rows
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE

LEVELS = (np.arange(32) + 0.5) / 32


@dataclass(frozen=True)
class MemoryObs:
    frame: pd.DataFrame
    asked: list = field(default_factory=list)

    def columns(self):
        return list(self.frame.columns)

    def kind(self, key):
        return "categorical" if isinstance(self.frame[key].dtype, pd.CategoricalDtype) else "numeric"

    def categorical(self, key) -> Categorical:
        return categorical_from_values(key, self.frame[key])

    def values(self, key, rows=None):
        self.asked.append(rows)
        return self.frame[key].to_numpy()[slice(None) if rows is None else rows]


@dataclass(frozen=True)
class MemoryLeaves:
    columns: tuple
    codes: np.ndarray
    n_cells: np.ndarray
    n_sketch: np.ndarray
    sums: dict
    quantile_lgq: np.ndarray
    levels: np.ndarray = field(default_factory=lambda: LEVELS)
    has_counts: bool = True

    @property
    def n_leaves(self):
        return len(self.n_cells)

    def __getattr__(self, name):
        table = self.__dict__["sums"][name]
        return lambda leaves=None: table if leaves is None else table[leaves]

    def quantiles(self, leaves=None, genes=None):
        chosen = self.quantile_lgq if leaves is None else self.quantile_lgq[leaves]
        return (chosen if genes is None else chosen[:, genes]).astype(np.float32)


@dataclass(frozen=True)
class MemoryAtlas:
    spec: ModelSpec
    module: VAE
    cells: LatentCells
    obs: MemoryObs
    counts: np.ndarray
    leaves: MemoryLeaves | None
    leaf_n: np.ndarray
    log_normalizer: np.ndarray
    chunk: int = 100
    uri: str = "memory"
    digest: str = "d" * 64

    n_cells = property(lambda self: len(self.cells.row_n))
    var_names = property(lambda self: self.spec.var_names)
    var = property(lambda self: pd.DataFrame(index=list(self.spec.var_names)))

    def gene_index(self, genes):
        unknown = [gene for gene in genes if gene not in self.var_names]
        if unknown:
            raise ValueError(f"no gene {unknown[0]!r}")
        return np.array([self.var_names.index(gene) for gene in genes], dtype=np.int64)

    def read_cells(self, rows=None):
        return self.cells.take(self._index(rows))

    def read_log_normalizer(self, rows=None):
        return self.log_normalizer[self._index(rows)]

    def read_source_row(self, rows=None):
        return self.cells.row_n[self._index(rows)]

    def read_leaf(self, rows=None):
        return None if self.leaves is None else self.leaf_n[self._index(rows)]

    def read_library(self, rows=None):
        return self.cells.library_n[self._index(rows)]

    def obs_names(self, rows=None):
        return np.array([f"cell{row}" for row in self.read_source_row(rows)], dtype=object)

    def chunks(self, size=65536):
        width = min(size, self.chunk)
        return (slice(at, min(at + width, self.n_cells)) for at in range(0, self.n_cells, width))

    def _index(self, rows):
        return np.arange(self.n_cells)[slice(None) if rows is None else rows]


def scales(module, cells, draw=0, batch=None):
    """Decode cells in full."""
    with torch.no_grad():
        z_nk, _ = draw_posterior(module, cells, 0, draw) if draw is not None else (torch.from_numpy(cells.qzm_nk), 0)
        covariates = covariates_of(cells, module.device)
        if batch is not None:
            covariates = type(covariates)(torch.full_like(covariates.batch_n, batch), *_others(covariates))
        return module.shares(module.latent(z_nk), covariates).numpy()


def _others(covariates):
    return covariates.label_n, covariates.categorical_nc, covariates.continuous_nc


def memory_atlas(model, adata, leaf_columns, *, order=None, chunk=100, leaves=True) -> MemoryAtlas:
    """Minify the cells of a model in memory, rows in the order `order`."""
    order = np.arange(adata.n_obs) if order is None else order
    parts = list(model.latent_cells(model.select()))
    fields = [f for f in LatentCells.__dataclass_fields__ if getattr(parts[0], f) is not None]
    cells = LatentCells(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})
    cells = cells.take(order)
    cells.qzm_nk[:] = cells.qzm_nk.astype(np.float16)
    obs = adata.obs.iloc[order].reset_index(drop=True)
    counts = np.asarray(adata.X[order].todense(), dtype=np.float64)
    codes = np.stack([categorical_from_values(key, obs[key]).codes(0, len(obs)) for key in leaf_columns], axis=1)
    leaf_codes, leaf_n = np.unique(codes, axis=0, return_inverse=True)
    module = model.module
    with torch.no_grad():
        heads = module.decoder(
            *module._with_covariates(module.latent(torch.from_numpy(cells.qzm_nk)), covariates_of(cells, module.device))
        )
    log_normalizer = logsumexp(heads.scale_logits_ng.numpy(), axis=1).astype(np.float32)
    mean_ng, draw_ng = scales(module, cells, None).astype(np.float64), scales(module, cells)
    by_row = np.argsort(cells.row_n)  # sums are made in the order of the source, as by the writer
    members = [by_row[leaf_n[by_row] == leaf] for leaf in range(len(leaf_codes))]
    sketched = [part[np.argsort(hash_rows(cells.row_n[part], 0, 105))[:4096]] for part in members]
    normalized_ng = counts / counts.sum(axis=1, keepdims=True) * 1e4
    sums = {
        "count_sum": np.array([counts[part].sum(axis=0, dtype=np.float64) for part in members]),
        "detected": np.array([(counts[part] > 0).sum(axis=0) for part in members]),
        "square_sum": np.array([(counts[part] ** 2).sum(axis=0) for part in members]),
        "normalized_sum": np.array([normalized_ng[part].sum(axis=0) for part in members]),
        "scale_mean": np.array([mean_ng[part].mean(axis=0) for part in members], np.float32),
        "scale_var": np.array([mean_ng[part].var(axis=0) for part in members], np.float32),
        "scale_max": np.array([draw_ng[part].max(axis=0) for part in sketched], np.float32),
    }
    quantiles = [
        np.quantile(np.log2(np.maximum(draw_ng[part], 2.0**-100)), LEVELS, axis=0, method="hazen").T
        for part in sketched
    ]
    sizes = np.array([len(part) for part in members]), np.array([len(part) for part in sketched])
    table = MemoryLeaves(tuple(leaf_columns), leaf_codes, *sizes, sums, np.array(quantiles, np.float16))
    return MemoryAtlas(
        model.spec, module, cells, MemoryObs(obs), counts, table if leaves else None, leaf_n, log_normalizer, chunk
    )
