"""Measure training steps on a GPU: the Triton kernels against plain formulas, and the table of speeds.

It needs torch, Triton, numpy and scipy, and two files of the package, which it reads where they lie: nothing is
installed. Every step takes new counts, compressed, from pinned memory, makes them dense on the GPU, and ends with a
fused Adam. ``ours`` is captured as a CUDA graph; ``eager`` is torch's operations with the zeros spared; ``scvi-tools``
does what scvi-tools 1.4.2 does: dense counts cross the bus, all gamma functions everywhere, and a plain Adam.

    python benchmarks/gpu.py [--minutes 5] [--out gpu.json]
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "gpu.json"
GENES, CELLS, DENSITY, HIDDEN, LATENT = (2_000, 8_000, 20_000), (1_024, 4_096), 0.08, 128, 10
PRECISIONS = ("float32", "tf32", "bf16")
# Bytes a second that the memory moves, and products a second, of an H200 (data sheet): for the floor.
BANDWIDTH, PEAK = 4.8e12, {"float32": 67e12, "tf32": 495e12, "bf16": 989e12}
REACHED_OF_BANDWIDTH, REACHED_OF_PEAK = 0.9, {"float32": 0.7, "tf32": 0.55, "bf16": 0.55}


def load(path: str) -> ModuleType:
    """Import a file of the package without the package, whose dependencies are not here."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "dist_scvi" / "network" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plain, kernels = load("likelihood.py"), load("kernels/likelihood_triton.py")
Counts = tuple[Tensor, Tensor, Tensor]


def draw_counts(n: int, g: int, seed: int) -> Counts:
    rng = np.random.default_rng(seed)
    rows = sparse.random(n, g, DENSITY, "csr", np.float32, rng)
    rows.data = (1 + rng.negative_binomial(0.5, 0.4, rows.nnz)).astype(np.float32)
    return tuple(
        torch.from_numpy(array).pin_memory() if torch.cuda.is_available() else torch.from_numpy(array)
        for array in (rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data)
    )


class Step(nn.Module):
    """SCVI with one layer, zinb and a dispersion by gene; the sizes that users train most."""

    def __init__(self, g: int, precision: str, kind: str) -> None:
        super().__init__()
        self.kind, self.low = kind, torch.bfloat16 if precision == "bf16" else torch.float32
        self.encoder, self.decoder = nn.Linear(g, HIDDEN), nn.Linear(LATENT, HIDDEN)
        self.norms = nn.ModuleList(nn.BatchNorm1d(HIDDEN, eps=0.001, momentum=0.01) for _ in range(2))
        self.mean, self.variance = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)
        self.scale, self.zero = nn.Linear(HIDDEN, g), nn.Linear(HIDDEN, g)
        self.log_theta = nn.Parameter(torch.randn(g))

    def product(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """Multiply, rounded to the type of this step."""
        if self.low == torch.float32:
            return layer(x)
        return F.linear(x.to(self.low), layer.weight.to(self.low)) + layer.bias

    def forward(self, counts: Counts, dense_ng: Tensor | None) -> Tensor:
        """Return the mean loss."""
        n, g = len(counts[0]) - 1, len(self.log_theta)
        if self.kind == "ours":
            x, library = kernels.triton_dense(*counts, g, log=True, dtype=self.low), row_sums(counts)
        else:
            dense_ng = dense(counts, g) if dense_ng is None else dense_ng
            x, library = torch.log1p(dense_ng), dense_ng.sum(1)
        hidden = F.dropout(F.relu(self.norms[0](self.product(self.encoder, x))), 0.1)
        mean, variance = self.mean(hidden), self.variance(hidden).exp() + 1e-4
        z = mean + variance.sqrt() * torch.randn_like(mean)
        hidden = F.relu(self.norms[1](self.decoder(z)))
        scale, zero, theta = self.product(self.scale, hidden), self.product(self.zero, hidden), self.log_theta.exp()
        if self.kind == "ours":
            value = kernels.triton_log_likelihood("zinb", scale, zero, theta, library, *counts)
        else:
            rate = torch.softmax(scale.float(), -1) * library[:, None]
            if self.kind == "eager":
                value = plain.sparse_log_likelihood("zinb", places(counts, g), counts[2], rate, theta, zero.float())
            else:
                assert dense_ng is not None
                value = plain.dense_log_likelihood("zinb", dense_ng, rate, theta, zero.float())
        kl = 0.5 * (variance + mean.square() - 1 - variance.log()).sum(-1)
        return (kl - value).sum() / n


def row_sums(counts: Counts) -> Tensor:
    total = F.pad(counts[2].double().cumsum(0), (1, 0))
    return (total[counts[0][1:]] - total[counts[0][:-1]]).float()


def places(counts: Counts, g: int) -> Tensor:
    first = torch.arange(len(counts[0]) - 1, device=counts[0].device) * g
    return torch.repeat_interleave(first, counts[0].diff(), output_size=len(counts[1])) + counts[1]


def dense(counts: Counts, g: int) -> Tensor:
    flat = torch.zeros((len(counts[0]) - 1) * g, device=counts[0].device)
    flat[places(counts, g)] = counts[2]
    return flat.view(-1, g)


def steps_of(kind: str, precision: str, n: int, g: int) -> Iterator[Callable[[], None]]:
    """Yield what takes one step, once everything is compiled."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    drawn = [draw_counts(n, g, seed) for seed in range(4)]
    most = max(len(counts[1]) for counts in drawn)
    static = (torch.zeros(n + 1, dtype=torch.int64), torch.zeros(most, dtype=torch.int32), torch.zeros(most))
    static = tuple(tensor.cuda() for tensor in static)  # of fixed size: a graph cannot grow
    model = Step(g, precision, kind).cuda().train()
    ours = kind == "ours"
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, eps=0.01, weight_decay=1e-6, fused=ours, capturable=ours)
    dense_host = [dense(counts, g).pin_memory() for counts in drawn] if kind == "scvi-tools" else []

    def learn(counts: Counts, dense_ng: Tensor | None = None) -> None:
        optimizer.zero_grad(set_to_none=not ours)
        model(counts, dense_ng).backward()
        optimizer.step()

    def send(at: int) -> None:
        for to, part in zip(static, drawn[at % len(drawn)], strict=True):
            to[: len(part)].copy_(part, non_blocking=True)

    send(0)
    if not ours:
        at = iter(range(1 << 60))

        def step() -> None:
            number = next(at) % len(drawn)
            counts = tuple(part.cuda(non_blocking=True) for part in drawn[number])
            learn(counts, dense_host[number].cuda(non_blocking=True) if dense_host else None)

        yield step
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for number in range(3):
            send(number)
            learn(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        learn(static)
    number = iter(range(1 << 60))

    def replay() -> None:
        send(next(number))
        graph.replay()

    yield replay


def timed(step: Callable[[], None], seconds: float) -> float:
    """Return the median time of a step in rounds of many, waited for once a round."""
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    torch.cuda.synchronize()
    n_steps = max(5, min(200, int(seconds / 5 / max(time.perf_counter() - begin, 1e-6))))
    rounds = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(n_steps):
            step()
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - begin) / n_steps)
    return float(np.median(rounds))


def floor_seconds(precision: str, n: int, g: int) -> float:
    """Return the time of eight products, six passes over each head, the dense input and Adam, at what is reached."""
    width = 2 if precision == "bf16" else 4
    products = 8 * 2 * n * g * HIDDEN / (PEAK[precision] * REACHED_OF_PEAK[precision])
    moved = n * g * width * (6 * 2 + 3) + 28 * (3 * HIDDEN + 4) * g
    return products + moved / (BANDWIDTH * REACHED_OF_BANDWIDTH)


def check(device: str) -> dict[str, float]:
    """Return the largest distance of values and gradients from the plain formula in float64, relative to its length."""
    worst: dict[str, float] = {}
    n, g = 33, 3_001
    counts = tuple(part.to(device) for part in draw_counts(n, g, 9))
    counts[2][5], counts[2][70] = 5_000, 40
    exact = dense(counts, g).double()
    for kind in ("zinb", "nb", "poisson"):
        torch.manual_seed(1)
        drawn = [torch.randn(n, g), 2 * torch.randn(n, g), torch.randn(g).exp(), 1.1 * row_sums(counts).cpu()]
        leaves = [leaf.to(device).requires_grad_() for leaf in drawn]
        double = [leaf.detach().double().requires_grad_() for leaf in leaves]
        zi, theta = leaves[1] if kind == "zinb" else None, None if kind == "poisson" else leaves[2]
        found = kernels.triton_log_likelihood(kind, leaves[0], zi, theta, leaves[3], *counts)
        rate = torch.softmax(double[0], -1) * double[3][:, None]
        wanted = plain.dense_log_likelihood(kind, exact, rate, double[2], double[1])
        weight = torch.linspace(0.5, 2, n, device=device)
        pairs = [(found, wanted)]
        slopes = torch.autograd.grad((found * weight).sum(), leaves, allow_unused=True)
        needed = torch.autograd.grad((wanted * weight).sum(), double, allow_unused=True)
        pairs += [pair for pair in zip(slopes, needed, strict=True) if None not in pair]
        detached = [(a.detach(), b.detach()) for a, b in pairs]
        worst[kind] = max(float((a.double() - b).norm() / b.norm()) for a, b in detached)
    dense_ng = kernels.triton_dense(*counts, g, log=True).double()
    worst["dense"] = float((dense_ng - exact.log1p()).norm() / exact.log1p().norm())
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="after which what is left is left out")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    begin = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter",
        "torch": torch.__version__,
        "largest_relative_distance": check(device),
    }
    runs: list[dict[str, object]] = []
    cases = [(g, n, p, kind) for g in GENES for n in CELLS for p in PRECISIONS for kind in ("ours", "eager")]
    cases += [(g, n, "float32", "scvi-tools") for g in GENES for n in CELLS]
    seconds = 60 * options.minutes / (2 * len(cases))
    for g, n, precision, kind in sorted(cases, key=lambda case: case[3] != "ours") if device == "cuda" else []:
        if time.perf_counter() - begin > 60 * options.minutes:
            result["left_out_for_time"] = len(cases) - len(runs)
            break
        run: dict[str, object] = {"genes": g, "cells": n, "precision": precision, "kind": kind}
        try:
            (step,) = steps_of(kind, precision, n, g)
            taken, floor = timed(step, seconds), floor_seconds(precision, n, g)
            run |= {"ms": 1e3 * taken, "cells_per_s": n / taken, "floor_ms": 1e3 * floor, "share": floor / taken}
            del step
        except (RuntimeError, torch.OutOfMemoryError) as error:
            run["error"] = str(error).splitlines()[0]
        torch.cuda.empty_cache()
        runs.append(run)
        print(json.dumps(run), flush=True)
    result |= {"seconds": time.perf_counter() - begin, "runs": runs}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["largest_relative_distance"]))


if __name__ == "__main__":
    main()
