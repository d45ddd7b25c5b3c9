"""SCVI: a variational autoencoder of raw counts (Lopez et al. 2018, doi:10.1038/s41592-018-0229-2).

The maths, the names of the weights and their order of construction are those of scvi-tools 1.4.2, module/_vae.py.

Shape letters in this file
    n   cells of a minibatch
    m   labelled cells of the step
    g   genes
    b   batches
    k   latent dimensions
    l   labels
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders.minibatch import Covariates, Tensors
from dist_scvi.network.batch_norm import MicroBatchNorm, norms_of
from dist_scvi.network.heads_likelihood import heads_log_likelihood
from dist_scvi.network.kernels.sparse_input import SparseRows
from dist_scvi.network.layers import Decoder, Encoder, LinearDecoder
from dist_scvi.network.likelihood import (
    Path,
    choose_path,
    dense_log_likelihood,
    kl_normal,
    sparse_log_likelihood,
)
from dist_scvi.network.linear import Linear
from dist_scvi.network.loss_terms import Labelled, LossTerms
from dist_scvi.network.noise import Noise


@dataclass(frozen=True, slots=True)
class Expression:
    """Parameters of the distribution of the counts of some cells."""

    scale_ng: Tensor
    """Share of each gene in a cell's counts. The shares of all genes sum to 1, unless there are size factors."""
    rate_ng: Tensor
    """Expected counts, before zero inflation."""
    theta_ng: Tensor
    """Inverse dispersion, or standard deviation for normal; shape (g,), or (n, g) where it differs by cell."""
    zi_logits_ng: Tensor | None
    """Logits of zero inflation."""


class VAE(nn.Module):
    """The network of SCVI.

    Parameters
    ----------
    n_genes, n_batch, n_labels
        Numbers of genes, of categories of the batch covariate, and of labels.
    n_cats_per_cov
        Number of categories of each further covariate.
    n_continuous_cov
        Number of continuous covariates.
    use_size_factor
        Scale by size factors instead of the library size.
    config
        Widths, dispersion, likelihood and the other options.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        n_batch: int = 1,
        n_labels: int = 1,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        use_size_factor: bool = False,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.n_genes, self.n_batch, self.n_labels = n_genes, n_batch, n_labels
        self.n_categorical_cov, self.n_continuous_cov = len(n_cats_per_cov), n_continuous_cov
        self.use_size_factor = use_size_factor
        self.latent_library = not (use_size_factor or config.use_observed_lib_size)
        if self.latent_library:
            self.register_buffer("library_log_means", torch.zeros(1, n_batch))
            self.register_buffer("library_log_vars", torch.ones(1, n_batch))
        width = {"gene": (), "gene-batch": (n_batch,), "gene-label": (n_labels,), "gene-cell": None}[config.dispersion]
        self.px_r = None if width is None else nn.Parameter(torch.randn(n_genes, *width))
        embedded = config.batch_representation == "embedding"
        if embedded:
            self._embeddings_dict = nn.ModuleDict({"batch": nn.Embedding(n_batch, config.embedding_dim)})
        n_extra = n_continuous_cov + embedded * config.embedding_dim
        self.n_cat_list = [*([] if embedded else [n_batch]), *n_cats_per_cov]
        self._build(n_genes + config.encode_covariates * n_extra, config.n_latent + n_extra)
        self._freeze_unused()
        self.frozen: dict[str, Tensor] = {}
        """Masks of entries of weights, by name, that training must not change (True)."""
        self.kernels: Literal["torch", "compiled"] = "torch"
        """Implementation of the loss: torch operations or compiled loops."""
        self._norms: list[MicroBatchNorm] | None = None

    def _build(self, n_encoder_in: int, n_decoder_in: int) -> None:
        """Build encoders and decoder, in the order of scvi-tools: the order determines the weights under a seed."""
        self._build_encoders(n_encoder_in)
        self.decoder: Decoder | LinearDecoder = Decoder(
            n_decoder_in,
            self.n_genes,
            n_cat_list=self.n_cat_list,
            n_layers=self.config.n_layers,
            n_hidden=self.config.n_hidden,
            use_batch_norm=self.config.use_batch_norm in ("decoder", "both"),
            use_layer_norm=self.config.use_layer_norm in ("decoder", "both"),
            inject_covariates=self.config.deeply_inject_covariates,
        )

    def _build_encoders(self, n_in: int) -> None:
        config = self.config
        self.z_encoder, self.l_encoder = (
            Encoder(
                n_in,
                n_out,
                n_cat_list=self.n_cat_list if config.encode_covariates else (),
                n_layers=n_layers,
                n_hidden=config.n_hidden,
                dropout_rate=config.dropout_rate,
                use_batch_norm=config.use_batch_norm in ("encoder", "both"),
                use_layer_norm=config.use_layer_norm in ("encoder", "both"),
                inject_covariates=config.deeply_inject_covariates,
            )
            for n_out, n_layers in ((config.n_latent, config.n_layers), (1, 1))
        )

    def _freeze_unused(self) -> None:
        """Freeze the parameters that these options never use.

        They exist because scvi-tools creates and saves them. Frozen, they need no gradient, no optimizer state and no
        communication between workers.
        """
        used: dict[nn.Module | nn.Parameter | None, bool] = {
            self.l_encoder: self.latent_library,
            self.decoder.px_dropout_decoder: self.config.gene_likelihood == "zinb",
            self.px_r: self.config.gene_likelihood != "poisson",
        }
        if isinstance(self.decoder, Decoder):
            used[self.decoder.px_r_decoder] = self.px_r is None and self.config.gene_likelihood != "poisson"
        for part, needed in used.items():
            if part is not None and not needed:
                part.requires_grad_(False)  # noqa: FBT003

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.z_encoder.mean_encoder.weight.device

    def encode(
        self, cells: Tensors, micro_n: tuple[int, ...] = (), noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of q(z | x), each of shape (n, k); of minified cells those that are stored."""
        qzm_nk, qzv_nk = cells.posterior or self.z_encoder(*self._encoder_input(cells), micro_n, noise)
        return qzm_nk, qzv_nk

    def encode_library(
        self, cells: Tensors, micro_n: tuple[int, ...] = (), noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of q(l | x), the logarithm of a latent library size, each of shape (n, 1)."""
        qlm_n1, qlv_n1 = self.l_encoder(*self._encoder_input(cells), micro_n, noise)
        return qlm_n1, qlv_n1

    def _encoder_input(self, cells: Tensors) -> tuple[Tensor | SparseRows, list[Tensor]]:
        log = self.config.log_variational
        if self.kernels == "compiled" and self.device.type == "cpu":  # on a GPU the dense product is faster
            count_e = torch.log1p(cells.count_e) if log else cells.count_e
            rows = SparseRows(cells.indptr, cells.gene_e, count_e, cells.n_genes)
            if not self.config.encode_covariates:
                return rows, []
            rest, codes = self._with_covariates(cells.library_n.new_empty(len(cells.library_n), 0), cells.covariates)
            return replace(rows, rest_nc=rest), codes
        x_ng = torch.log1p(cells.counts_ng) if log else cells.counts_ng
        return self._with_covariates(x_ng, cells.covariates) if self.config.encode_covariates else (x_ng, [])

    def _with_covariates(self, x: Tensor, covariates: Covariates) -> tuple[Tensor, list[Tensor]]:
        """Append continuous covariates and the embedding of the batch to `x`; return also the codes of the others."""
        codes = list(covariates.categorical_nc.unbind(1))
        parts = [x, covariates.continuous_nc]
        if self.config.batch_representation == "embedding":
            parts.append(self._embeddings_dict["batch"](covariates.batch_n))
        else:
            codes.insert(0, covariates.batch_n)
        return torch.cat(parts, dim=-1), codes

    def latent(self, z_nk: Tensor) -> Tensor:
        """Return the latent representation of a draw of q: the draw, or its softmax for a logistic normal."""
        return torch.softmax(z_nk, dim=-1) if self.config.latent_distribution == "ln" else z_nk

    def shares(self, z_nk: Tensor, covariates: Covariates, gene_g: Tensor | None = None) -> Tensor:
        """Return the share of all genes, or of `gene_g`, in the counts of cells at `z_nk`, a latent representation."""
        heads = self.decoder(*self._with_covariates(z_nk, covariates))
        return self._shares(heads.scale_logits_ng, gene_g)

    def column_shares(self, z_nk: Tensor, covariates: Covariates, gene_g: Tensor, normalizer_n: Tensor) -> Tensor:
        """Return the share of the genes `gene_g`, shape (n, g), without decoding the others.

        Parameters
        ----------
        normalizer_n
            Logarithm of the normalizer of the shares of each cell: the log-sum-exp of all its logits.
        """
        logits_ng = self.decoder.scale_logits(*self._with_covariates(z_nk, covariates), gene_g)
        return torch.exp(logits_ng - normalizer_n[:, None])

    def shares_and_normalizer(self, z_nk: Tensor, covariates: Covariates) -> tuple[Tensor, Tensor | None]:
        """Return the shares of all genes, and the logarithm of the normalizer of each cell, shape (n,).

        A share is ``exp(logit - normalizer)``. With size factors shares are not normalized, and the normalizer is None.
        """
        logits_ng = self.decoder(*self._with_covariates(z_nk, covariates)).scale_logits_ng
        if self.use_size_factor:
            return self._shares(logits_ng, None), None
        normalizer_n = torch.logsumexp(logits_ng, dim=-1)
        return torch.exp(logits_ng - normalizer_n[:, None]), normalizer_n

    def _shares(self, logits_ng: Tensor, gene_g: Tensor | None) -> Tensor:
        chosen_ng = logits_ng if gene_g is None else logits_ng[:, gene_g]
        if self.use_size_factor:
            return F.softplus(chosen_ng)
        if gene_g is None:
            return torch.softmax(logits_ng, dim=-1)
        return torch.exp(chosen_ng - torch.logsumexp(logits_ng, dim=-1, keepdim=True))

    def decode(
        self,
        z_nk: Tensor,
        library_n: Tensor,
        covariates: Covariates,
        micro_n: tuple[int, ...] = (),
        *,
        gene_g: Tensor | None = None,
        label_nl: Tensor | None = None,
    ) -> Expression:
        """Return the distribution of the counts of cells.

        Parameters
        ----------
        z_nk
            Latent representation of the cells.
        library_n
            Factor of the shares: total count, size factor, or the exponential of a latent library size.
        gene_g
            Only these genes; only for inference.
        label_nl
            Probability of each label, instead of the one in `covariates`, for the dispersion by label.
        """
        heads = self.decoder(
            *self._with_covariates(z_nk, covariates),
            micro_n,
            r=self.px_r is None,
            zi=self.config.gene_likelihood == "zinb",
            gene_g=gene_g,
        )
        scale_ng = self._shares(heads.scale_logits_ng, gene_g)
        # exp(log(n)) instead of n: scvi-tools has the library size on the log scale, and rounding is then the same.
        rate_ng = torch.exp(torch.log(library_n))[:, None] * scale_ng
        if heads.r_ng is not None:
            return Expression(scale_ng, rate_ng, torch.exp(heads.r_ng), heads.zi_logits_ng)
        px_r = self.px_r if gene_g is None or self.px_r is None else self.px_r[gene_g]
        assert px_r is not None
        return Expression(scale_ng, rate_ng, torch.exp(self._of_cells(px_r, covariates, label_nl)), heads.zi_logits_ng)

    def _of_cells(self, px_r: Tensor, covariates: Covariates, label_nl: Tensor | None) -> Tensor:
        """Return the logarithm of the inverse dispersion: by gene, or by cell and gene."""
        if self.config.dispersion == "gene":
            return px_r
        if self.config.dispersion == "gene-batch":
            return F.embedding(covariates.batch_n, px_r.t())
        return F.embedding(covariates.label_n, px_r.t()) if label_nl is None else label_nl @ px_r.t()

    def forward(
        self,
        cells: Tensors,
        micro_n: tuple[int, ...],
        noise: Noise,
        labelled: Labelled | None = None,
        *,
        reference: bool = False,
    ) -> LossTerms:
        """Return the loss terms of some cells at one draw of z.

        Parameters
        ----------
        micro_n
            Sizes of the micro-minibatches, for batch normalisation in training.
        noise
            Source of dropout and of the draw.
        labelled
            For SCANVI only.
        reference
            Use the dense formula of the likelihood instead of the sparse one.
        """
        assert labelled is None
        qzm_nk, qzv_nk = self.encode(cells, micro_n, noise)
        z_nk = qzm_nk + qzv_nk.sqrt() * noise.normal(qzm_nk)
        library_n, kl_library_n = self.draw_library(cells, micro_n, noise)
        reconstruction_n = self.reconstruction_at(cells, self.latent(z_nk), library_n, micro_n, reference=reference)
        return LossTerms(reconstruction_n, torch.zeros_like(kl_library_n), kl_normal(qzm_nk, qzv_nk), kl_library_n)

    def draw_library(self, cells: Tensors, micro_n: tuple[int, ...], noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the factor of the shares of each cell, and the KL term of its latent library size."""
        if not self.latent_library:
            return cells.library_n, torch.zeros_like(cells.library_n)
        qlm_n1, qlv_n1 = self.encode_library(cells, micro_n, noise)
        library_n = torch.exp(qlm_n1 + qlv_n1.sqrt() * noise.normal(qlm_n1))[:, 0]
        mean_n, var_n = self.library_prior(cells.covariates.batch_n)
        return library_n, kl_normal(qlm_n1, qlv_n1, mean_n[:, None], var_n[:, None])

    def library_prior(self, batch_n: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the prior of each cell's latent library size, by its batch."""
        assert isinstance(self.library_log_means, Tensor)
        assert isinstance(self.library_log_vars, Tensor)
        return self.library_log_means[0, batch_n], self.library_log_vars[0, batch_n]

    @torch.no_grad()
    def set_library_prior(self, mean_b: NDArray[np.float32], var_b: NDArray[np.float32]) -> None:
        """Set mean and variance of the logarithm of the total count in each batch, the prior of the library size."""
        assert isinstance(self.library_log_means, Tensor)
        assert isinstance(self.library_log_vars, Tensor)
        self.library_log_means.copy_(torch.from_numpy(mean_b))
        self.library_log_vars.copy_(torch.from_numpy(var_b))

    def reconstruction_at(
        self,
        cells: Tensors,
        z_nk: Tensor,
        library_n: Tensor,
        micro_n: tuple[int, ...],
        *,
        label_nl: Tensor | None = None,
        reference: bool = False,
    ) -> Tensor:
        """Return the negative log-probability of the counts of each cell at `z_nk`, shape (n,).

        Parameters
        ----------
        label_nl, reference
            As in `decode` and `forward`.
        """
        path, likelihood, decoder = self.path(), self.config.gene_likelihood, self.decoder
        # The compiled kernels work on the logits of the heads. They never build `Expression`, which would allocate
        # further arrays of cells times genes.
        if path == "torch" or reference or not isinstance(decoder, Decoder):
            px = self.decode(z_nk, library_n, cells.covariates, micro_n, label_nl=label_nl)
            return self.reconstruction(cells, px, reference=reference)
        hidden_nh = decoder.px_decoder(*self._with_covariates(z_nk, cells.covariates), micro_n, None)
        heads = [cast("Linear", decoder.px_scale_decoder[0])]
        if likelihood == "zinb":
            heads.append(decoder.px_dropout_decoder)
        theta = None
        if likelihood != "poisson" and self.px_r is not None:
            theta = torch.exp(self._of_cells(self.px_r, cells.covariates, label_nl))
        elif likelihood != "poisson":
            heads.append(decoder.px_r_decoder)
        if path == "numba":
            return -heads_log_likelihood(likelihood, hidden_nh, heads, theta, library_n, cells)
        from dist_scvi.network.kernels.likelihood_triton import triton_log_likelihood

        logits = [head(hidden_nh) for head in heads]
        theta = torch.exp(logits[-1]) if theta is None and likelihood != "poisson" else theta
        zi_ng = logits[1] if likelihood == "zinb" else None
        counts = (cells.indptr, cells.gene_e, cells.count_e)
        return -triton_log_likelihood(likelihood, logits[0], zi_ng, theta, library_n, *counts)

    def path(self) -> Path:
        """Return the implementation of the likelihood; results are the same up to rounding."""
        known = (
            isinstance(self.decoder, Decoder) and not self.use_size_factor and self.config.gene_likelihood != "normal"
        )
        return choose_path(self.device) if self.kernels == "compiled" and known else "torch"

    def reconstruction(self, cells: Tensors, px: Expression, *, reference: bool = False) -> Tensor:
        """Return the negative log-probability of the counts of each cell, shape (n,)."""
        likelihood = self.config.gene_likelihood
        if reference:
            return -dense_log_likelihood(likelihood, cells.counts_ng, px.rate_ng, px.theta_ng, px.zi_logits_ng)
        return -sparse_log_likelihood(
            likelihood, cells.place_e, cells.count_e, px.rate_ng, px.theta_ng, px.zi_logits_ng
        )

    def norms(self) -> list[MicroBatchNorm]:
        """Return the batch normalisations that training passes through, in a fixed order."""
        if self._norms is None:  # cached: a walk through all modules takes longer than a small matrix product
            unused = [] if self.latent_library else norms_of(self.l_encoder)
            if self.config.gene_likelihood != "zinb":
                unused += norms_of(self.decoder.px_dropout_decoder)
            self._norms = [norm for norm in norms_of(self) if norm not in unused]
        return self._norms
