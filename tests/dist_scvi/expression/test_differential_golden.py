"""Differential expression ranks genes as scvi-tools does.

Shape letters: n cells, g genes, k latent dimensions, s samples, h hidden units, b batches.
"""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from scipy.stats import spearmanr

from dist_scvi.expression.differential import differential_expression
from tests.dist_scvi.expression.decoded_cells import NAMED, RAW, CountedCells

GOLDEN = Path(__file__).parents[4] / "shared" / "parity" / "golden"
# Least rank correlation with the golden answer, one run of scvi-tools at 5000 samples; below what eight seeds gave.
# scvi-tools itself, under 12 other seeds on scvi_default and scvi_nb, reaches 0.970 to 0.987 for proba_de,
# 0.983 to 0.993 for proba_m1 and 0.984 to 0.995 for lfc_mean.
LEAST = {
    "vanilla": {"proba_m1": 0.985, "bayes_factor": 0.985, "scale1": 0.99, "scale2": 0.99},
    "change": {"proba_de": 0.98, "lfc_mean": 0.99, "lfc_std": 0.99, "scale1": 0.99, "scale2": 0.99},
}


class GoldenCells(CountedCells):
    """A model that scvi-tools trained, decoded by hand; it has one hidden layer."""

    def __init__(self, case: str):
        adata, outputs = ad.read_h5ad(GOLDEN / case / "adata.h5ad"), np.load(GOLDEN / case / "outputs.npz")
        stored = torch.load(GOLDEN / case / "model.pt", weights_only=False)["model_state_dict"]
        super().__init__(outputs["qzm"], outputs["qzv"], np.zeros((10, adata.n_vars)), adata.obs, [])
        self.var_names, self.counts_ng = list(adata.var_names), adata.to_df().to_numpy()
        self.weights = {key: value.double().numpy() for key, value in stored.items() if torch.is_tensor(value)}

    def decoded(self, row_s, draw_s, batch):
        layer, norm, head = "px_decoder.fc_layers.Layer 0.0", "px_decoder.fc_layers.Layer 0.1", "px_scale_decoder.0"
        batch_s = self.batch_n[row_s] if batch is None else np.full(len(row_s), batch)
        input_sk = np.hstack([self.z_sk(row_s, draw_s), np.eye(len(self.batch_categories))[batch_s]])
        hidden_sh = input_sk @ self.weight(layer, "weight").T + self.weight(layer, "bias")
        hidden_sh -= self.weight(norm, "running_mean")
        hidden_sh *= self.weight(norm, "weight") / np.sqrt(self.weight(norm, "running_var") + 0.001)
        hidden_sh = np.maximum(hidden_sh + self.weight(norm, "bias"), 0)
        return softmax(hidden_sh @ self.weight(head, "weight").T + self.weight(head, "bias"), axis=1)

    def weight(self, module, name):
        return self.weights[f"decoder.{module}.{name}"]


@pytest.mark.real_data
@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden cases are not beside the checkout ({GOLDEN})")
@pytest.mark.parametrize("case", ["scvi_default", "scvi_nb", "scvi_gene_batch", "scvi_latent_library"])
@pytest.mark.parametrize("mode", ["vanilla", "change"])
def test_genes_are_ranked_as_scvi_tools_ranks_them(case, mode):
    expected = pd.read_csv(GOLDEN / case / f"de_{mode}.csv", index_col=0)
    cells = GoldenCells(case)
    found = differential_expression(cells, "batch", expected["group1"].iloc[0], mode=mode, n_samples_overall=20_000)
    assert list(found.columns) == list(expected.columns)
    found = found.loc[expected.index]
    for name in NAMED:
        assert (found[name] == expected[name]).all()
    for name in RAW:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    found_by = {name: spearmanr(found[name], expected[name]).statistic for name in LEAST[mode]}
    assert all(found_by[name] >= least for name, least in LEAST[mode].items()), found_by
