"""One optimizer step, the same whatever number of workers share it."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dist_scvi.loaders.hashing import hash_rows
from dist_scvi.loaders.minibatch import MiniBatch, Tensors

from .noise import Noise, step_noise
from .vae import VAE
from .world import World

_N_SUMS = 4  # reconstruction, kl, cells, hash of the rows


def take_step(
    model: nn.Module,
    module: VAE,
    optimizer: torch.optim.Optimizer,
    minibatch: MiniBatch,
    noise: Noise,
    weight: float,
    world: World,
) -> Tensor:
    """Take one optimizer step with this worker's part of a global minibatch.

    Parameters
    ----------
    model
        `module`, or `module` as `average_gradients` wraps it.
    weight
        Weight of the KL term.

    Returns
    -------
    Tensor
        Sums over the cells of all workers, float64: reconstruction, KL, cells, and the hash of their rows, by which a
        record of the run shows which cells were trained on.
    """
    terms = model(minibatch.to(world.device), minibatch.micro_n, noise)
    reconstruction, kl = terms.reconstruction_n.sum(), terms.kl_n.sum()
    # Workers hold different numbers of cells and their gradients are averaged: weighed like this, the average is the
    # gradient of the mean over all cells of the global minibatch.
    loss = (reconstruction + weight * kl) * (world.size / minibatch.global_cells)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()

    row_hash = float((hash_rows(minibatch.row_n) >> np.uint64(40)).sum())
    norms = module.norms()
    mine = [
        torch.stack([reconstruction.detach(), kl.detach()]).double(),
        torch.tensor([minibatch.n_cells, row_hash], dtype=torch.float64, device=world.device),
    ]
    sums = world.total(torch.cat([*mine, *(norm.sums.double().ravel() for norm in norms if norm.sums is not None)]))
    at = _N_SUMS
    for norm in norms:
        norm.update(sums[at : at + 2 * norm.num_features].view(2, -1), minibatch.global_cells)
        at += 2 * norm.num_features
    return sums[:_N_SUMS]


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
        code,
        code,
        code[:, None].expand(2, module.n_categorical_cov),
        torch.zeros(2, module.n_continuous_cov, device=world.device),
    )
    terms = model(empty, (2,), step_noise(0, 0, 0, (0,), (2,), world.device))
    (terms.reconstruction_n.sum() + terms.kl_n.sum()).backward()
    model.zero_grad(set_to_none=True)
    return model
