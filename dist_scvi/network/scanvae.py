"""SCANVI: SCVI with labels, which may be missing for some cells (Xu et al. 2021, doi:10.15252/msb.20209620).

The maths, the names of the weights and their order of construction are those of scvi-tools 1.4.2, module/_scanvae.py.

Shape letters in this file
    n   cells of a minibatch
    m   labelled cells of the step
    k   latent dimensions
    l   labels
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders.minibatch import Covariates, Tensors
from dist_scvi.network.batch_norm import MicroBatchNorm, norms_of
from dist_scvi.network.layers import Classifier, Encoder, LatentDecoder
from dist_scvi.network.likelihood import kl_normal
from dist_scvi.network.loss_terms import Labelled, LossTerms
from dist_scvi.network.noise import Noise
from dist_scvi.network.vae import VAE, Expression

_ROWS_AT_ONCE = 1 << 14
"""Cells times labels that inference computes at a time; with more than an eighth of it, training uses checkpointing."""


class SCANVAE(VAE):
    """The network of SCANVI.

    Parameters
    ----------
    n_genes, n_labels, n_batch, n_cats_per_cov, n_continuous_cov, use_size_factor, config
        As in `VAE`; `n_labels` does not count the unlabeled category.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        n_labels: int,
        n_batch: int = 1,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        use_size_factor: bool = False,
        config: ModelConfig,
    ) -> None:
        super().__init__(
            n_genes,
            n_batch=n_batch,
            n_labels=n_labels,
            n_cats_per_cov=n_cats_per_cov,
            n_continuous_cov=n_continuous_cov,
            use_size_factor=use_size_factor,
            config=config,
        )
        encoder_norms = {
            "use_batch_norm": config.use_batch_norm in ("encoder", "both"),
            "use_layer_norm": config.use_layer_norm in ("encoder", "both"),
        }
        own = config.classifier_parameters
        layers, hidden = (0, 0) if config.linear_classifier else (config.n_layers, config.n_hidden)
        self.classifier = Classifier(
            config.n_latent,
            n_labels,
            n_layers=layers if own.n_layers is None else own.n_layers,
            n_hidden=hidden if own.n_hidden is None else own.n_hidden,
            dropout_rate=config.dropout_rate if own.dropout_rate is None else own.dropout_rate,
            **encoder_norms,
        )
        self.encoder_z2_z1 = Encoder(
            config.n_latent,
            config.n_latent,
            n_cat_list=[n_labels],
            n_layers=config.n_layers,
            n_hidden=config.n_hidden,
            dropout_rate=config.dropout_rate,
            **encoder_norms,
        )
        self.decoder_z1_z2 = LatentDecoder(
            config.n_latent,
            config.n_latent,
            n_cat_list=[n_labels],
            n_layers=config.n_layers,
            n_hidden=config.n_hidden,
            use_batch_norm=config.use_batch_norm in ("decoder", "both"),
            use_layer_norm=config.use_layer_norm in ("decoder", "both"),
        )
        prior = torch.tensor([config.y_prior]) if config.y_prior else (1 / n_labels) * torch.ones(1, n_labels)
        self.y_prior = nn.Parameter(prior, requires_grad=False)

    def probabilities(self, z_nk: Tensor) -> Tensor:
        """Return the probability of each label for cells at `z_nk`, shape (n, l); only for inference."""
        return torch.softmax(self.classifier(z_nk), dim=-1)

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
        """Return the distribution of the counts of cells, as `VAE.decode`.

        Notes
        -----
        With a dispersion by label, that of a cell without a label is the geometric mean over labels, weighted by their
        probability. scvi-tools cannot train this.
        """
        if label_nl is None and self.config.dispersion == "gene-label":
            label_nl = self._known(self.probabilities(z_nk), covariates.label_n)
        return super().decode(z_nk, library_n, covariates, micro_n, gene_g=gene_g, label_nl=label_nl)

    def forward(
        self,
        cells: Tensors,
        micro_n: tuple[int, ...],
        noise: Noise,
        labelled: Labelled | None = None,
        *,
        reference: bool = False,
    ) -> LossTerms:
        """Return the loss terms of cells at one draw of z, and of z2 for each label, and the logits of `labelled`.

        Notes
        -----
        In the objective of scvi-tools, the bound of a labelled cell is averaged over all labels by their probability,
        as if it had no label (issues 841 and 1784 there). In that of the paper its own label is used.
        """
        qzm_nk, qzv_nk = self.encode(cells, micro_n, noise)
        z_nk = qzm_nk + qzv_nk.sqrt() * noise.normal(qzm_nk)
        library_n, kl_library_n = self.draw_library(cells, micro_n, noise)
        z1_nk, label_n = self.latent(z_nk), cells.covariates.label_n
        by_label = self.config.dispersion == "gene-label"
        # Without a dispersion by label the classifier runs only after the draws of z2: scvi-tools draws in this order,
        # and dropout of the classifier draws from the same generator.
        label_nl = torch.softmax(self.classifier(z1_nk, micro_n, noise), dim=-1) if by_label else None
        known_nl = None if label_nl is None else self._known(label_nl, label_n)
        reconstruction_n = self.reconstruction_at(
            cells, z1_nk, library_n, micro_n, label_nl=known_nl, reference=reference
        )

        log_p_nl, kl_nl = self._over_labels(z1_nk, micro_n, noise)
        if label_nl is None:
            label_nl = torch.softmax(self.classifier(z1_nk, micro_n, noise), dim=-1)
        if self.config.objective == "conditional":
            label_nl = self._known(label_nl, label_n)
        log_q_n = _log_normal(z1_nk, qzm_nk, qzv_nk)
        kl_label_n = (torch.xlogy(label_nl, label_nl) - label_nl * self.y_prior.log()).sum(-1)
        return LossTerms(
            reconstruction_n,
            log_q_n - (label_nl * log_p_nl).sum(-1),
            (label_nl * kl_nl).sum(-1) + kl_label_n + kl_library_n,
            torch.zeros_like(kl_library_n),
            None if labelled is None else self._classify(labelled),
        )

    def _classify(self, labelled: Labelled) -> Tensor:
        """Return the logits of labelled cells at the mean of their posterior, shape (m, l)."""
        qzm_mk, _ = self.encode(labelled.cells, labelled.micro_n, labelled.noise)
        labelled.noise.normal(qzm_mk)  # unused, but scvi-tools draws z here, before the dropout of the classifier
        logits_ml: Tensor = self.classifier(qzm_mk, labelled.micro_n, labelled.noise)
        return logits_ml

    def _known(self, label_nl: Tensor, label_n: Tensor) -> Tensor:
        """Replace the probabilities of labelled cells by 1 for their own label."""
        own_nl = F.one_hot(label_n.clamp(min=0), self.n_labels).to(label_nl.dtype)
        return torch.where((label_n >= 0)[:, None], own_nl, label_nl)

    def _over_labels(self, z1_nk: Tensor, micro_n: tuple[int, ...], noise: Noise) -> tuple[Tensor, Tensor]:
        """Return log p(z1 | z2, y) and KL(q(z2 | z1, y) | p(z2)) of each cell and label, each of shape (n, l).

        One micro-minibatch is computed at a time, so that memory grows with its cells times labels. If these are many,
        the backward pass computes activations again instead of keeping them. Cells that are normalised together must
        be computed together.
        """
        norms = [norm for part in (self.encoder_z2_z1, self.decoder_z1_z2) for norm in norms_of(part)]
        if self.training and (not micro_n or any(norm.world is not None for norm in norms)):
            return self._given_labels(z1_nk, micro_n, noise)
        sizes = micro_n if self.training else _even_sizes(len(z1_nk), max(1, _ROWS_AT_ONCE // self.n_labels))
        found = []
        for part_nk, own in zip(torch.split(z1_nk, list(sizes)), noise.parts(sizes), strict=True):
            if torch.is_grad_enabled() and own.keyed and len(part_nk) * self.n_labels > _ROWS_AT_ONCE // 8:
                found.append(self._computed_again(part_nk, own, norms))
            else:
                found.append(self._given_labels(part_nk, (len(part_nk),), own))
        if self.training:
            for norm in (norm for norm in norms if norm.sums):
                norm.sums = [torch.stack(norm.sums).sum(0)]
        log_p, kl = zip(*found, strict=True)
        return torch.cat(log_p), torch.cat(kl)

    def _given_labels(self, z1_nk: Tensor, micro_n: tuple[int, ...], noise: Noise) -> tuple[Tensor, Tensor]:
        """Compute the results of `_over_labels` for all cells at once."""
        label_l1 = torch.arange(self.n_labels, device=z1_nk.device)[:, None]
        qz2m_lnk, qz2v_lnk = self.encoder_z2_z1(z1_nk, [label_l1], micro_n, noise)
        z2_lnk = qz2m_lnk + qz2v_lnk.sqrt() * noise.normal(qz2m_lnk)
        mean_lnk, var_lnk = self.decoder_z1_z2(z2_lnk, [label_l1], micro_n)
        return _log_normal(z1_nk, mean_lnk, var_lnk).t(), kl_normal(qz2m_lnk, qz2v_lnk).t()

    def _computed_again(self, z1_nk: Tensor, noise: Noise, norms: list[MicroBatchNorm]) -> tuple[Tensor, Tensor]:
        """Compute them with checkpointing: again in the backward pass, with the same noise.

        Batch normalisations do not record statistics the second time, which would count the cells twice.
        """

        def given_labels(part_nk: Tensor) -> tuple[Tensor, Tensor]:
            return self._given_labels(part_nk, (len(part_nk),), noise.anew())

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _not_recording(norms)

        # preserve_rng_state=False: the noise is restarted by `anew`, so the global generators need not be saved.
        log_p_nl, kl_nl = checkpoint(
            given_labels, z1_nk, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
        )
        return log_p_nl, kl_nl


@contextmanager
def _not_recording(norms: list[MicroBatchNorm]) -> Iterator[None]:
    for norm in norms:
        norm.recording = False
    try:
        yield
    finally:
        for norm in norms:
            norm.recording = True


def _even_sizes(n_cells: int, most: int) -> tuple[int, ...]:
    return tuple(min(most, n_cells - at) for at in range(0, n_cells, most))


def _log_normal(x_nk: Tensor, mean_nk: Tensor, var_nk: Tensor) -> Tensor:
    """Return the log-density of independent normals, summed over the last axis."""
    return -0.5 * ((x_nk - mean_nk).square() / var_nk + torch.log(2 * torch.pi * var_nk)).sum(-1)
