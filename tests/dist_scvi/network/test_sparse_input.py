"""The first layer straight from stored entries is the dense product."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse

from dist_scvi.network.kernels import sparse_input
from dist_scvi.network.kernels.sparse_input import SparseRows, sparse_product
from dist_scvi.network.kernels.thread_parts import own_threads


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("share", [0.1, 0.4], ids=["sparse", "dense"])
def test_value_and_gradients_are_those_of_the_dense_product(
    extra: int, threads: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_input, "_GENES", 60)
    monkeypatch.setattr(sparse_input, "_ROWS", 7)
    n, g, h = 30, 200, 20
    torch.manual_seed(1)
    matrix = sparse.random(n, g, share, "csr", np.float32, np.random.default_rng(0))
    dense, rest = torch.from_numpy(matrix.toarray()), torch.randn(n, extra, requires_grad=True)
    weight, bias = torch.randn(h, g + extra + 2, requires_grad=True), torch.randn(h, requires_grad=True)
    rows = SparseRows(
        torch.from_numpy(matrix.indptr.astype(np.int64)),
        torch.from_numpy(matrix.indices),
        torch.from_numpy(matrix.data),
        g,
        rest if extra else None,
    )
    assert rows.n_columns == g + extra
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with own_threads():
            found = sparse_product(rows, weight, bias)
            slope = torch.randn(n, h)
            gradients = torch.autograd.grad((found * slope).sum(), (weight, bias))
    finally:
        torch.set_num_threads(before)
    expected = F.linear(torch.cat([dense, rest], 1), weight[:, : g + extra], bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad((expected * slope).sum(), (weight, bias))
    torch.testing.assert_close(gradients, wanted, rtol=1e-5, atol=1e-5)
