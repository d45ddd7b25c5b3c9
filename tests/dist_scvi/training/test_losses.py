"""Sums of losses: means over all cells, in whatever parts the cells come."""

import numpy as np
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders.order.keyed_hash import hash_rows
from dist_scvi.network.loss_terms import LossTerms
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.network.vae import VAE
from dist_scvi.training.label_metrics import n_classification_sums
from dist_scvi.training.losses import cell_losses, loss_means, loss_sums, no_loss_sums

N_CELLS, N_LABELS = 40, 3


@pytest.fixture
def terms() -> LossTerms:
    torch.manual_seed(0)
    return LossTerms(*torch.rand(4, N_CELLS), torch.randn(N_CELLS, N_LABELS))


def part_of(terms: LossTerms, part: slice) -> LossTerms:
    assert terms.logits_ml is not None
    return LossTerms(
        terms.reconstruction_n[part],
        terms.latent_n[part],
        terms.kl_n[part],
        terms.kl_library_n[part],
        terms.logits_ml[part],
    )


@pytest.mark.parametrize("cuts", [[], [7], [0, 13, 14]])
def test_means_are_those_over_all_cells_in_whatever_parts_they_come(terms: LossTerms, cuts: list[int]) -> None:
    hashes, label, sums = hash_rows(np.arange(N_CELLS)), torch.arange(N_CELLS) % 4 - 1, 0
    for low, high in zip([0, *cuts], [*cuts, N_CELLS], strict=True):
        part = part_of(terms, slice(low, high))
        sums = sums + loss_sums(part, cell_losses(part, 0.3), hashes[low:high], label[low:high])
    found = loss_means(sums.numpy(), 50.0)
    cross = torch.nn.functional.cross_entropy(terms.logits_ml[label >= 0], label[label >= 0]).item()
    reconstruction = (terms.reconstruction_n + terms.latent_n).mean().item()
    kl, library = terms.kl_n.mean().item(), terms.kl_library_n.mean().item()
    assert found["reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    assert found["kl"] == pytest.approx(kl + library, rel=1e-5)
    assert found["elbo"] == pytest.approx(reconstruction + kl + library, rel=1e-5)
    assert found["loss"] == pytest.approx(reconstruction + 0.3 * kl + library + 50 * cross, rel=1e-5)
    assert (found["cells"], found["labelled_cells"]) == (N_CELLS, 30)
    assert found["cells_hash"] == int((hashes >> np.uint64(40)).sum())


def test_a_model_without_classifier_has_no_metrics_of_classification(terms: LossTerms) -> None:
    plain = LossTerms(terms.reconstruction_n, terms.latent_n, terms.kl_n, terms.kl_library_n)
    found = loss_means(loss_sums(plain, cell_losses(plain, 1.0), None).numpy(), 50.0)
    assert set(found) == {"loss", "elbo", "reconstruction", "kl", "cells", "cells_hash"}
    assert found["loss"] == pytest.approx(found["elbo"], rel=1e-6)


def test_the_sums_of_no_cells_are_zeros_of_the_same_length(terms: LossTerms) -> None:
    config = ModelConfig(model_name="SCANVI", n_hidden=4, n_latent=2)
    sums = loss_sums(terms, cell_losses(terms, 1.0), None, torch.zeros(N_CELLS, dtype=torch.int64))
    assert no_loss_sums(SCANVAE(5, n_labels=N_LABELS, config=config)).shape == sums.shape
    assert len(no_loss_sums(VAE(5, config=ModelConfig()))) == len(sums) - n_classification_sums(N_LABELS)
    assert loss_means(no_loss_sums(VAE(5, config=ModelConfig())).numpy(), 50.0)["elbo"] == 0
