"""What a network is given besides cells in a step, and what it returns.

Shape letters in this file
    n   cells of a minibatch
    m   labelled cells that go with it
    l   labels
"""

from dataclasses import dataclass

from torch import Tensor

from dist_scvi.loaders.minibatch import Tensors
from dist_scvi.network.noise import Noise


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled cells that SCANVI learns to classify in a step."""

    cells: Tensors
    micro_n: tuple[int, ...]
    noise: Noise


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The parts of the negative ELBO, for each cell, and what is classified."""

    reconstruction_n: Tensor
    """Negative log-probability of the counts given z."""
    latent_n: Tensor
    """SCANVI: log q(z | x) - log p(z | z2, y), which scvi-tools counts as reconstruction; else 0."""
    kl_n: Tensor
    """What the weight of the KL term applies to."""
    kl_library_n: Tensor
    """KL term of the library size where that weight does not apply."""
    logits_ml: Tensor | None = None
    """Logits of the labelled cells."""
