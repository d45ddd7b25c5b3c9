"""One optimizer step, with the same result for any number of workers.

Shape letters in this file
    n   cells of this worker's part of a minibatch
    m   labelled cells of the same step
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from dist_scvi.config.schema import TrainConfig
from dist_scvi.loaders.minibatch import Covariates, MiniBatch, Tensors
from dist_scvi.network.kernels.thread_parts import own_threads
from dist_scvi.network.linear import Linear
from dist_scvi.network.loss_terms import Labelled
from dist_scvi.network.noise import StepNoise, step_noise
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.network.vae import VAE
from dist_scvi.training.losses import cell_losses, loss_sums
from dist_scvi.world import World

_BY_CELL = ("batch_n", "label_n", "categorical_nc", "continuous_nc", "library_n", "row_n")


@dataclass(frozen=True, slots=True)
class Step:
    """Results of a step."""

    epoch: int
    step: int
    sums: Tensor
    """Sums over the cells of all workers; see `loss_sums`."""
    row_n: NDArray[np.int64]
    """Rows of this worker's cells."""
    loss_n: Tensor
    """Loss of each of these cells."""
    requests: Tensor
    """Sums over all workers of the requests to save, and to save and stop, float64, shape (2,)."""


def take_step(
    model: nn.Module,
    module: VAE,
    optimizer: torch.optim.Optimizer,
    minibatch: MiniBatch,
    labelled: MiniBatch | None,
    settings: TrainConfig,
    *,
    seed: int,
    kl_weight: float,
    world: World,
    requests: tuple[float, float] = (0.0, 0.0),
) -> Step:
    """Take one optimizer step with this worker's part of a global minibatch.

    Parameters
    ----------
    model
        `module`, or `module` as `average_gradients` wraps it.
    labelled
        This worker's part of the labelled cells that SCANVI classifies in this step; it may be empty.
    seed
        Seed of the noise.
    kl_weight
        Weight of the KL term.
    requests
        Requests of this worker to all: to save; to save and stop. They are summed together with the losses.
    """
    optimizer.zero_grad(set_to_none=True)
    parts = _parts(minibatch, labelled, settings.gradient_accumulation_steps)
    found = []
    with own_threads(), _arithmetic(module, settings, world):
        for at, part in enumerate(parts, 1):
            # The parts add to the local gradients, and only the last one sends them: once a step, as without parts.
            with model.no_sync() if isinstance(model, DistributedDataParallel) and at < len(parts) else nullcontext():
                found.append(_learn(model, module, *part, settings, seed, kl_weight, world))
    _move(module, optimizer, settings.gradient_clip_val)

    loss_n, messages = torch.cat([loss_n for loss_n, _ in found]), torch.stack([message for _, message in found])
    # `torch.full` is filled on the device. A tensor made from a list would be copied there, and that copy waits for the
    # device.
    sent = [torch.full((1,), value, dtype=torch.float64, device=world.device) for value in requests]
    n_norm = sum(sums.numel() for norm in module.norms() for sums in norm.sums)
    # One all-reduce for requests, losses and normalisations: all are small, so that each further one would cost its
    # latency only.
    total = world.total(torch.cat([*sent, messages.sum(0)]))
    of_all, sums, of_norms = torch.split(total, [2, len(total) - 2 - n_norm, n_norm])
    _update(module, of_norms, [every.global_cells for every in (minibatch, labelled) if every is not None])
    return Step(minibatch.epoch, minibatch.step, sums, minibatch.row_n, loss_n, of_all)


def _learn(
    model: nn.Module,
    module: VAE,
    minibatch: MiniBatch,
    labelled: MiniBatch | None,
    settings: TrainConfig,
    seed: int,
    kl_weight: float,
    world: World,
) -> tuple[Tensor, Tensor]:
    """Run the forward and backward pass of some cells and add to the gradients.

    Returns
    -------
    loss_n, message
        The loss of each cell; the sums of the losses, followed by those of the normalisations, to be summed over all
        cells.
    """
    norms = module.norms()
    for norm in norms:
        norm.sums = []  # remove sums of the previous part, or of a step that was interrupted
    alongside = None
    if labelled is not None:
        alongside = Labelled(labelled.to(world.device), labelled.micro_n, _noise(seed, labelled, world))
    terms = model(minibatch.to(world.device), minibatch.micro_n, _noise(seed, minibatch, world), alongside)
    loss_n = cell_losses(terms, kl_weight)
    loss, label_m = loss_n.sum() / minibatch.global_cells, None
    if labelled is not None and alongside is not None:
        label_m = alongside.cells.covariates.label_n
        cross = F.cross_entropy(terms.logits_ml, label_m, reduction="sum")
        loss = loss + settings.classification_ratio * cross / labelled.global_cells
    # Workers have different numbers of cells, and DDP averages their gradients. The loss is a sum over cells divided by
    # the global number of cells. Times the number of workers, the average is the gradient of the mean over all cells
    # of the global minibatch. Means over the cells of each worker would weight cells by the worker that has them.
    torch.autograd.backward(loss * world.size)
    of_norms = [sums.double().ravel() for norm in norms for sums in norm.sums]
    return loss_n.detach(), torch.cat([loss_sums(terms, loss_n, minibatch.hash_n, label_m), *of_norms])


def _parts(minibatch: MiniBatch, labelled: MiniBatch | None, n_parts: int) -> list[tuple[MiniBatch, MiniBatch | None]]:
    """Split the cells of a worker in a step into at most `n_parts` parts of at least one micro-minibatch each."""
    n_parts = max(1, min(n_parts, len(minibatch.micro_n)))
    alongside = [None] * n_parts if labelled is None else _cut(labelled, n_parts)
    return list(zip(_cut(minibatch, n_parts), alongside, strict=True))


def _cut(minibatch: MiniBatch, n_parts: int) -> list[MiniBatch]:
    """Split between micro-minibatches, without copying counts; with fewer of them than parts, some parts are empty."""
    if n_parts == 1:
        return [minibatch]
    # Never within a micro-minibatch: the statistics of batch normalisation and the keys of the noise belong to it, so
    # that the result does not depend on the number of parts.
    edges = [part * len(minibatch.micro_n) // n_parts for part in range(n_parts + 1)]
    parts = []
    for first, stop in pairwise(edges):
        low, high = sum(minibatch.micro_n[:first]), sum(minibatch.micro_n[:stop])
        size_factor_n, hash_n = minibatch.size_factor_n, minibatch.hash_n
        part = replace(
            minibatch,
            counts=minibatch.counts.part(low, high),
            size_factor_n=None if size_factor_n is None else size_factor_n[low:high],
            hash_n=None if hash_n is None else hash_n[low:high],
            micro_n=minibatch.micro_n[first:stop],
            micro_keys=minibatch.micro_keys[first:stop],
            **{name: getattr(minibatch, name)[low:high] for name in _BY_CELL},
        )
        parts.append(part)
    return parts


@contextmanager
def _arithmetic(module: VAE, settings: TrainConfig, world: World) -> Iterator[None]:
    """Set the precision and normalisation of `module` for the duration of a step; inference does not use them."""
    linears: list[Linear] = []
    if settings.precision == "bf16-mixed":
        linears = [layer for layer in module.modules() if isinstance(layer, Linear)]
    norms = module.norms() if settings.batch_norm == "global" else []
    try:
        for linear in linears:
            linear.operands = torch.bfloat16
        for norm in norms:
            norm.world = world
        yield
    finally:
        for linear in linears:
            linear.operands = None
        for norm in norms:
            norm.world = None


def make_optimizer(module: VAE, settings: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of the trainable parameters."""
    moving = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not moving:
        raise ValueError(
            "nothing of this query model can move: it has no new batch or covariate; load_query_data with "
            "freeze_reference_categories=False or unfrozen=True, or leave it untrained"
        )
    kind = torch.optim.AdamW if settings.optimizer == "AdamW" else torch.optim.Adam
    return kind(
        moving,
        lr=settings.lr,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def check_weights(module: VAE, step: int) -> None:
    """Refuse to continue with weights that are not finite. A finite loss does not exclude them.

    Raises
    ------
    FloatingPointError
        On all workers alike, since all have the same weights.
    """
    bad = [name for name, value in module.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise FloatingPointError(
            f"step {step} left weights that are not finite ({', '.join(bad[:5])}): lower train.lr, or look for extreme "
            "counts with 'dist-scvi inspect'; the checkpoints before this step are kept"
        )


def _noise(seed: int, minibatch: MiniBatch, world: World) -> StepNoise:
    return step_noise(seed, minibatch.epoch, minibatch.step, minibatch.micro_keys, minibatch.micro_n, world.device)


@torch.no_grad()
def _move(module: VAE, optimizer: torch.optim.Optimizer, longest: float | None) -> None:
    """Take the optimizer step; frozen entries keep their values whatever the optimizer does."""
    # Gradients of zero are not enough: weight decay changes entries without a gradient. Hence the copy from before.
    # The gradients are zeroed all the same, so that frozen entries do not count in the norm that is clipped.
    frozen = [(module.get_parameter(name), mask) for name, mask in module.frozen.items()]
    before = [parameter.clone() for parameter, _ in frozen]
    for parameter, mask in frozen:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(mask, 0)
    if longest is not None:
        nn.utils.clip_grad_norm_(module.parameters(), longest)
    optimizer.step()
    for (parameter, mask), old in zip(frozen, before, strict=True):
        parameter.copy_(torch.where(mask, old, parameter))


def _update(module: VAE, sums: Tensor, global_cells: list[int]) -> None:
    """Update the running statistics of the normalisations in order, from their `sums` over all workers.

    `global_cells` are the numbers of cells of the first and of the second pass through a normalisation.
    """
    at = 0
    for norm in module.norms():
        for cells in global_cells[: len(norm.sums)]:
            norm.update(sums[at : at + 2 * norm.num_features].view(2, -1), cells)
            at += 2 * norm.num_features
        norm.sums = []


def average_gradients(module: VAE, world: World, settings: TrainConfig) -> nn.Module:
    """Wrap `module` so that backward passes average its gradients over the workers, in bfloat16 if requested."""
    if world.size == 1:
        return module
    # No broadcast of buffers: `_update` computes the running statistics from sums over all workers, so that they are
    # equal everywhere already.
    with warnings.catch_warnings():  # torch 2.13 names a replacement that older versions lack
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model = DistributedDataParallel(
            module, process_group=world.group, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    if settings.gradient_compression == "bf16":
        model.register_comm_hook(world.group or dist.group.WORLD, _in_bfloat16)
    # DDP rebuilds its buckets after the first backward pass, which changes the order of additions. This pass over empty
    # cells makes it do so before the first real step, so that a resumed run adds in the same order as one that was
    # never interrupted.
    count = torch.zeros(0, device=world.device)
    code = torch.zeros(2, dtype=torch.int64, device=world.device)
    empty = Tensors(
        module.n_genes,
        torch.zeros(3, dtype=torch.int64, device=world.device),
        count.int(),
        count,
        torch.ones(2, device=world.device),
        Covariates(
            code,
            code,
            code[:, None].expand(2, module.n_categorical_cov),
            torch.zeros(2, module.n_continuous_cov, device=world.device),
        ),
    )
    first, second = (step_noise(0, 0, 0, (key,), (2,), world.device) for key in range(2))
    terms = model(empty, (2,), first, Labelled(empty, (2,), second) if isinstance(module, SCANVAE) else None)
    loss = cell_losses(terms, 1.0).sum()
    (loss if terms.logits_ml is None else loss + terms.logits_ml.sum()).backward()
    model.zero_grad(set_to_none=True)
    for norm in module.norms():
        norm.sums = []
    return model


def _in_bfloat16(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Average some gradients.

    torch refuses to register its own hook by name without NCCL, although the hook works with gloo.
    """
    return bf16_compress_hook(group, bucket)
