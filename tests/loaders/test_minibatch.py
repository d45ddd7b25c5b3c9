"""A minibatch is narrow until it is on its device, and dense there."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from dist_scvi.loaders import open_data
from dist_scvi.loaders.stream import rows_minibatch


@pytest.mark.parametrize(
    ("highest", "n_genes", "count_type", "gene_type"),
    [(255, 9, np.uint8, np.uint16), (256, 9, np.uint16, np.uint16), (70_000, 70_000, np.uint32, np.int32)],
)
def test_counts_and_genes_travel_in_the_smallest_types_that_hold_them(
    highest: int, n_genes: int, count_type: type, gene_type: type
) -> None:
    counts = sparse.csr_matrix(([1.0, highest], ([0, 1], [0, n_genes - 1])), shape=(2, n_genes), dtype=np.float32)
    part = rows_minibatch(open_data(AnnData(counts)), np.arange(2))
    assert (part.counts.counts_e.dtype, part.counts.genes_e.dtype) == (count_type, gene_type)
    tensors = part.to("cpu")
    assert tensors.counts_ng.dtype == torch.float32
    np.testing.assert_array_equal(tensors.counts_ng, counts.toarray())


def test_the_stored_entries_point_into_the_dense_counts() -> None:
    counts = np.array([[0, 2, 0], [0, 0, 0], [5, 0, 7]], dtype=np.float32)
    tensors = rows_minibatch(open_data(AnnData(counts)), np.arange(3)).to("cpu")
    np.testing.assert_array_equal(tensors.counts_ng.view(-1)[tensors.place_e], tensors.count_e)
    assert tensors.count_e.tolist() == [2, 5, 7]
    assert tensors.library_n.tolist() == [2, 0, 12]


def test_the_stored_entries_on_a_device_make_the_dense_counts() -> None:
    counts = np.random.default_rng(0).poisson(0.4, (20, 30)).astype(np.float32)
    tensors = rows_minibatch(open_data(AnnData(counts)), np.arange(20)).to("cpu")
    assert tensors.counts_ng.dtype == torch.float32
    np.testing.assert_array_equal(tensors.counts_ng, counts)


@pytest.mark.parametrize("key", [None, "factor"])
def test_a_size_factor_takes_the_place_of_the_total_count_where_one_is_given(key: str | None) -> None:
    obs = pd.DataFrame({"factor": [0.5, 2.0, 1.25]}, index=["c0", "c1", "c2"])
    data = open_data(AnnData(np.array([[1, 2], [3, 4], [0, 0]], dtype=np.float32), obs=obs), size_factor_key=key)
    part = rows_minibatch(data, np.arange(3))
    assert part.library_n.tolist() == [3, 7, 0]
    library_n = part.to("cpu").library_n
    assert library_n.dtype == torch.float32
    assert library_n.tolist() == ([0.5, 2.0, 1.25] if key else [3, 7, 0])


def test_covariates_go_to_the_device_as_codes_and_numbers() -> None:
    obs = pd.DataFrame(
        {"batch": ["b", "a"], "type": ["t", None], "site": ["x", "y"], "age": [0.5, 7.0]}, index=["c0", "c1"]
    )
    data = open_data(
        AnnData(np.ones((2, 2), dtype=np.float32), obs=obs),
        batch_key="batch",
        labels_key="type",
        categorical_covariate_keys=["site"],
        continuous_covariate_keys=["age"],
    )
    covariates = rows_minibatch(data, np.arange(2)).to("cpu").covariates
    assert covariates.batch_n.tolist() == [1, 0]
    assert covariates.label_n.tolist() == [0, -1]
    assert covariates.categorical_nc.tolist() == [[0], [1]]
    assert covariates.continuous_nc.tolist() == [[0.5], [7.0]]
    kinds = [covariates.batch_n, covariates.label_n, covariates.categorical_nc, covariates.continuous_nc]
    assert [kind.dtype for kind in kinds] == [torch.int64] * 3 + [torch.float32]
