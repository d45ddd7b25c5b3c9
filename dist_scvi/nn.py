"""The building blocks of the networks; names and order of construction of scvi-tools 1.4.2, nn/_base_components.py.

Shape letters in this file
    n   cells of a minibatch
    h   hidden units
    k   latent dimensions
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .noise import Noise

_VAR_EPS = 1e-4


class MicroBatchNorm(nn.BatchNorm1d):
    """Batch normalisation within each micro-minibatch, so that the result does not depend on how many a process holds.

    In training `forward` leaves the running statistics alone and keeps this process's weighted sums in `sums`; the
    training step adds them up over all processes and passes the total to `update`.
    """

    sums: Tensor | None = None
    """Sums over micro-minibatches of cells times mean and cells times unbiased variance, shape (2, h)."""

    def __init__(self, n_hidden: int) -> None:
        super().__init__(n_hidden, momentum=0.01, eps=0.001)

    def normalise(self, hidden_nh: Tensor, micro_n: tuple[int, ...]) -> Tensor:
        """Normalise each micro-minibatch by its own statistics in training, by the running ones otherwise."""
        if not self.training:
            return F.batch_norm(
                hidden_nh, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        parts = torch.split(hidden_nh, list(micro_n))
        with torch.no_grad():
            moments = [torch.var_mean(part, dim=0) for part in parts]
            self.sums = torch.stack(
                [
                    sum(n * mean for n, (_, mean) in zip(micro_n, moments, strict=True)),  # type: ignore[list-item]
                    sum(n * var for n, (var, _) in zip(micro_n, moments, strict=True)),  # type: ignore[list-item]
                ]
            )
        return torch.cat(
            [F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps) for part in parts]
        )

    @torch.no_grad()
    def update(self, sums: Tensor, global_cells: float) -> None:
        """Move the running statistics towards the mean over all micro-minibatches of the step."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        mean_h, var_h = (sums / global_cells).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean_h, self.momentum)
        self.running_var.lerp_(var_h, self.momentum)
        self.num_batches_tracked += 1


class FCLayers(nn.Module):
    """Fully connected layers, each given the one-hot covariates again.

    Parameters
    ----------
    n_in, n_out, n_hidden
        Widths.
    n_cat_list
        Categories of each covariate; one with a single category says nothing and is left out.
    n_layers
        Number of layers.
    dropout_rate
        Probability that a unit is set to 0 in training.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        n_cat_list: Sequence[int] = (),
        n_layers: int = 1,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.n_cat_list = [n if n > 1 else 0 for n in n_cat_list]
        self.dropout_rate = dropout_rate
        widths = [n_in] + (n_layers - 1) * [n_hidden] + [n_out]
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            (f"Layer {i}", nn.Sequential(nn.Linear(wide + sum(self.n_cat_list), out), MicroBatchNorm(out)))
            for i, (wide, out) in enumerate(pairwise(widths))
        )
        self.fc_layers = nn.Sequential(layers)

    def forward(self, x: Tensor, codes: Sequence[Tensor], micro_n: tuple[int, ...], noise: Noise | None) -> Tensor:
        """Send `x` through all layers.

        Parameters
        ----------
        codes
            A code for each cell and each entry of `n_cat_list`.
        micro_n
            Sizes of the micro-minibatches.
        noise
            Source of dropout; None outside training.
        """
        one_hot = [F.one_hot(code, n).to(x.dtype) for code, n in zip(codes, self.n_cat_list, strict=True) if n]
        for layer in self.fc_layers:
            linear, norm = layer.children()
            assert isinstance(norm, MicroBatchNorm)
            x = F.relu(norm.normalise(linear(torch.cat([x, *one_hot], dim=-1) if one_hot else x), micro_n))
            if self.training and noise is not None and self.dropout_rate > 0:
                x = noise.dropout(x, self.dropout_rate)
        return x


class Encoder(nn.Module):
    """From counts to the mean and variance of the latent posterior."""

    def __init__(self, n_in: int, n_out: int, *, n_layers: int, n_hidden: int, dropout_rate: float) -> None:
        super().__init__()
        self.encoder = FCLayers(n_in, n_hidden, n_layers=n_layers, n_hidden=n_hidden, dropout_rate=dropout_rate)
        self.mean_encoder = nn.Linear(n_hidden, n_out)
        self.var_encoder = nn.Linear(n_hidden, n_out)

    def forward(self, x: Tensor, micro_n: tuple[int, ...], noise: Noise | None) -> tuple[Tensor, Tensor]:
        """Give mean and variance, each of shape (n, k)."""
        hidden_nh = self.encoder(x, [], micro_n, noise)
        return self.mean_encoder(hidden_nh), torch.exp(self.var_encoder(hidden_nh)) + _VAR_EPS


class Decoder(nn.Module):
    """From the latent space and covariates to the parameters of the counts."""

    def __init__(self, n_in: int, n_genes: int, *, n_cat_list: Sequence[int], n_layers: int, n_hidden: int) -> None:
        super().__init__()
        self.px_decoder = FCLayers(
            n_in, n_hidden, n_cat_list=n_cat_list, n_layers=n_layers, n_hidden=n_hidden, dropout_rate=0.0
        )
        self.px_scale_decoder = nn.Sequential(nn.Linear(n_hidden, n_genes))
        self.px_r_decoder = nn.Linear(n_hidden, n_genes)
        self.px_dropout_decoder = nn.Linear(n_hidden, n_genes)
