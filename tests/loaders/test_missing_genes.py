"""A requested gene that is not there: the error names the one probably meant, or it is left out on request."""

import pytest

from dist_scvi.loaders.pack.pack import pack_store
from dist_scvi.loaders.stores.open import open_store


@pytest.fixture(params=["zarr2", "h5ad", "memory", "backed", "soma"])
def source(request, cells, save, tmp_path):
    cells.var["feature_name"] = [f"SYM{gene}" for gene in range(cells.n_vars)]
    if request.param == "memory":
        return cells
    if request.param == "soma":
        io = pytest.importorskip("tiledbsoma.io")
        io.from_anndata(str(tmp_path / "soma"), cells, "RNA", X_layer_name="raw")
        return tmp_path / "soma"
    path = save(cells, "zarr2" if request.param == "zarr2" else "h5ad")
    if request.param == "backed":
        import anndata

        return anndata.read_h5ad(path, backed="r")
    return path


def test_every_store_names_the_gene_that_differs_in_case_or_has_this_symbol(source):
    with pytest.raises(ValueError, match=r"^2 of 3 genes requested are in none of 1 stores: ") as caught:
        open_store(source, genes=["g3", "G7", "sym11"])
    assert "'G7' (did you mean 'g7'?)" in str(caught.value)
    assert "'sym11' (did you mean 'g11' (its feature_name is 'SYM11')?)" in str(caught.value)
    assert "data.skip_missing=true (--skip-missing)" in str(caught.value)


def test_missing_genes_are_left_out_on_request_and_reported(source, caplog):
    store = open_store(source, genes=["g7", "nowhere", "g3"], skip_missing=True)
    assert list(store.var_names) == ["g7", "g3"]
    assert "1 of 3 genes requested are in none of 1 stores: 'nowhere'; left out" in caplog.text


def test_a_list_of_which_no_gene_is_there_is_refused_all_the_same(cells):
    with pytest.raises(ValueError, match="2 of 2 genes requested are in none"):
        open_store(cells, genes=["a", "b"], skip_missing=True)


def test_pack_suggests_genes_by_their_symbols(cells, tmp_path):
    cells.var["gene_symbols"] = [f"SYM{gene}" for gene in range(cells.n_vars)]
    with pytest.raises(ValueError, match=r"lacks 1 of 1 genes: 'SYM4' \(did you mean 'g4' \(its gene_symbols"):
        pack_store(lambda: open_store(cells), tmp_path / "p.zarr", genes=["SYM4"])
