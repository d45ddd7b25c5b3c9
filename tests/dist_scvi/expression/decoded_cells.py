"""Cells with known posteriors and a linear decoder, which writes down what it is requested to decode.

Shape letters: n cells, g genes, k latent dimensions, s samples, b batches.
"""

import numpy as np
import pandas as pd
from scipy.special import softmax

from dist_scvi.expression.de_groups import RawMoments

RAW = [
    *("raw_mean1", "raw_mean2", "non_zeros_proportion1", "non_zeros_proportion2"),
    *("raw_normalized_mean1", "raw_normalized_mean2"),
]
NAMED = ["comparison", "group1", "group2"]
"""Columns of the answers."""


class Cells:
    """A linear decoder over known posteriors; it writes down what it is asked for."""

    def __init__(self, qzm_nk, qzv_nk, weight_kg, obs: pd.DataFrame, offset_bg):
        self.qzm_nk, self.qzv_nk, self.weight_kg, self.obs = qzm_nk, qzv_nk, weight_kg, obs
        self.batch_n, self.batch_categories = obs["batch"].cat.codes.to_numpy(), tuple(obs["batch"].cat.categories)
        self.offset_bg = np.array(offset_bg, dtype=float)
        self.n_cells, self.var_names = len(obs), [f"g{gene}" for gene in range(weight_kg.shape[1])]
        self.normal_ndk = np.random.default_rng(1).normal(size=(self.n_cells, 700, qzm_nk.shape[1]))
        self.asked: list[tuple[np.ndarray, np.ndarray, int | None]] = []

    def z_sk(self, row_s, draw_s):
        return self.qzm_nk[row_s] + np.sqrt(self.qzv_nk[row_s]) * self.normal_ndk[row_s, draw_s]

    def decoded(self, row_s, draw_s, batch):
        logit_sg = self.z_sk(row_s, draw_s) @ self.weight_kg
        return softmax(logit_sg + self.offset_bg[self.batch_n[row_s] if batch is None else batch], axis=1)

    def scale(self, row_s, draw_s, batch):
        self.asked.append((row_s, draw_s, batch))
        return self.decoded(row_s, draw_s, batch).astype(np.float32)

    def group_codes(self, groupby):
        column = pd.Categorical(self.obs[groupby])
        return column.codes.astype(np.int32), tuple(map(str, column.categories))

    def latent_mean(self, row_m):
        assert (np.diff(row_m) > 0).all()
        return self.qzm_nk[row_m].astype(np.float32)

    @property
    def asked_rows(self):
        return np.concatenate([row_s for row_s, _, _ in self.asked])


class CountedCells(Cells):
    """Cells with counts."""

    counts_ng: np.ndarray
    passes = 0

    def raw_moments(self, group_n, n_groups):
        self.passes += 1
        share_ng = self.counts_ng * (1e4 / np.maximum(self.counts_ng.sum(axis=1, keepdims=True), 1))
        parts = [group_n == group for group in range(n_groups)]
        return RawMoments(
            np.array([self.counts_ng[part].sum(axis=0) for part in parts], dtype=np.float64),
            np.array([(self.counts_ng[part] > 0).sum(axis=0) for part in parts]),
            np.array([share_ng[part].sum(axis=0) for part in parts]),
            np.array([part.sum() for part in parts]),
        )

    def obs_query(self, text):
        return self.obs.index.isin(self.obs.query(text).index)
