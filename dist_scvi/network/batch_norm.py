"""Batch normalisation whose result does not depend on how many processes share a minibatch.

Shape letters in this file
    n   cells of this process
    h   hidden units
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_scvi.world import World


class MicroBatchNorm(nn.BatchNorm1d):
    """Batch normalisation within each micro-minibatch, or over all cells of the global minibatch.

    In training `normalise` does not change the running statistics. It keeps this process's weighted sums in `sums`; the
    training step adds them up over all processes and passes the totals to `update`. Otherwise the running statistics
    of the processes would differ.
    """

    sums: list[Tensor]
    """For each pass of the step, the sums over micro-minibatches of cells times mean and cells times unbiased variance,
    shape (2, h)."""
    world: World | None
    """The workers whose cells are normalised together in training; None normalises each micro-minibatch by itself."""

    def __init__(self, n_hidden: int) -> None:
        super().__init__(n_hidden, momentum=0.01, eps=0.001)
        self.sums = []
        self.recording = True
        self.world = None

    def normalise(self, hidden_nh: Tensor, micro_n: tuple[int, ...]) -> Tensor:
        """Normalise by the statistics of the cells in training, by the running statistics otherwise.

        Dimensions before that of the cells are further rows of the same micro-minibatch.
        """
        if not self.training or self.momentum == 0:  # momentum 0: frozen statistics of a reference
            return self._normalised(hidden_nh, self.running_mean, self.running_var)
        if self.world is not None and self.world.size > 1:
            return self._over_workers(hidden_nh, sum(micro_n), self.world)
        if self.world is not None and micro_n:
            micro_n = (sum(micro_n),)
        parts = torch.split(hidden_nh, list(micro_n), -2) if micro_n else ()
        sums, normalised = [], []
        for n, part in zip(micro_n, parts, strict=True):
            output, weighted = self._with_statistics(part.reshape(-1, self.num_features), n)
            normalised.append(output.view(part.shape))
            sums.append(weighted)
        if self.recording:
            self.sums.append(torch.stack(sums).sum(0) if sums else self.weight.new_zeros(2, self.num_features))
        if not normalised:  # no cells, but every weight must have a gradient for the reduction over workers
            return hidden_nh * self.weight + self.bias
        return normalised[0] if len(normalised) == 1 else torch.cat(normalised, dim=-2)

    def _normalised(self, hidden_nh: Tensor, mean_h: Tensor | None, var_h: Tensor | None) -> Tensor:
        flat = hidden_nh.reshape(-1, self.num_features)
        flat = F.batch_norm(flat, mean_h, var_h, self.weight, self.bias, eps=self.eps)
        return flat.view(hidden_nh.shape)

    def _with_statistics(self, flat: Tensor, n_cells: int) -> tuple[Tensor, Tensor]:
        """Normalise rows by their own statistics; return also these, times cells.

        `torch.native_batch_norm` returns the statistics that it computes, so they need no second pass over the rows.
        """
        if len(flat) == 1:
            raise ValueError(
                "batch normalisation of a single cell: its variance is not defined; change train.batch_size"
            )
        output, mean_h, scale_h = torch.native_batch_norm(
            flat, self.weight, self.bias, None, None, training=True, momentum=0.0, eps=self.eps
        )
        with torch.no_grad():
            var_h = (scale_h.pow(-2) - self.eps) * (len(flat) / (len(flat) - 1))
            return output, n_cells * torch.stack([mean_h, var_h])

    def _over_workers(self, hidden_nh: Tensor, n_cells: int, world: World) -> Tensor:
        flat = hidden_nh.reshape(-1, self.num_features)
        standard, mean_h, var_h = _StandardiseOverWorkers.apply(flat, self.eps, world)  # type: ignore[no-untyped-call]
        self.sums.append(n_cells * torch.stack([mean_h, var_h]))
        return torch.addcmul(self.bias, standard, self.weight).view(hidden_nh.shape)

    @torch.no_grad()
    def update(self, sums: Tensor, global_cells: float) -> None:
        """Move the running statistics towards the mean of all micro-minibatches of the step."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        mean_h, var_h = (sums / global_cells).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean_h, self.momentum)
        self.running_var.lerp_(var_h, self.momentum)
        self.num_batches_tracked += 1


class _StandardiseOverWorkers(torch.autograd.Function):
    """Standardise each unit to mean 0 and variance 1 over the rows of all workers.

    Each worker takes part in one reduction in the forward and one in the backward pass, also if it has no rows: the
    others would wait for it forever.
    """

    @staticmethod
    def forward(ctx: Any, x_nh: Tensor, eps: float, world: World) -> tuple[Tensor, Tensor, Tensor]:
        """Return the standardised rows, and mean and unbiased variance of the units."""
        total = world.total(_moments(x_nh))
        n_rows, (mean_h, square_h) = total[0], (total[1:] / total[0]).view(2, -1)
        var_h = square_h - mean_h.square()
        scale_h = torch.rsqrt(var_h + eps).to(x_nh.dtype)
        standard_nh = (x_nh - mean_h.to(x_nh.dtype)) * scale_h
        unbiased_h = (var_h * n_rows / (n_rows - 1)).to(x_nh.dtype)
        mean_h = mean_h.to(x_nh.dtype)
        ctx.save_for_backward(standard_nh, scale_h, n_rows.to(x_nh.dtype))
        ctx.mark_non_differentiable(mean_h, unbiased_h)
        ctx.world = world
        return standard_nh, mean_h, unbiased_h

    @staticmethod
    def backward(ctx: Any, gradient_nh: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the rows; mean and variance depend on the rows of all workers."""
        standard_nh, scale_h, n_rows = ctx.saved_tensors
        sums = torch.stack([gradient_nh.sum(0), (gradient_nh * standard_nh).sum(0)])
        shift_h, slope_h = ctx.world.total(sums) / n_rows
        return scale_h * (gradient_nh - shift_h - standard_nh * slope_h), None, None


def _moments(x_nh: Tensor) -> Tensor:
    """Return the number of rows, and sums of the rows and of their squares, shape (1 + 2 h,).

    Sums are in float64: the variance is computed as a difference of them, which cancels in float32.
    """
    n, h = x_nh.shape
    if not n:
        return x_nh.new_zeros(1 + 2 * h, dtype=torch.float64)
    var_h, mean_h = (part.double() for part in torch.var_mean(x_nh, dim=0, correction=0))
    return n * torch.cat([torch.ones_like(mean_h[:1]), mean_h, var_h + mean_h.square()])


def norms_of(part: nn.Module) -> list[MicroBatchNorm]:
    """Return the batch normalisations of a network in a fixed order."""
    return [module for module in part.modules() if isinstance(module, MicroBatchNorm)]
