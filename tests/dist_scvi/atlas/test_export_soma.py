"""Latent means and obs columns of an atlas in a TileDB-SOMA experiment of the same cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tiledbsoma
import tiledbsoma.io

from dist_scvi.atlas.export_soma import write_soma


@pytest.fixture
def experiment(more, tmp_path):
    """All cells of the atlas in another order, and two that are not in it."""
    order = np.append(np.random.default_rng(0).permutation(403), [0, 1])
    obs = more.obs[["batch", "age"]].iloc[order].set_axis([*more.obs_names[order[:403]], "new0", "new1"])
    cells = ad.AnnData(more.X[order], obs, more.var)
    return tiledbsoma.io.from_anndata(str(tmp_path / "cells.soma"), cells, "RNA")


def test_arrays_and_columns_are_added_by_the_names_of_cells(atlas, experiment):
    write_soma(atlas, experiment)
    with tiledbsoma.open(experiment) as found:
        obs = found.obs.read().concat().to_pandas().set_index("obs_id")
        names = obs.index[:403]
        for key, expected_nk in zip(("scvi_latent_qzm", "scvi_latent_qzv"), atlas.read_latent(), strict=True):
            array = found.ms["RNA"].obsm[key]
            assert array.shape == (405, 4)
            dense = array.read().coos((405, 4)).concat().to_scipy().toarray()
            np.testing.assert_array_equal(dense[:403], expected_nk[atlas.rows_named(list(names))])
            assert not dense[403:].any()
        assert list(obs.columns[:3]) == ["soma_joinid", "batch", "age"]
        assert {"site", "depth", "quality", "label"} <= set(obs.columns)
        assert not {"leaf", "log_normalizer", "source_row"} & set(obs.columns)
        site = pd.Series(atlas.obs["site"].astype(object).to_numpy(), atlas.obs_names())
        assert list(obs.loc[names, "site"].astype(object)) == list(site[names])
        np.testing.assert_array_equal(obs.loc[names, "depth"], [int(name[4:]) for name in names])
        assert obs["site"].isna().tolist() == [False] * 403 + [True] * 2
    with pytest.raises(ValueError, match="obsm/scvi_latent_qzm, scvi_latent_qzv already"):
        write_soma(atlas, experiment)
    write_soma(atlas, experiment, columns=["site"], overwrite=True)
    with tiledbsoma.open(experiment) as found:
        assert found.ms["RNA"].obsm["scvi_latent_qzm"].nnz == 403 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measurement": "protein"}, "has no measurement 'protein': it has RNA"),
        ({"obs_names_column": "batch"}, "names several cells 'b"),
        ({"obs_names_column": "soma_joinid"}, "403 of 403 cells of the atlas are not in"),
        ({"obs_names_column": "barcode"}, "has no column 'barcode'"),
        ({"columns": ["batch"]}, "has batch already"),
        ({"columns": ["tissue"]}, "tissue"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_experiment_stays(atlas, experiment, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_soma(atlas, experiment, **arguments)
    with tiledbsoma.open(experiment) as found:
        assert "scvi_latent_qzm" not in (found.ms["RNA"].obsm if "obsm" in found.ms["RNA"] else {})


def test_what_is_no_experiment_is_refused(atlas, tmp_path):
    with pytest.raises(ValueError, match="cannot be opened as a TileDB-SOMA experiment"):
        write_soma(atlas, str(tmp_path / "nothing"))
