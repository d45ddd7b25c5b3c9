"""Posterior predictive checks against plain formulas, scanpy, and scvi-tools 1.4.2 on the same draws."""

import json
import os
import subprocess
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from dist_scvi.criticism import PosteriorPredictiveCheck, create_criticism_report
from dist_scvi.criticism.agreement import agreement
from dist_scvi.criticism.check import check_counts
from dist_scvi.criticism.predictive_source import source_of
from dist_scvi.criticism.rank_genes import log_normalize, rank_genes
from dist_scvi.model import SCVI

PEER = os.environ.get("SCVI_TOOLS_PYTHON")
N_SAMPLES = 3
REFERENCE = """
import json, sys, types, warnings
warnings.filterwarnings("ignore")
sys.modules["leidenalg"] = types.ModuleType("leidenalg")  # asked for, and only used without a column of groups
import anndata, numpy as np, pandas as pd
from sparse import GCXS
from scvi.criticism import PosteriorPredictiveCheck
cells = anndata.read_h5ad(sys.argv[1])
draws = np.load(sys.argv[2])["draws"].astype(np.float64)
class Drawn:
    adata = cells
    def posterior_predictive_sample(self, adata, n_samples, batch_size, indices):
        return GCXS.from_numpy(draws)
check = PosteriorPredictiveCheck(cells, {"model1": Drawn()}, n_samples=draws.shape[2])
check.coefficient_of_variation("features")
check.coefficient_of_variation("cells")
check.zero_fraction()
check.calibration_error()
found = {key: check.metrics[key].to_dict(orient="list") for key in ("cv_cell", "cv_gene", "zero_fraction")}
found["calibration"] = check.metrics["calibration"].loc["features", "model1"]
for method in ("wilcoxon", "t-test"):
    check.differential_expression("label", de_method=method, n_samples=2, n_top_genes_fallback=5)
    found[method] = check.metrics["diff_exp"]["summary"].to_dict(orient="list")
json.dump(found, open(sys.argv[3], "w"), default=float)
"""


@pytest.fixture(scope="module")
def draws(model: SCVI) -> np.ndarray:
    return np.asarray(model.posterior_predictive_sample(n_samples=N_SAMPLES))


@pytest.fixture(scope="module")
def check(model: SCVI) -> PosteriorPredictiveCheck:
    found = PosteriorPredictiveCheck(None, {"model": model}, n_samples=N_SAMPLES, batch_size=100)
    found.coefficient_of_variation("features")
    found.coefficient_of_variation("cells")
    found.zero_fraction()
    found.calibration_error()
    found.differential_expression(n_samples=2, n_top_genes_fallback=5)
    return found


def test_variation_and_zeros_are_those_of_all_draws_together(check, draws, adata: ad.AnnData) -> None:
    counts = adata.X.toarray()
    with np.errstate(invalid="ignore"):  # cells without counts have no variation, in a draw or observed
        cell_ns, gene_gs = draws.std(axis=1) / draws.mean(axis=1), draws.std(axis=0) / draws.mean(axis=0)
        observed = np.nan_to_num(counts.std(axis=1) / counts.mean(axis=1))
    drawn = np.ma.masked_invalid(cell_ns).mean(axis=1).filled(np.nan)
    np.testing.assert_allclose(check.metrics["cv_cell"]["model"], drawn, rtol=1e-5)
    np.testing.assert_allclose(check.metrics["cv_cell"]["Raw"], observed, rtol=1e-5)
    np.testing.assert_allclose(
        check.metrics["cv_gene"]["model"], np.ma.masked_invalid(gene_gs).mean(axis=1).filled(np.nan), rtol=1e-5
    )
    np.testing.assert_allclose(check.metrics["zero_fraction"]["Raw"], (counts == 0).mean(axis=0))
    assert list(check.metrics["cv_cell"].index[:2]) == ["cell0", "cell1"]


@pytest.mark.parametrize("method", ["wilcoxon", "t-test"])
def test_ranked_genes_are_those_of_scanpy(adata: ad.AnnData, method) -> None:
    cells = ad.AnnData(log_normalize(adata.X, 1e4), obs=adata.obs[["label"]].copy(), var=adata.var)
    sc.tl.rank_genes_groups(cells, "label", method=method)
    codes = cells.obs["label"].cat.codes.to_numpy()
    found = rank_genes(cells.X, codes, 3, method)
    for at, group in enumerate(cells.obs["label"].cat.categories):
        table = sc.get.rank_genes_groups_df(cells, group=group).set_index("names").loc[adata.var_names]
        np.testing.assert_allclose(found.score_qg[at], table["scores"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.adjusted_qg[at], table["pvals_adj"], rtol=1e-3, atol=1e-12)
        np.testing.assert_allclose(found.log_fold_qg[at], table["logfoldchanges"], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not PEER, reason="SCVI_TOOLS_PYTHON names no interpreter with scvi-tools 1.4.2")
def test_checks_of_the_same_draws_agree_with_scvi_tools(model, adata, draws, check, tmp_path: Path) -> None:
    # Dense: scvi-tools 1.4.2 fails for sparse counts of a floating type.
    ad.AnnData(adata.X.toarray(), obs=adata.obs, var=adata.var).write_h5ad(tmp_path / "cells.h5ad")
    np.savez(tmp_path / "draws.npz", draws=draws)
    arguments = [str(tmp_path / name) for name in ("cells.h5ad", "draws.npz", "found.json")]
    done = subprocess.run(
        [str(PEER), "-c", REFERENCE, *arguments], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((tmp_path / "found.json").read_text())
    for key in ("cv_cell", "cv_gene"):
        for ours, theirs in (("model", "model1"), ("Raw", "Raw")):
            np.testing.assert_allclose(check.metrics[key][ours], said[key][theirs], rtol=1e-5)
    np.testing.assert_allclose(1 - check.metrics["zero_fraction"]["model"], said["zero_fraction"]["model1"], atol=1e-9)
    assert check.metrics["calibration"].loc["features", "model"] == pytest.approx(said["calibration"])
    for method in ("wilcoxon", "t-test"):
        check.differential_expression("label", de_method=method, n_samples=2, n_top_genes_fallback=5)
        summary = check.metrics["diff_exp"]["summary"]
        assert summary["group"].tolist() == said[method]["group"]
        assert summary["n_cells"].tolist() == said[method]["n_cells"]
        for column in ("gene_f1", "lfc_mae", "lfc_pearson", "lfc_spearman", "roc_auc", "pr_auc"):
            np.testing.assert_allclose(summary[column], said[method][column], atol=2e-3, err_msg=column)


def test_results_depend_neither_on_chunks_nor_on_other_cells(model: SCVI, check) -> None:
    rows = np.arange(0, 403, 7)
    part = PosteriorPredictiveCheck(None, {"model": model}, n_samples=N_SAMPLES, indices=rows, batch_size=3)
    part.coefficient_of_variation("features")
    pd.testing.assert_frame_equal(part.metrics["cv_cell"], check.metrics["cv_cell"].iloc[rows], rtol=1e-5)


def test_an_atlas_is_criticised_by_the_cells_it_was_made_of(model: SCVI, data, check, tmp_path: Path) -> None:
    atlas = model.minify(tmp_path / "atlas")
    found = PosteriorPredictiveCheck(data, {"atlas": atlas}, n_samples=N_SAMPLES)
    found.coefficient_of_variation("features")
    ours, whole = found.metrics["cv_cell"], check.metrics["cv_cell"]
    np.testing.assert_array_equal(ours["Raw"], whole["Raw"])
    # The atlas stores the posterior in float16, so that few draws differ.
    assert np.abs(ours["atlas"] - whole["model"]).mean() < 0.01
    with pytest.raises(ValueError, match="give the cells"):
        PosteriorPredictiveCheck(None, {"atlas": atlas})


def test_a_report_is_written_as_scvi_hub_reads_it(model: SCVI, adata: ad.AnnData, tmp_path: Path) -> None:
    found = create_criticism_report(model, n_samples=2, save_folder=tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert found.keys() == {"cell_wise_cv", "gene_wise_cv", "diff_exp"}
    assert "| Metric | Training Value | Validation Value |" in found["cell_wise_cv"]
    groups = [line.split(" | ")[0].strip("| ") for line in found["diff_exp"].splitlines()[2:]]
    assert groups == adata.obs["label"].value_counts().index.tolist()
    assert create_criticism_report(model, skip_metrics=["diff_exp"], n_samples=1)["diff_exp"] == ""


def test_the_worst_donor_is_named_first(model: SCVI, data) -> None:
    found = check_counts(source_of(model), None, n_samples=2, donor_key="batch")
    assert found.donors is not None
    assert set(found.donors["donor"]) == {"b0", "b1"}
    assert found.donors["cv_cell_mae"].is_monotonic_decreasing
    inside, expected = found.library_coverage
    assert (0 <= inside <= 1, expected) == (True, pytest.approx(1 / 3))


def test_agreement_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import mean_absolute_error, r2_score

    rng = np.random.default_rng(0)
    observed, drawn = rng.random(50), rng.random(50)
    found = agreement(np.append(observed, np.nan), np.append(drawn, 1.0))
    assert found.mae == pytest.approx(mean_absolute_error(drawn, observed))
    assert found.r2 == pytest.approx(r2_score(drawn, observed))
    assert found.pearson == pytest.approx(np.corrcoef(drawn, observed)[0, 1])
    assert np.isnan(agreement(np.ones(3), np.arange(3.0)).pearson)


def test_what_cannot_be_checked_is_refused(model: SCVI) -> None:
    with pytest.raises(ValueError, match="one model or several"):
        PosteriorPredictiveCheck(None, {})
    with pytest.raises(ValueError, match="count_layer_key='other'"):
        PosteriorPredictiveCheck(None, {"model": model}, count_layer_key="other")
    with pytest.raises(ValueError, match="cv_other"):
        create_criticism_report(model, skip_metrics=["cv_other"])
    with pytest.raises(ValueError, match="from 1 to the 2 draws"):
        PosteriorPredictiveCheck(None, {"model": model}, n_samples=2).differential_expression(n_samples=3)
