"""The building blocks of the networks; names and order of construction of scvi-tools 1.4.2, nn/_base_components.py.

Shape letters in this file
    n   cells of a minibatch
    h   hidden units
    k   latent dimensions
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_scvi.network.batch_norm import MicroBatchNorm
from dist_scvi.network.kernels.sparse_input import SparseRows, sparse_product
from dist_scvi.network.linear import Linear
from dist_scvi.network.noise import Noise

_VAR_EPS = 1e-4


class FCLayers(nn.Module):
    """Fully connected layers whose input includes one-hot covariates.

    Parameters
    ----------
    n_in, n_out, n_hidden
        Widths.
    n_cat_list
        Number of categories of each covariate; one with a single category is constant and left out.
    n_layers
        Number of layers.
    dropout_rate
        Probability that a unit is set to 0 in training.
    use_batch_norm, use_layer_norm, use_activation, bias
        Parts of a layer.
    inject_covariates
        Whether every layer receives the covariates, or only the first.
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
        use_batch_norm: bool = True,
        use_layer_norm: bool = False,
        use_activation: bool = True,
        bias: bool = True,
        inject_covariates: bool = True,
    ) -> None:
        super().__init__()
        self.n_cat_list = [n if n > 1 else 0 for n in n_cat_list]
        self.dropout_rate, self.inject_covariates = dropout_rate, inject_covariates
        self.use_layer_norm, self.use_activation = use_layer_norm, use_activation
        widths = [n_in] + (n_layers - 1) * [n_hidden] + [n_out]
        layers = OrderedDict[str, nn.Module]()
        for i, (wide, out) in enumerate(pairwise(widths)):
            linear = Linear(wide + self.n_covariate_columns(i), out, bias=bias)
            layers[f"Layer {i}"] = nn.Sequential(linear, *([MicroBatchNorm(out)] if use_batch_norm else []))
        self.fc_layers = nn.Sequential(layers)

    def n_covariate_columns(self, layer: int) -> int:
        """Return the number of columns at the end of the weight of `layer` that belong to categories."""
        return sum(self.n_cat_list) if layer == 0 or self.inject_covariates else 0

    def forward(
        self, x: Tensor | SparseRows, codes: Sequence[Tensor], micro_n: tuple[int, ...], noise: Noise | None
    ) -> Tensor:
        """Apply all layers to `x`.

        Parameters
        ----------
        x
            Shape (n, n_in), or with further dimensions before.
        codes
            A code for each cell and each entry of `n_cat_list`; shapes broadcast with that of `x` without its last
            dimension.
        micro_n
            Sizes of the micro-minibatches.
        noise
            Source of dropout; None outside training.
        """
        for i, layer in enumerate(self.fc_layers):
            linear, *norms = layer.children()
            hidden = _affine(linear, x, self._columns(codes) if self.n_covariate_columns(i) else [])
            for norm in norms:
                assert isinstance(norm, MicroBatchNorm)
                hidden = norm.normalise(hidden, micro_n)
            if self.use_layer_norm:
                hidden = F.layer_norm(hidden, hidden.shape[-1:])
            if self.use_activation:
                hidden = F.relu(hidden)
            if self.training and noise is not None and self.dropout_rate > 0:
                hidden = noise.dropout(hidden, self.dropout_rate)
            x = hidden
        return hidden

    def _columns(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Return the index of each cell's category among all columns of covariates."""
        starts = [sum(self.n_cat_list[:i]) for i in range(len(self.n_cat_list))]
        return [code + at for code, at, n in zip(codes, starts, self.n_cat_list, strict=True) if n]


def _affine(linear: nn.Module, x: Tensor | SparseRows, columns: Sequence[Tensor]) -> Tensor:
    """Apply `linear` to `x` joined with one-hot covariates.

    The columns of the weight for the categories are looked up instead of multiplied: almost all factors of the product
    would be 0.
    """
    assert isinstance(linear, Linear)
    if isinstance(x, SparseRows):
        n_x, product = x.n_columns, sparse_product(x, linear.weight, linear.bias)
    else:
        n_x = x.shape[-1]
        product = linear.product(x, linear.weight[:, :n_x] if columns else linear.weight)
    for column in columns:
        product = product + F.embedding(column, linear.weight[:, n_x:].t())
    return product


class Encoder(nn.Module):
    """Encoder of counts into mean and variance of the latent posterior."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        n_cat_list: Sequence[int] = (),
        n_layers: int,
        n_hidden: int,
        dropout_rate: float,
        use_batch_norm: bool = True,
        use_layer_norm: bool = False,
        inject_covariates: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = FCLayers(
            n_in,
            n_hidden,
            n_cat_list=n_cat_list,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            inject_covariates=inject_covariates,
        )
        self.mean_encoder = Linear(n_hidden, n_out)
        self.var_encoder = Linear(n_hidden, n_out)

    def forward(
        self, x: Tensor | SparseRows, codes: Sequence[Tensor], micro_n: tuple[int, ...], noise: Noise | None
    ) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each of shape (n, k)."""
        hidden_nh = self.encoder(x, codes, micro_n, noise)
        return self.mean_encoder(hidden_nh), torch.exp(self.var_encoder(hidden_nh)) + _VAR_EPS


class Heads(NamedTuple):
    """Outputs of a decoder for each gene, from which the distribution is computed."""

    scale_logits_ng: Tensor
    """Logits of the shares, always of all genes, as each share depends on all logits."""
    r_ng: Tensor | None
    zi_logits_ng: Tensor | None


class Decoder(nn.Module):
    """Decoder of latent representation and covariates into the parameters of the counts."""

    def __init__(
        self,
        n_in: int,
        n_genes: int,
        *,
        n_cat_list: Sequence[int],
        n_layers: int,
        n_hidden: int,
        use_batch_norm: bool,
        use_layer_norm: bool,
        inject_covariates: bool,
    ) -> None:
        super().__init__()
        self.px_decoder = FCLayers(
            n_in,
            n_hidden,
            n_cat_list=n_cat_list,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=0.0,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            inject_covariates=inject_covariates,
        )
        self.px_scale_decoder = nn.Sequential(Linear(n_hidden, n_genes))
        self.px_r_decoder = Linear(n_hidden, n_genes)
        self.px_dropout_decoder = Linear(n_hidden, n_genes)

    def forward(
        self,
        x: Tensor,
        codes: Sequence[Tensor],
        micro_n: tuple[int, ...] = (),
        *,
        r: bool = False,
        zi: bool = False,
        gene_g: Tensor | None = None,
    ) -> Heads:
        """Return the requested heads; with `gene_g`, dispersion and zero inflation of these genes only."""
        hidden_nh = self.px_decoder(x, codes, micro_n, None)
        return Heads(
            self.px_scale_decoder(hidden_nh),
            _of_genes(self.px_r_decoder, hidden_nh, gene_g) if r else None,
            _of_genes(self.px_dropout_decoder, hidden_nh, gene_g) if zi else None,
        )

    def scale_logits(self, x: Tensor, codes: Sequence[Tensor], gene_g: Tensor) -> Tensor:
        """Return the logits of the shares of the genes `gene_g`, without computing others."""
        return _of_genes(self.px_scale_decoder[0], self.px_decoder(x, codes, (), None), gene_g)  # type: ignore[arg-type]


def _of_genes(head: nn.Linear, hidden_nh: Tensor, gene_g: Tensor | None) -> Tensor:
    if gene_g is None:
        return head(hidden_nh)  # type: ignore[no-any-return]
    return F.linear(hidden_nh, head.weight[gene_g], head.bias[gene_g])


class LinearDecoder(nn.Module):
    """A linear decoder into genes (Svensson et al. 2020, doi:10.1093/bioinformatics/btaa169)."""

    def __init__(self, n_in: int, n_genes: int, *, n_cat_list: Sequence[int], use_batch_norm: bool, bias: bool) -> None:
        super().__init__()
        self.factor_regressor, self.px_dropout_decoder = (
            FCLayers(
                n_in,
                n_genes,
                n_cat_list=n_cat_list,
                dropout_rate=0.0,
                use_batch_norm=use_batch_norm,
                use_activation=False,
                bias=bias,
            )
            for _ in range(2)
        )

    def forward(
        self,
        x: Tensor,
        codes: Sequence[Tensor],
        micro_n: tuple[int, ...] = (),
        *,
        r: bool = False,
        zi: bool = False,
        gene_g: Tensor | None = None,
    ) -> Heads:
        """Return the requested heads, as `Decoder` does; a linear decoder has no dispersion by cell."""
        assert not r
        zi_logits_ng = self.px_dropout_decoder(x, codes, micro_n, None) if zi else None
        if zi_logits_ng is not None and gene_g is not None:
            zi_logits_ng = zi_logits_ng[:, gene_g]
        return Heads(self.factor_regressor(x, codes, micro_n, None), None, zi_logits_ng)

    def scale_logits(self, x: Tensor, codes: Sequence[Tensor], gene_g: Tensor) -> Tensor:
        """Return the logits of the shares of the genes `gene_g`."""
        logits_ng: Tensor = self.factor_regressor(x, codes, (), None)
        return logits_ng[:, gene_g]


class LatentDecoder(nn.Module):
    """Decoder of one latent representation into mean and variance of another."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        n_cat_list: Sequence[int],
        n_layers: int,
        n_hidden: int,
        use_batch_norm: bool,
        use_layer_norm: bool,
    ) -> None:
        super().__init__()
        self.decoder = FCLayers(
            n_in,
            n_hidden,
            n_cat_list=n_cat_list,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=0.0,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
        )
        self.mean_decoder = Linear(n_hidden, n_out)
        self.var_decoder = Linear(n_hidden, n_out)

    def forward(self, z: Tensor, codes: Sequence[Tensor], micro_n: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return mean and variance."""
        hidden_nh = self.decoder(z, codes, micro_n, None)
        return self.mean_decoder(hidden_nh), torch.exp(self.var_decoder(hidden_nh))


class Classifier(nn.Module):
    """Classifier of latent representations into logits of labels; without hidden layers it is linear."""

    def __init__(
        self,
        n_in: int,
        n_labels: int,
        *,
        n_layers: int,
        n_hidden: int,
        dropout_rate: float,
        use_batch_norm: bool,
        use_layer_norm: bool,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if n_layers > 0 and n_hidden > 0:
            layers = [
                FCLayers(
                    n_in,
                    n_hidden,
                    n_layers=n_layers,
                    n_hidden=n_hidden,
                    dropout_rate=dropout_rate,
                    use_batch_norm=use_batch_norm,
                    use_layer_norm=use_layer_norm,
                )
            ]
        self.classifier = nn.Sequential(*layers, Linear(n_hidden if layers else n_in, n_labels))

    def forward(self, z_nk: Tensor, micro_n: tuple[int, ...] = (), noise: Noise | None = None) -> Tensor:
        """Return logits, shape (n, l)."""
        *layers, last = self.classifier
        for layer in layers:
            z_nk = layer(z_nk, [], micro_n, noise)
        logits_nl: Tensor = last(z_nk)
        return logits_nl
