"""An atlas in the formats of others holds the same cells; an atlas of format 1 becomes one of format 2."""

import tarfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.export import write_h5ad, write_parquet
from dist_scvi.atlas.store.verify import verify_atlas
from dist_scvi.atlas.upgrade import upgrade_atlas


def test_chosen_cells_and_genes_become_an_anndata(atlas: Atlas) -> None:
    found = atlas.to_anndata(genes=["SYM3", "gene7"], where="site == 'x' and depth > 100")
    assert list(found.var_names) == ["gene3", "gene7"]
    assert set(found.obs["site"]) == {"x"}
    assert found.obs["depth"].min() > 100
    rows = atlas.rows_named(list(found.obs_names))
    np.testing.assert_array_equal(found.obsm["X_scVI"], atlas.read_latent(rows)[0])
    np.testing.assert_allclose(found.X, atlas.get_normalized_expression(["gene3", "gene7"], indices=rows), rtol=1e-5)
    whole = atlas.to_anndata()
    assert whole.shape == (403, 50)
    assert whole.X.nnz == 0
    assert list(whole.var["symbol"]) == list(atlas.var["symbol"])


def test_lazy_arrays_are_those_of_the_atlas(atlas: Atlas) -> None:
    lazy = atlas.to_dask(100)
    assert lazy["scvi_latent_qzm"].numblocks[0] > 3
    np.testing.assert_array_equal(lazy["scvi_latent_qzm"].compute(scheduler="sync"), atlas.read_latent()[0])
    np.testing.assert_array_equal(lazy["site"].compute(scheduler="sync"), atlas.obs.codes("site"))
    assert lazy["depth"].dtype == np.int16
    assert lazy["depth"].sum().compute(scheduler="sync") == np.arange(403).sum()


def test_an_h5ad_is_what_scvi_tools_minifies(atlas: Atlas, tmp_path: Path) -> None:
    write_h5ad(atlas, tmp_path / "cells.h5ad")
    found = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert found.uns["_scvi_adata_minify_type"] == "latent_posterior_parameters"
    np.testing.assert_array_equal(found.obsm["scvi_latent_qzm"], atlas.read_latent()[0])
    np.testing.assert_array_equal(found.obsm["scvi_latent_qzv"], atlas.read_latent()[1])
    np.testing.assert_array_equal(found.obs["observed_lib_size"], atlas.read_library())
    assert list(found.obs_names) == list(atlas.obs_names())


def test_parquet_holds_a_row_for_each_cell(atlas: Atlas, tmp_path: Path) -> None:
    write_parquet(atlas, tmp_path / "cells.parquet")
    found = pd.read_parquet(tmp_path / "cells.parquet")
    assert list(found["cell"]) == list(atlas.obs_names())
    np.testing.assert_array_equal(found[[f"z{k}" for k in range(4)]], atlas.read_latent()[0])
    assert list(found["group"].astype(object).fillna("none")) == list(atlas.obs["group"].astype(object).fillna("none"))
    with pytest.raises(FileExistsError, match=r"cells\.parquet exists"):
        write_parquet(atlas, tmp_path / "cells.parquet")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cells.parquet"]


def test_an_atlas_of_format_1_becomes_one_of_format_2_without_counts(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).parent / "files" / "atlas_format_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    old = open_atlas(tmp_path / "atlas")
    new = upgrade_atlas(tmp_path / "atlas", tmp_path / "new")
    rows = new.read_source_row()
    assert (new.format, new.n_cells, new.leaves.has_counts) == (2, 60, False)
    np.testing.assert_allclose(new.read_latent()[0], old.read_latent()[0][rows], rtol=2**-10, atol=1e-5)
    np.testing.assert_array_equal(new.read_library(), old.read_library()[rows])
    assert list(new.obs_names()) == list(old.obs_names(rows))
    np.testing.assert_allclose(
        new.get_normalized_expression(), old.get_normalized_expression(indices=rows), rtol=1e-2, atol=1e-6
    )
    assert verify_atlas(tmp_path / "new") == []
    with pytest.raises(ValueError, match="has format 2 already"):
        upgrade_atlas(tmp_path / "new", tmp_path / "newer")
