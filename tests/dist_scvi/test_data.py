"""Data sets for tutorials: what scvi-tools makes, in the same places and from the same distributions."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import dist_scvi
from dist_scvi.data import synthetic_iid
from dist_scvi.model import SCVI


def test_cells_lie_where_tutorials_look_for_them() -> None:
    adata = dist_scvi.data.synthetic_iid(batch_size=5000, n_genes=10, n_proteins=4, n_regions=0, n_labels=4)
    assert adata.shape == (10_000, 10)
    assert adata.obs["batch"].value_counts().to_dict() == {"batch_0": 5000, "batch_1": 5000}
    assert set(adata.obs["labels"]) == {"label_0", "label_1", "label_2", "label_3"}
    assert list(adata.var_names[:2]) == ["gene_0", "gene_1"]
    assert adata.obsm["protein_expression"].shape == (10_000, 4)
    assert list(adata.obsm) == ["protein_expression"]
    mean = 5 * 0.7 / 0.3  # of a negative binomial
    assert np.mean(adata.X) == pytest.approx(0.7 * mean, rel=0.02)
    assert np.mean(adata.obsm["protein_expression"]) == pytest.approx(mean, rel=0.02)


def test_a_seed_decides_the_numbers_and_a_format_how_they_lie() -> None:
    dense, again, other = (synthetic_iid(20, 8, seed=seed) for seed in (1, 1, 2))
    compressed = synthetic_iid(20, 8, seed=1, sparse_format="csr_matrix", generate_coordinates=True)
    np.testing.assert_array_equal(dense.X, again.X)
    assert not np.array_equal(dense.X, other.X)
    assert isinstance(compressed.X, sparse.csr_matrix)
    np.testing.assert_array_equal(compressed.X.toarray(), dense.X)
    assert compressed.obsm["coordinates"].shape == (40, 2)


def test_a_tutorial_runs_on_it() -> None:
    adata: ad.AnnData = synthetic_iid(30, 12)
    SCVI.setup_anndata(adata, batch_key="batch", labels_key="labels")
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, batch_size=32, enable_progress_bar=False)
    assert model.get_latent_representation().shape == (60, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: at least 1"),
        ({"dropout_ratio": 1.5}, "dropout_ratio=1.5: a probability"),
        ({"sparse_format": "dok"}, "sparse_format='dok': csr_matrix"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_iid(**options)
