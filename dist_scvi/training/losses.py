"""Sums of the losses over cells, which workers add up, and the means that are logged.

Shape letters in this file
    n   cells
    m   cells that are classified
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_scvi.network.loss_terms import LossTerms
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.network.vae import VAE
from dist_scvi.training.label_metrics import classification_metrics, classification_sums, n_classification_sums

_N_PLAIN = 5


def cell_losses(terms: LossTerms, weight: float) -> Tensor:
    """Return the loss of each cell without classification, shape (n,); `weight` is that of the KL term."""
    return terms.reconstruction_n + terms.latent_n + terms.kl_library_n + weight * terms.kl_n


@torch.no_grad()
def loss_sums(
    terms: LossTerms, loss_n: Tensor, hash_n: NDArray[np.uint64] | None, label_m: Tensor | None = None
) -> Tensor:
    """Return the sums over some cells that `loss_means` needs, float64.

    Parameters
    ----------
    loss_n
        From `cell_losses`.
    hash_n
        Hashes of the content of the cells; their sum identifies in the metrics the cells that were trained on.
    label_m
        True labels of the cells of ``terms.logits_ml``.
    """
    reconstruction_n, kl_n = terms.reconstruction_n + terms.latent_n, terms.kl_n + terms.kl_library_n
    # 24 bits of each hash: sums over 2**29 cells are exact in float64, and thus equal for any number of workers.
    hash_sum = 0.0 if hash_n is None else float((hash_n >> np.uint64(40)).sum())
    sums = [
        torch.stack([part_n.double().sum() for part_n in (loss_n, reconstruction_n, kl_n)]),
        loss_n.new_tensor([len(loss_n), hash_sum], dtype=torch.float64),
    ]
    if terms.logits_ml is not None and label_m is not None:
        sums.append(classification_sums(terms.logits_ml, label_m))
    return torch.cat(sums)


def no_loss_sums(module: VAE) -> Tensor:
    """Return the sums over no cells."""
    more = n_classification_sums(module.n_labels) if isinstance(module, SCANVAE) else 0
    return torch.zeros(_N_PLAIN + more, dtype=torch.float64, device=module.device)


def loss_means(sums: NDArray[np.float64], classification_ratio: float) -> dict[str, Any]:
    """Return the means from sums over all workers.

    Returns
    -------
    dict
        ``loss`` (what is minimised), ``elbo`` (as scvi-tools logs it: reconstruction + kl, lower is better),
        ``reconstruction``, ``kl``, ``cells``, ``cells_hash``, and for SCANVI those of `classification_metrics`.
    """
    loss, reconstruction, kl = (sums[:3] / max(sums[3], 1)).tolist()
    classified = classification_metrics(sums[_N_PLAIN:]) if len(sums) > _N_PLAIN else {}
    return {
        "loss": loss + classification_ratio * classified.get("classification_loss", 0.0),
        "elbo": reconstruction + kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "cells": int(sums[3]),
        "cells_hash": int(sums[4]),
        **classified,
    }
