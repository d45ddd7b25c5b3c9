"""One optimizer step, the same whatever number of workers share it.

Shape letters in this file
    n   cells of this worker's part of a minibatch
    m   labelled cells beside it
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dist_scvi.loaders.minibatch import Covariates, MiniBatch, Tensors

from .config import TrainConfig
from .losses import cell_losses, loss_sums
from .noise import StepNoise, step_noise
from .scanvae import SCANVAE
from .vae import VAE, Labelled
from .world import World


@dataclass(frozen=True, slots=True)
class Step:
    """What a step leaves to be told."""

    epoch: int
    step: int
    sums: Tensor
    """Sums over the cells of all workers; see `loss_sums`."""
    row_n: NDArray[np.int64]
    """Rows of this worker's cells."""
    loss_n: Tensor
    """Loss of each of them."""


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
) -> Step:
    """Take one optimizer step with this worker's part of a global minibatch.

    Parameters
    ----------
    model
        `module`, or `module` as `average_gradients` wraps it.
    labelled
        This worker's part of the labelled cells that SCANVI classifies in this step, of which there may be none.
    seed
        Of the noise.
    kl_weight
        Weight of the KL term.
    """
    for norm in module.norms():
        norm.sums.clear()  # of a step that was interrupted
    beside = None
    if labelled is not None:
        beside = Labelled(labelled.to(world.device), labelled.micro_n, _noise(seed, labelled, world))
    terms = model(minibatch.to(world.device), minibatch.micro_n, _noise(seed, minibatch, world), beside)
    loss_n = cell_losses(terms, kl_weight)
    loss, label_m = loss_n.sum() / minibatch.global_cells, None
    if labelled is not None and beside is not None:
        label_m = beside.cells.covariates.label_n
        cross = F.cross_entropy(terms.logits_ml, label_m, reduction="sum")
        loss = loss + settings.classification_ratio * cross / labelled.global_cells
    optimizer.zero_grad(set_to_none=True)
    # Workers hold different numbers of cells and their gradients are averaged: weighed like this, the average is the
    # gradient of the mean over all cells of the global minibatch.
    torch.autograd.backward(loss * world.size)
    _move(module, optimizer, settings.gradient_clip_val)

    sums = loss_sums(terms, loss_n, minibatch.row_n, label_m)
    return Step(
        minibatch.epoch,
        minibatch.step,
        _add_up(module, sums, [part.global_cells for part in (minibatch, labelled) if part is not None], world),
        minibatch.row_n,
        loss_n.detach(),
    )


def make_optimizer(module: VAE, settings: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimizer of the parameters that may move."""
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
    """Refuse to go on with weights that are not finite, which a finite loss can leave behind.

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
    """Move the parameters along their gradients, but for the frozen entries, which stay whatever the optimizer does."""
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


def _add_up(module: VAE, sums: Tensor, global_cells: list[int], world: World) -> Tensor:
    """Add up `sums` over all workers, and with the same message the statistics of batch normalisation.

    `global_cells` are the cells of the first pass through a normalisation, and of the second.
    """
    norms = module.norms()
    passes = [(norm, place) for norm in norms for place in range(len(norm.sums))]
    parts = [norm.sums[place].double().ravel() for norm, place in passes]
    total = world.total(torch.cat([sums, *parts]))
    at = len(sums)
    for norm, place in passes:
        norm.update(total[at : at + 2 * norm.num_features].view(2, -1), global_cells[place])
        at += 2 * norm.num_features
    for norm in norms:
        norm.sums = []
    return total[: len(sums)]


def average_gradients(module: VAE, world: World) -> nn.Module:
    """Wrap `module` so that backward passes average its gradients over the workers."""
    if world.size == 1:
        return module
    model = DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)
    # DDP lays out its buckets anew after the first backward pass, and with them the order of additions. Let that happen
    # before the first real step, so that a resumed run adds up in the same order as one that was never interrupted.
    count = torch.zeros(0, device=world.device)
    code = torch.zeros(2, dtype=torch.int64, device=world.device)
    empty = Tensors(
        torch.zeros(2, module.n_genes, device=world.device),
        count.long(),
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
