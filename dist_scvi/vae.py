"""SCVI: a variational autoencoder of raw counts (Lopez et al. 2018, doi:10.1038/s41592-018-0229-2).

The maths, the names of the weights and their order of construction are those of scvi-tools 1.4.2, module/_vae.py.

Shape letters in this file
    n   cells of a minibatch
    g   genes
    k   latent dimensions
    h   hidden units
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dist_scvi.loaders.minibatch import Tensors

from .config import ModelConfig
from .likelihood import dense_log_likelihood, sparse_log_likelihood
from .nn import Decoder, Encoder, MicroBatchNorm
from .noise import Noise


@dataclass(frozen=True, slots=True)
class Expression:
    """What the decoder says of some cells."""

    scale_ng: Tensor
    """Share of each gene in a cell's counts; each row adds up to 1."""
    rate_ng: Tensor
    """Expected counts."""
    theta_ng: Tensor
    """Inverse dispersion, shape (g,), or (n, g) where it differs by cell."""
    zi_logits_ng: Tensor | None
    """Logits of zero inflation."""


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The two parts of the negative ELBO, for each cell."""

    reconstruction_n: Tensor
    kl_n: Tensor


class VAE(nn.Module):
    """The network of SCVI.

    Parameters
    ----------
    n_genes, n_batch
        Genes and categories of the batch covariate.
    n_cats_per_cov
        Categories of each further covariate.
    n_continuous_cov
        Number of continuous covariates.
    config
        Widths, dispersion and likelihood.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        n_batch: int = 1,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.n_genes, self.n_batch = n_genes, n_batch
        self.n_categorical_cov, self.n_continuous_cov = len(n_cats_per_cov), n_continuous_cov
        shape = (n_genes,) if config.dispersion == "gene" else (n_genes, n_batch)
        self.px_r = nn.Parameter(torch.randn(shape))
        self.z_encoder = Encoder(
            n_genes,
            config.n_latent,
            n_layers=config.n_layers,
            n_hidden=config.n_hidden,
            dropout_rate=config.dropout_rate,
        )
        self.l_encoder = Encoder(n_genes, 1, n_layers=1, n_hidden=config.n_hidden, dropout_rate=config.dropout_rate)
        self.decoder = Decoder(
            config.n_latent + n_continuous_cov,
            n_genes,
            n_cat_list=[n_batch, *n_cats_per_cov],
            n_layers=config.n_layers,
            n_hidden=config.n_hidden,
        )
        # Never used with these options. They are made, and saved, because scvi-tools makes and saves them; as constants
        # they cost no gradient, no optimizer state and no traffic between workers.
        self.l_encoder.requires_grad_(False)  # noqa: FBT003
        self.decoder.px_r_decoder.requires_grad_(False)  # noqa: FBT003
        if config.gene_likelihood != "zinb":
            self.decoder.px_dropout_decoder.requires_grad_(False)  # noqa: FBT003
        if config.gene_likelihood == "poisson":
            self.px_r.requires_grad_(False)  # noqa: FBT003

    def encode(
        self, counts_ng: Tensor, micro_n: tuple[int, ...] = (), noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        """Give the mean and variance of q(z | x), each of shape (n, k)."""
        qzm_nk, qzv_nk = self.z_encoder(torch.log1p(counts_ng), micro_n, noise)
        return qzm_nk, qzv_nk

    def hidden(
        self,
        z_nk: Tensor,
        batch_n: Tensor,
        categorical_nc: Tensor,
        continuous_nc: Tensor,
        micro_n: tuple[int, ...] = (),
    ) -> Tensor:
        """Give the last hidden layer of the decoder, shape (n, h)."""
        hidden_nh: Tensor = self.decoder.px_decoder(
            torch.cat([z_nk, continuous_nc], dim=-1), [batch_n, *categorical_nc.unbind(1)], micro_n, None
        )
        return hidden_nh

    def decode(
        self,
        z_nk: Tensor,
        library_n: Tensor,
        batch_n: Tensor,
        categorical_nc: Tensor,
        continuous_nc: Tensor,
        micro_n: tuple[int, ...] = (),
    ) -> Expression:
        """Give the distribution of the counts of cells at `z_nk` with total count `library_n`."""
        hidden_nh = self.hidden(z_nk, batch_n, categorical_nc, continuous_nc, micro_n)
        scale_ng = torch.softmax(self.decoder.px_scale_decoder(hidden_nh), dim=-1)
        rate_ng = torch.exp(torch.log(library_n))[:, None] * scale_ng
        theta_ng = torch.exp(self.px_r if self.config.dispersion == "gene" else self.px_r.t()[batch_n])
        zinb = self.config.gene_likelihood == "zinb"
        return Expression(scale_ng, rate_ng, theta_ng, self.decoder.px_dropout_decoder(hidden_nh) if zinb else None)

    def forward(self, cells: Tensors, micro_n: tuple[int, ...], noise: Noise) -> LossTerms:
        """Give the loss terms of some cells at one draw of z.

        Parameters
        ----------
        micro_n
            Sizes of the micro-minibatches, for batch normalisation in training.
        noise
            Source of dropout and of the draw.
        """
        qzm_nk, qzv_nk = self.encode(cells.counts_ng, micro_n, noise)
        return self.terms(cells, qzm_nk, qzv_nk, noise.normal(qzm_nk), micro_n)

    def terms(
        self,
        cells: Tensors,
        qzm_nk: Tensor,
        qzv_nk: Tensor,
        normal_nk: Tensor,
        micro_n: tuple[int, ...] = (),
        *,
        reference: bool = False,
    ) -> LossTerms:
        """Give the loss terms at z = `qzm_nk` + sqrt(`qzv_nk`) * `normal_nk`.

        Parameters
        ----------
        reference
            Use the plain formula of the likelihood rather than the one that spares the zeros.
        """
        z_nk = qzm_nk + qzv_nk.sqrt() * normal_nk
        px = self.decode(z_nk, cells.library_n, cells.batch_n, cells.categorical_nc, cells.continuous_nc, micro_n)
        likelihood = self.config.gene_likelihood
        if reference:
            log_p_n = dense_log_likelihood(likelihood, cells.counts_ng, px.rate_ng, px.theta_ng, px.zi_logits_ng)
        else:
            log_p_n = sparse_log_likelihood(
                likelihood, cells.place_e, cells.count_e, px.rate_ng, px.theta_ng, px.zi_logits_ng
            )
        kl_n = 0.5 * (qzv_nk + qzm_nk.square() - 1 - qzv_nk.log()).sum(-1)
        return LossTerms(-log_p_n, kl_n)

    def norms(self) -> list[MicroBatchNorm]:
        """Batch normalisations that training passes through, in a fixed order."""
        parts = (self.z_encoder, self.decoder.px_decoder)
        return [module for part in parts for module in part.modules() if isinstance(module, MicroBatchNorm)]
