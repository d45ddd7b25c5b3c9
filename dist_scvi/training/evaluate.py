"""Compute the losses, and the metrics of predicted labels, over a split of the cells."""

import torch

from dist_scvi.config.schema import RunConfig
from dist_scvi.loaders import CellData, Plan
from dist_scvi.loaders.order.plan import Split
from dist_scvi.loaders.stream import split_stream
from dist_scvi.metrics.metrics_file import Row
from dist_scvi.network.loss_terms import Labelled
from dist_scvi.network.noise import RowNoise
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.network.vae import VAE
from dist_scvi.training.losses import cell_losses, loss_means, loss_sums, no_loss_sums
from dist_scvi.world import World

_VALIDATION_DRAW = 0


@torch.no_grad()
def evaluate(
    module: VAE, data: CellData, plan: Plan, split: Split, world: World, config: RunConfig, weight: float = 1.0
) -> Row:
    """Average the loss terms over a split, at one draw of z per cell that is keyed by the cell.

    Parameters
    ----------
    weight
        Weight of the KL term in ``loss``.

    Returns
    -------
    dict
        The result of `loss_means`, exact over all workers; all labelled cells of the split are classified.
    """
    training, sums = module.training, no_loss_sums(module)
    module.eval()
    for minibatch in split_stream(
        data, plan, split, rank=world.rank, world_size=world.size, timeout_s=config.data.timeout_s
    ):
        cells = minibatch.to(world.device)
        noise, again = (RowNoise(config.seed, minibatch.row_n, _VALIDATION_DRAW) for _ in range(2))
        classified = Labelled(cells, (), again) if isinstance(module, SCANVAE) else None
        terms = module(cells, (), noise, classified)
        sums += loss_sums(terms, cell_losses(terms, weight), None, cells.covariates.label_n)
    module.train(training)
    means = loss_means(world.total(sums).cpu().numpy(), config.train.classification_ratio)
    del means["cells_hash"]
    return means
