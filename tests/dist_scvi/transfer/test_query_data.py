"""A query is given the genes of the reference by name and the columns it names, or refused with what it lacks."""

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders.data import CellData, open_data
from dist_scvi.loaders.stores.collection import format_unmatched
from dist_scvi.loaders.stores.open import open_store
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_spec import ModelSpec, spec_of
from dist_scvi.transfer.query_data import prepare_query_anndata, prepare_query_data

KEYS = {"batch_key": "batch", "categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}
LABELS = {"labels_key": "label", "unlabeled_category": "?"}
LACKING = ["gene3", "gene7", "gene41"]


@pytest.fixture(scope="module")
def spec(adata: ad.AnnData) -> ModelSpec:
    return spec_of(ModelConfig(), 1, open_data(adata, **KEYS))


@pytest.fixture(scope="module")
def scanvi(adata: ad.AnnData) -> ModelSpec:
    return spec_of(ModelConfig(model_name="SCANVI"), 1, open_data(adata, **KEYS, **LABELS))


@pytest.fixture(scope="module")
def query(adata: ad.AnnData) -> ad.AnnData:
    """Its genes in another order, without three of them, and with one more."""
    kept = [name for name in adata.var_names[::-1] if name not in LACKING]
    query = adata[:120, ["gene0", *kept[:-1]]].copy()
    query.var_names = ["new", *kept[:-1]]
    return ad.AnnData(query.X, obs=query.obs, var=query.var.assign(long=True))


def expected_ng(adata: ad.AnnData) -> np.ndarray:
    """What the query holds of the genes of the reference."""
    counts_ng = adata.X[:120].toarray()
    counts_ng[:, [int(name[4:]) for name in [*LACKING, "gene0"]]] = 0
    return counts_ng


def dense(data: CellData) -> np.ndarray:
    rows = data.store.read(0, data.n_cells)
    return sparse.csr_matrix((rows.counts_e, rows.genes_e, rows.indptr), (data.n_cells, data.n_genes)).toarray()


def test_genes_are_put_in_the_order_of_the_reference_and_absent_ones_are_zero(
    adata: ad.AnnData, query: ad.AnnData, spec: ModelSpec, save: Callable[..., Path]
) -> None:
    path = save(query, "h5ad")
    opened = open_data(path, **KEYS)
    for source in (query, path, str(path), save(query), open_store(path), opened):
        data = prepare_query_data(source, spec)
        assert tuple(data.store.var_names) == spec.var_names
        np.testing.assert_array_equal(dense(data), expected_ng(adata))
        assert fit_to_spec(data, spec).columns_of([(0, 120)]).categorical_nc.shape == (120, 1)


def test_the_covariates_are_those_of_the_cells(query: ad.AnnData, spec: ModelSpec) -> None:
    columns = prepare_query_data(query, spec).columns_of([(0, 120)])
    np.testing.assert_array_equal(columns.batch_n, query.obs["batch"] == "b1")
    np.testing.assert_array_equal(columns.categorical_nc[:, 0], query.obs["site"].cat.codes)
    np.testing.assert_array_equal(columns.continuous_nc[:, 0], query.obs["age"])


def test_the_layer_of_the_reference_is_read(adata: ad.AnnData, query: ad.AnnData) -> None:
    layered = adata.copy()
    layered.layers["counts"] = layered.X.copy()
    spec = spec_of(ModelConfig(), 1, open_data(layered, layer="counts", **KEYS))
    other = query.copy()
    other.layers["counts"], other.X = other.X, other.X * 0.5
    np.testing.assert_array_equal(dense(prepare_query_data(other, spec)), expected_ng(adata))


def test_several_stores_are_one_query_and_each_is_held_to_its_own_genes(
    adata: ad.AnnData, query: ad.AnnData, spec: ModelSpec, save: Callable[..., Path]
) -> None:
    first, second = save(query, "h5ad"), save(adata[:50].copy(), "h5ad")
    data = prepare_query_data([first, second], spec)
    np.testing.assert_array_equal(dense(data), np.concatenate([expected_ng(adata), adata.X[:50].toarray()]))
    assert "source" in data.store.obs_columns()
    with pytest.raises(ValueError, match=r"given more than once"):
        prepare_query_data([first, first], spec)
    few = save(adata[:50, :20].copy(), "h5ad")
    with pytest.raises(ValueError, match=rf"^{few} has 20 of the 50 genes of the reference \(40%\)"):
        prepare_query_data([second, few], spec)


def test_genes_that_do_not_match_are_counted_and_named(query: ad.AnnData, spec: ModelSpec) -> None:
    (found,) = prepare_query_data(query, spec).store.unmatched
    assert (found.n_genes, found.n_left_out, found.left_out) == (47, 1, ("new",))
    assert (found.n_lacking, found.lacking) == (4, ("gene0", *LACKING))
    assert format_unmatched([found]).endswith("4 genes are lacking and count as 0 (gene0, gene3, gene7, gene41)")


def test_few_genes_in_common_are_warned_of_and_fewer_are_refused(adata: ad.AnnData, spec: ModelSpec) -> None:
    with pytest.warns(
        UserWarning, match=r"has 39 of the 50 genes .*\(78%\): it lacks gene39, gene40, .*gene43, \.\.\., "
    ):
        prepare_query_data(adata[:, :39].copy(), spec)
    some = adata[:, :20].copy()
    with pytest.raises(ValueError, match=r"has 20 of the 50 .*; min_overlap=0\.5 needs more: .* or lower min_overlap"):
        prepare_query_data(some, spec)
    with pytest.warns(UserWarning, match=r"has 20 of the 50 genes"):
        assert prepare_query_data(some, spec, min_overlap=0.4).n_genes == 50
    prepare_query_data(adata[:, :40].copy(), spec)


def test_a_query_without_any_of_the_genes_is_refused_whatever_is_asked_for(adata: ad.AnnData, spec: ModelSpec) -> None:
    other = adata.copy()
    other.var_names = other.var_names.str.upper()
    with pytest.raises(ValueError, match=r"has 0 of the 50 .*lacks gene0, .* and begins GENE0, .*; name genes as the"):
        prepare_query_data(other, spec, min_overlap=0)


@pytest.mark.parametrize("share", [-0.1, 80])
def test_the_overlap_is_a_share(query: ad.AnnData, spec: ModelSpec, share: float) -> None:
    with pytest.raises(ValueError, match=rf"^min_overlap={share}: a share of the reference's genes from 0 to 1"):
        prepare_query_data(query, spec, min_overlap=share)


def test_columns_that_the_query_lacks_are_named_with_their_arguments(query: ad.AnnData, spec: ModelSpec) -> None:
    other = query.copy()
    del other.obs["batch"], other.obs["site"], other.obs["age"]
    with pytest.raises(
        ValueError,
        match=r"lacks obs columns .*: 'batch' \(batch_key\), 'site' \(categorical_covariate_keys\), "
        r"'age' \(continuous_covariate_keys\); add them .* present are label$",
    ):
        prepare_query_data(other, spec)


def test_columns_of_data_that_is_open_are_kept_and_checked_against_the_reference(
    query: ad.AnnData, spec: ModelSpec
) -> None:
    data = prepare_query_data(open_data(query, batch_key="site"), spec)
    with pytest.raises(ValueError, match=r"open it with batch_key='batch' \(found 'site'\)"):
        fit_to_spec(data, spec)


def test_a_query_without_labels_is_unlabelled_to_scanvi(query: ad.AnnData, scanvi: ModelSpec) -> None:
    other = query.copy()
    del other.obs["label"]
    with pytest.warns(UserWarning, match=r"has no labels \(obs column 'label', the labels_key of the reference\)"):
        data = prepare_query_data(other, scanvi)
    assert (fit_to_spec(data, scanvi).columns_of([(0, 120)]).label_n == -1).all()


def test_labels_of_the_query_are_read(query: ad.AnnData, scanvi: ModelSpec) -> None:
    other = query.copy()
    other.obs["label"] = np.where(np.arange(120) < 10, "?", query.obs["label"].astype(str))
    label_n = fit_to_spec(prepare_query_data(other, scanvi), scanvi).columns_of([(0, 120)]).label_n
    np.testing.assert_array_equal(label_n[:10], -1)
    assert scanvi.label is not None
    np.testing.assert_array_equal(np.array(scanvi.label.categories)[label_n[10:]], query.obs["label"][10:])


def test_a_dispersion_by_label_needs_labels_and_other_models_do_not(adata: ad.AnnData, query: ad.AnnData) -> None:
    other = query.copy()
    del other.obs["label"]
    data = open_data(adata, labels_key="label")
    with pytest.raises(ValueError, match=r"dispersion='gene-label' each cell needs one; add the obs column 'label'"):
        prepare_query_data(other, spec_of(ModelConfig(dispersion="gene-label"), 1, data))
    assert prepare_query_data(other, spec_of(ModelConfig(), 1, data)).label is None


def test_categories_that_no_cell_has_are_no_new_ones(query: ad.AnnData, scanvi: ModelSpec) -> None:
    other = query.copy()
    other.obs["label"] = query.obs["label"].cat.add_categories(["A0", "zebra"])
    other.obs["site"] = query.obs["site"].cat.add_categories(["a", "w"])
    other.obs["site"] = np.where(np.arange(120) == 119, "w", other.obs["site"].astype(str))
    other.obs["site"] = other.obs["site"].astype("category").cat.add_categories(["a"])
    data = prepare_query_data(other, scanvi)
    assert data.label is not None
    assert data.label.vocabulary == ("B", "NK", "T")
    assert data.categorical_covariates[0].vocabulary == ("w", "x", "y", "z")
    columns = data.columns_of([(0, 120)])
    np.testing.assert_array_equal(np.array(data.label.vocabulary)[columns.label_n], other.obs["label"])
    found = np.array(data.categorical_covariates[0].vocabulary)[columns.categorical_nc[:, 0]]
    np.testing.assert_array_equal(found, other.obs["site"])


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("inplace", [True, False])
def test_an_anndata_is_given_the_genes_of_the_reference(
    adata: ad.AnnData, query: ad.AnnData, spec: ModelSpec, kind: str, inplace: bool
) -> None:
    other = query.copy()
    other.layers["twice"] = (other.X * 2).astype(np.int32)
    other.X = {"csr": other.X, "csc": other.X.tocsc(), "dense": other.X.toarray()}[kind]
    before = other.copy()
    prepared = prepare_query_anndata(other, spec, inplace=inplace)
    if inplace:
        assert prepared is None
        prepared = other
    assert isinstance(prepared, ad.AnnData)
    assert tuple(prepared.var_names) == spec.var_names
    assert type(prepared.X) is type(before.X)
    values = prepared.X if kind == "dense" else prepared.X.toarray()
    np.testing.assert_array_equal(values, expected_ng(adata))
    assert prepared.layers["twice"].dtype == np.int32
    np.testing.assert_array_equal(prepared.layers["twice"].toarray(), 2 * expected_ng(adata))
    np.testing.assert_array_equal(dense(prepare_query_data(prepared, spec)), expected_ng(adata))
    assert tuple(other.var_names) == (spec.var_names if inplace else tuple(before.var_names))


def test_an_anndata_keeps_what_belongs_to_its_cells(query: ad.AnnData, spec: ModelSpec) -> None:
    other = query.copy()
    other.raw = query
    other.uns["colours"] = ["red"]
    other.obsm["X_pca"] = np.ones((120, 2))
    other.obsp["near"] = sparse.eye_array(120, format="csr")
    prepare_query_anndata(other, spec)
    assert other.shape == (120, 50)
    assert other.obs.equals(query.obs)
    assert other.uns["colours"] == ["red"]
    assert (other.obsm["X_pca"] == 1).all()
    assert other.obsp["near"].sum() == 120
    assert other.var["long"].isna().sum() == 4
    assert other.raw is not None
    assert tuple(other.raw.var_names) == tuple(query.var_names)


def test_an_anndata_with_all_the_genes_keeps_what_belongs_to_them(adata: ad.AnnData, spec: ModelSpec) -> None:
    other = adata[:, ::-1].copy()
    other.varm["loadings"] = np.arange(100).reshape(50, 2)
    prepare_query_anndata(other, spec)
    np.testing.assert_array_equal(other.X.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(other.varm["loadings"][::-1], np.arange(100).reshape(50, 2))


def test_a_view_of_an_anndata_is_given_the_genes_and_its_parent_is_not(query: ad.AnnData, spec: ModelSpec) -> None:
    parent = query.copy()
    view = parent[:10]
    prepare_query_anndata(view, spec)
    assert (view.shape, parent.shape) == ((10, 50), (120, 47))


def test_names_of_the_reference_are_given_without_touching_the_query(query: ad.AnnData, spec: ModelSpec) -> None:
    names = prepare_query_anndata(query, spec, return_reference_var_names=True)
    assert names is not None
    assert tuple(names) == spec.var_names
    assert query.shape == (120, 47)


def test_an_anndata_with_few_genes_is_warned_of_and_with_none_or_doubled_ones_refused(
    adata: ad.AnnData, spec: ModelSpec
) -> None:
    with pytest.warns(UserWarning, match=r"^the query has 1 of the 50 genes of the reference \(2%\)"):
        prepare_query_anndata(adata[:, :1].copy(), spec)
    with pytest.raises(ValueError, match=r"^the query has 0 of the 50 genes"):
        prepare_query_anndata(ad.AnnData(np.ones((2, 1), np.float32)), spec)
    twice = adata.copy()
    twice.var_names = ["gene1", *adata.var_names[1:]]
    with pytest.raises(ValueError, match=r"^the query has 1 duplicated gene names \(gene1\)"):
        prepare_query_anndata(twice, spec)


def test_an_anndata_without_x_has_its_layers_changed(query: ad.AnnData, spec: ModelSpec) -> None:
    other = query.copy()
    other.layers["counts"], other.X = other.X, None
    prepare_query_anndata(other, spec)
    assert other.X is None
    assert other.layers["counts"].shape == (120, 50)


def test_an_anndata_backed_by_a_file_is_refused(query: ad.AnnData, spec: ModelSpec, save: Callable[..., Path]) -> None:
    backed = ad.read_h5ad(save(query, "h5ad"), backed="r")
    with pytest.raises(ValueError, match=r"^the query is backed by .*h5ad: give that path to prepare_query_data, or"):
        prepare_query_anndata(backed, spec)
    backed.file.close()


def test_a_reference_of_raw_counts_in_raw_is_sent_to_the_other_way(adata: ad.AnnData) -> None:
    other = adata.copy()
    other.raw = adata
    spec = spec_of(ModelConfig(), 1, open_data(other, layer="raw/X", **KEYS))
    with pytest.raises(ValueError, match=r"trained on raw/X, .*: use prepare_query_data instead"):
        prepare_query_anndata(other, spec)
    assert prepare_query_data(other, spec).n_genes == 50
