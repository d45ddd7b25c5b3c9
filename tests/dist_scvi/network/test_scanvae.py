"""SCANVI where scvi-tools cannot be the witness: many labels, the objective of the paper, dispersion by label."""

import numpy as np
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders.minibatch import Covariates, Tensors
from dist_scvi.network import scanvae
from dist_scvi.network.loss_terms import Labelled
from dist_scvi.network.noise import RowNoise, StepNoise, step_noise
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.training.losses import cell_losses
from dist_scvi.world import World

N, G, L = 21, 12, 5
SIZES = (8, 8, 5)


def module_of(**options: object) -> SCANVAE:
    torch.manual_seed(0)
    config = ModelConfig(model_name="SCANVI", n_hidden=16, n_latent=3, **options)
    return SCANVAE(G, n_batch=2, n_labels=L, config=config)


def cells_of(rows: np.ndarray, label: int | None = None) -> Tensors:
    counts = torch.from_numpy((rows[:, None] * 7 + np.arange(G) * 3) % 5).float()
    row, gene = torch.nonzero(counts, as_tuple=True)
    indptr = torch.searchsorted(row, torch.arange(len(rows) + 1))
    labels = (
        torch.from_numpy(np.where(rows % 3 == 0, -1, rows % L)) if label is None else torch.full((len(rows),), label)
    )
    covariates = Covariates(
        torch.from_numpy(rows % 2), labels, torch.zeros(len(rows), 0, dtype=torch.int64), torch.zeros(len(rows), 0)
    )
    return Tensors(G, indptr, gene.int(), counts[row, gene], counts.sum(1), covariates)


def keyed(first: int = 0, sizes: tuple[int, ...] = SIZES) -> StepNoise:
    return step_noise(3, 0, 1, tuple(range(first, first + len(sizes))), sizes, torch.device("cpu"))


def loss_of(module: SCANVAE, **options: object) -> torch.Tensor:
    terms = module(cells_of(np.arange(N)), SIZES, keyed(), **options)
    return (terms.reconstruction_n + terms.latent_n + terms.kl_n).sum()


def gradients(module: SCANVAE) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def test_what_is_computed_again_going_backward_is_what_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rows in (1 << 20, 1):
        monkeypatch.setattr(scanvae, "_ROWS_AT_ONCE", rows)
        module = module_of(n_layers=2).train()
        loss = loss_of(module)
        loss.backward()
        sums = [[part.clone() for part in norm.sums] for norm in module.norms()]
        found.append((loss.detach(), gradients(module), sums))
    (one, one_grad, one_sums), (again, again_grad, again_sums) = found
    assert torch.equal(one, again)
    assert one_grad.keys() == again_grad.keys()
    for name, value in one_grad.items():
        torch.testing.assert_close(again_grad[name], value, rtol=1e-5, atol=1e-6)
    for few, many in zip(one_sums, again_sums, strict=True):
        assert len(few) == len(many) == 1
        torch.testing.assert_close(few[0], many[0])


def test_the_loss_does_not_depend_on_which_worker_holds_a_micro_minibatch() -> None:
    module = module_of().train()
    together = module(cells_of(np.arange(N)), SIZES, keyed())
    first = module(cells_of(np.arange(16)), SIZES[:2], keyed(0, SIZES[:2]))
    second = module(cells_of(np.arange(16, N)), SIZES[2:], keyed(2, SIZES[2:]))
    for name in ("reconstruction_n", "latent_n", "kl_n"):
        joined = torch.cat([getattr(first, name), getattr(second, name)])
        torch.testing.assert_close(joined, getattr(together, name), rtol=1e-5, atol=1e-5)


def test_inference_by_chunks_of_labels_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module, rows, found = module_of().eval(), np.arange(N), []
    for at_once in (1 << 20, 2 * L):
        monkeypatch.setattr(scanvae, "_ROWS_AT_ONCE", at_once)
        with torch.no_grad():
            found.append(module(cells_of(rows), (), RowNoise(0, rows)))
    for name in ("reconstruction_n", "latent_n", "kl_n"):
        torch.testing.assert_close(*(getattr(terms, name) for terms in found), rtol=1e-5, atol=1e-5)


def test_in_the_objective_of_the_paper_a_labelled_cell_has_its_own_label_and_others_have_all() -> None:
    rows = np.arange(N)
    cells = cells_of(rows)
    both = {name: module_of(objective=name).eval() for name in ("scvi-tools", "conditional")}
    terms = {name: module(cells, (), RowNoise(0, rows)) for name, module in both.items()}
    labelled = cells.covariates.label_n >= 0
    for name in ("latent_n", "kl_n"):
        ours, theirs = getattr(terms["conditional"], name), getattr(terms["scvi-tools"], name)
        assert torch.equal(ours[~labelled], theirs[~labelled])
        assert (ours[labelled] != theirs[labelled]).all()
    # KL(one label | uniform prior) is log L; the rest is the bound given that label
    module = both["conditional"]
    z = module.encode(cells)
    normal = RowNoise(0, rows)
    z1 = z[0] + z[1].sqrt() * normal.normal(z[0])
    _, kl = module._over_labels(z1, (), normal)
    own = cells.covariates.label_n.clamp(min=0)
    expected = kl[torch.arange(N), own] + np.log(L)
    torch.testing.assert_close(terms["conditional"].kl_n[labelled], expected[labelled])


def test_probabilities_of_all_labels_given_are_a_mean_over_them() -> None:
    """Of an unlabelled cell the bound is the mean over labels by their probability, which a formula repeats."""
    module, rows = module_of().eval(), np.arange(N)
    cells = cells_of(rows, label=-1)
    terms = module(cells, (), RowNoise(0, rows))
    noise = RowNoise(0, rows)
    qzm, qzv = module.encode(cells)
    z1 = qzm + qzv.sqrt() * noise.normal(qzm)
    log_p, kl = module._over_labels(z1, (), noise)
    p = module.probabilities(z1)
    log_q = torch.distributions.Normal(qzm, qzv.sqrt()).log_prob(z1).sum(-1)
    torch.testing.assert_close(terms.latent_n, log_q - (p * log_p).sum(-1))
    torch.testing.assert_close(terms.kl_n, (p * (kl + p.log() + np.log(L))).sum(-1))


def test_dispersion_by_label_trains_and_takes_the_own_label_of_a_labelled_cell() -> None:
    module = module_of(dispersion="gene-label").train()
    loss_of(module).backward()
    assert module.px_r.grad.abs().sum() > 0
    module.eval()
    cells = cells_of(np.arange(N), label=2)
    px = module.decode(module.encode(cells)[0], cells.library_n, cells.covariates)
    torch.testing.assert_close(px.theta_ng, module.px_r.exp()[:, 2].expand(N, G))
    cells = cells_of(np.arange(N), label=-1)
    z = module.encode(cells)[0]
    px = module.decode(z, cells.library_n, cells.covariates)
    torch.testing.assert_close(px.theta_ng.log(), module.probabilities(z) @ module.px_r.t())


def test_labelled_cells_are_classified_at_the_mean_of_their_posterior() -> None:
    module, rows = module_of().eval(), np.arange(N)
    labelled = cells_of(np.array([4, 1, 7]), label=0)
    terms = module(cells_of(rows), (), RowNoise(0, rows), Labelled(labelled, (3,), RowNoise(0, rows[:3])))
    torch.testing.assert_close(terms.logits_ml, module.classifier(module.encode(labelled)[0]))


def test_a_worker_without_labelled_cells_takes_part_all_the_same() -> None:
    module = module_of().train()
    empty = cells_of(np.zeros(0, dtype=np.int64))
    terms = module(
        cells_of(np.arange(N)), SIZES, keyed(), Labelled(empty, (), step_noise(0, 0, 0, (), (), empty.library_n.device))
    )
    assert terms.logits_ml.shape == (0, L)
    (terms.reconstruction_n.sum() + terms.logits_ml.sum()).backward()
    assert [len(norm.sums) for norm in module.norms()].count(2) == 2  # of the encoder and the classifier


@pytest.mark.parametrize("together", [None, World()])
def test_a_worker_without_any_cells_has_a_gradient_of_zero_for_every_weight(together: World | None) -> None:
    module = module_of(use_observed_lib_size=False).train()
    for norm in module.norms():
        norm.world = together
    empty, none = cells_of(np.zeros(0, dtype=np.int64)), step_noise(0, 0, 0, (), (), torch.device("cpu"))
    terms = module(empty, (), none, Labelled(empty, (), none))
    (cell_losses(terms, 1.0).sum() + terms.logits_ml.sum()).backward()
    found = gradients(module)
    assert found.keys() == {name for name, value in module.named_parameters() if value.requires_grad}
    assert all((value == 0).all() for value in found.values())


def test_a_prior_of_labels_moves_the_divergence_from_it() -> None:
    prior = (0.6, 0.1, 0.1, 0.1, 0.1)
    rows = np.arange(N)
    flat, steep = (module_of(y_prior=y_prior).eval() for y_prior in (None, prior))
    cells = cells_of(rows, label=-1)
    one, other = (module(cells, (), RowNoise(0, rows)).kl_n for module in (flat, steep))
    noise = RowNoise(0, rows)
    qzm, qzv = flat.encode(cells)
    p = flat.probabilities(qzm + qzv.sqrt() * noise.normal(qzm))
    torch.testing.assert_close(
        other - one, -(p * (torch.tensor(prior).log() + np.log(L))).sum(-1), rtol=1e-4, atol=1e-5
    )
