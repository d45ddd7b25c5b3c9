"""Inputs of a network's training step besides the cells, and its result.

Shape letters in this file
    n   cells of a minibatch
    m   labelled cells of the step
    l   labels
"""

from dataclasses import dataclass

from torch import Tensor

from dist_scvi.loaders.minibatch import Tensors
from dist_scvi.network.noise import Noise


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled cells for the classification loss of SCANVI in a step."""

    cells: Tensors
    micro_n: tuple[int, ...]
    noise: Noise


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The terms of the negative ELBO of each cell, and the logits of labelled cells."""

    reconstruction_n: Tensor
    """Negative log-probability of the counts given z."""
    latent_n: Tensor
    """SCANVI: log q(z | x) - log p(z | z2, y), which scvi-tools counts as reconstruction; else 0."""
    kl_n: Tensor
    """KL terms that the KL weight applies to."""
    kl_library_n: Tensor
    """KL term of the library size where the KL weight does not apply."""
    logits_ml: Tensor | None = None
    """Logits of the labelled cells."""
