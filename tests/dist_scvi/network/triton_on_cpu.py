"""Run the GPU kernels of the likelihood in Triton's interpreter, against the plain formula; a process of its own."""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import numpy as np
import torch
from scipy import sparse

from dist_scvi.network.kernels import likelihood_triton
from dist_scvi.network.kernels.likelihood_triton import triton_dense, triton_log_likelihood
from dist_scvi.network.likelihood import GeneLikelihood, dense_log_likelihood

N, G = 10, 150
KINDS: tuple[GeneLikelihood, ...] = ("zinb", "nb", "poisson")


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def main() -> None:
    for name, value in (("_BLOCK", 64), ("_ENTRIES", 16), ("_ROWS", 4)):  # several blocks, and a part of a program
        setattr(likelihood_triton, name, value)
    rng = np.random.default_rng(0)
    x = ((1 + rng.poisson(0.5, (N, G))) * (rng.random((N, G)) < 0.2)).astype(np.float64)
    x[0], x[1, 4], x[2, :20] = 0, 5000, np.arange(20)
    rows = sparse.csr_matrix(x)
    counts = [torch.from_numpy(a) for a in (rows.indptr.astype(np.int64), rows.indices, rows.data.astype(np.float32))]
    torch.testing.assert_close(triton_dense(*counts, G, log=True).double(), torch.log1p(torch.from_numpy(x)))
    weight = torch.arange(1.0, N + 1)
    for kind in KINDS:
        for by_cell in (False, True):
            drawn = [rng.normal(0, 2, (N, G)), rng.normal(0, 2, (N, G)), rng.lognormal(0, 2, (N, G) if by_cell else G)]
            leaves = [torch.from_numpy(a).float() for a in (*drawn, 1.1 * x.sum(1))]
            exact = [leaf.double().requires_grad_() for leaf in leaves]
            rate = torch.softmax(exact[0], -1) * exact[3][:, None]
            expected = dense_log_likelihood(kind, torch.from_numpy(x), rate, exact[2], exact[1])
            leaves = [leaf.requires_grad_() for leaf in leaves]
            zi, theta = leaves[1] if kind == "zinb" else None, None if kind == "poisson" else leaves[2]
            found = triton_log_likelihood(kind, leaves[0], zi, theta, leaves[3], *counts)
            assert distance(found, expected) < 1e-5, (kind, by_cell)
            wanted = torch.autograd.grad((expected * weight).sum(), exact, allow_unused=True)
            slopes = torch.autograd.grad((found * weight).sum(), leaves, allow_unused=True)
            for at, (slope, needed) in enumerate(zip(slopes, wanted, strict=True)):
                if slope is not None and needed is not None:
                    known = slice(1, None) if at == 3 else ...  # a cell without counts has none in its library size
                    assert distance(slope[known], needed[known]) < 1e-5, (kind, by_cell, at)
            sys.stdout.write(f"{kind} {'by cell' if by_cell else 'by gene'}: equal\n")


if __name__ == "__main__":
    main()
