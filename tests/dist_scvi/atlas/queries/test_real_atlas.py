"""Atlases as they are written: the methods of `Atlas`, and real cells against the full model."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.minify import minify
from dist_scvi.model import SCVI

DATA = Path(__file__).parents[5] / "shared" / "data"
GENES = ["gene7", "gene0"]


@pytest.fixture(scope="module")
def written(model: SCVI, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    path = tmp_path_factory.mktemp("written") / "atlas"
    minify(model.module, model.spec, model.data, path, leaf_columns=["label", "batch"])
    return open_atlas(path)


def test_an_atlas_answers_by_its_methods(written, model):
    assert written.where("label == 'T' and age > 50").n_cells > 0
    answer = written.expression(GENES, by="label")
    assert (answer.engine, answer.digest) == ("leaves", written.digest)
    exact = written.expression(GENES, by="label", engine="exact")
    np.testing.assert_allclose(answer.table["mean"], exact.table["mean"], rtol=1e-5)
    by_hand = model.get_normalized_expression(gene_list=GENES, n_samples=None)
    label = np.asarray(model.data.store.categorical("label").codes(0, model.data.n_cells))
    expected = by_hand.groupby(label).mean().to_numpy().ravel()
    np.testing.assert_allclose(exact.table["mean"], expected, rtol=2e-3)  # means are stored as float16
    change = written.differential_expression("label == 'T'", "label == 'B'", mode="change")
    assert change.engine == "sketch"
    assert written.differential_expression("age > 50", mode="change").engine == "pairs"
    assert written.markers("label", n_genes=3).table["group"].nunique() == 3


def test_a_query_is_explained_before_it_is_asked(written):
    plan = written.explain("expression", genes=GENES, by="label")
    assert (plan.engine, plan.decoded) == ("leaves", 0)
    plan = written.explain("expression", genes=GENES, by="site", batch="average")
    assert (plan.engine, plan.cells, plan.decoded) == ("exact", 403, 806)
    assert plan.seconds > 0
    assert "403 cells" in str(plan)
    plan = written.explain("differential_expression", group1="label == 'T'")
    assert (plan.engine, plan.decoded) == ("sketch", 0)
    plan = written.explain("differential_expression", group1="T", groupby="label", batch_correction=True)
    assert (plan.engine, plan.decoded) == ("pairs", 2000)
    assert written.explain("markers", by="site").engine == "pairs"
    plan = written.explain("counterfactual", from_="b0", to="b1", genes=GENES)
    assert (plan.engine, plan.cells, plan.decoded) == ("exact", 268, 536)
    for query, arguments, message in (
        ("expresion", {}, "'expression'"),
        ("expression", {"genes": GENES, "group": "label"}, "unexpected keyword argument 'group'"),
        ("expression", {"genes": GENES, "by": "labl"}, "did you mean 'label'"),
        ("markers", {"by": "age"}, "holds numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            written.explain(query, **arguments)


@pytest.fixture(scope="module", params=["nb", "zinb"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SCVI, Atlas]:
    """A short training on the most variable genes of real cells, of known type."""
    source = DATA / "kang_ctrl_stim_2000x9015.h5ad"
    if not source.exists():
        pytest.skip(f"{source} is absent")
    cells = ad.read_h5ad(source)
    counts = sparse.csr_matrix(cells.X)
    spread = np.asarray(counts.power(2).mean(axis=0) - np.square(counts.mean(axis=0))).ravel()
    labelled = ~cells.obs["cell_type"].astype(str).str.lower().isin(["unlabeled", "unlabelled", "unknown", "nan"])
    cells = ad.AnnData(counts, cells.obs, cells.var)[labelled.to_numpy(), np.sort(np.argsort(-spread)[:400])].copy()
    cells.obs = pd.DataFrame({key: cells.obs[key].astype(str).astype("category") for key in ("cell_type", "batch")})
    SCVI.setup_anndata(cells, batch_key="batch")
    model = SCVI(cells, gene_likelihood=request.param, n_hidden=32, n_latent=5)
    model.train(15, enable_progress_bar=False)
    path = tmp_path_factory.mktemp("real") / "atlas"
    minify(model.module, model.spec, model.data, path, leaf_columns=["cell_type", "batch"])
    return model, open_atlas(path)


@pytest.mark.real_data
def test_differential_expression_is_that_of_the_full_model_and_of_all_pairs(real):
    model, atlas = real
    sizes = atlas.group_sizes("cell_type").sort_values(ascending=False)
    first, second = sizes.index[:2]
    options = {"groupby": "cell_type", "group1": first, "group2": second, "mode": "change"}
    full = model.differential_expression(**options, silent=True).sort_index()
    found = {
        engine: atlas.differential_expression(**options, engine=engine).table.sort_index()
        for engine in ("sketch", "pairs", "exact")
    }
    for engine, table in found.items():
        assert np.corrcoef(full["proba_de"], table["proba_de"])[0, 1] > 0.995, engine
        np.testing.assert_allclose(table["raw_mean1"], full["raw_mean1"], rtol=1e-6)
        ratio = table["pseudocounts"].iloc[0] / full["pseudocounts"].iloc[0]
        assert 0.5 < ratio < 2, engine  # both are maxima of samples; without counts it would be 60 times too large
    exact = found["exact"]
    assert np.abs(found["sketch"]["proba_de"] - exact["proba_de"]).mean() < 0.002
    assert np.corrcoef(found["sketch"]["proba_de"], exact["proba_de"])[0, 1] > 0.999
    # The exact engine takes one draw of each of a few hundred cells: what it is itself uncertain by comes on top.
    assert np.abs(found["pairs"]["proba_de"] - exact["proba_de"]).mean() < 0.012
    assert np.corrcoef(found["pairs"]["proba_de"], exact["proba_de"])[0, 1] > 0.997


@pytest.mark.real_data
def test_merged_leaves_and_batch_correction_of_real_cells_agree_with_all_pairs(real):
    _, atlas = real
    kind = atlas.group_sizes("cell_type").idxmax()
    merged = {"group1": f"cell_type == '{kind}'", "mode": "change", "pseudocounts": 1e-6}
    sketch, exact = (atlas.differential_expression(**merged, engine=engine).table for engine in ("sketch", "exact"))
    exact = exact.loc[sketch.index]
    assert np.abs(sketch["proba_de"] - exact["proba_de"]).mean() < 0.002
    corrected = {"group1": f"cell_type == '{kind}'", "mode": "change", "pseudocounts": 1e-6, "batch_correction": True}
    pairs, exact = (atlas.differential_expression(**corrected, engine=engine).table for engine in ("pairs", "exact"))
    exact = exact.loc[pairs.index]
    assert np.abs(pairs["proba_de"] - exact["proba_de"]).mean() < 0.012
