"""The model is that of scvi-tools 1.4.2: golden cases written by it, and what it gets wrong done right."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.network.ldvae import LDVAE
from dist_scvi.network.noise import RowNoise
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.network.vae import VAE
from tests.dist_scvi.golden import CASES, Golden, needs_golden

pytestmark = needs_golden


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(params=["torch", "compiled"])
def kernels(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_untrained_weights_are_bit_for_bit_those_of_scvi_tools(golden: Golden) -> None:
    weights = {key: value.numpy() for key, value in golden.build().state_dict().items()}
    expected = {key.removeprefix("weight."): v for key, v in golden.arrays("init").items() if key.startswith("weight.")}
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value, err_msg=key)


def test_loss_terms_are_those_of_scvi_tools_in_eval_and_train_mode(golden: Golden, kernels: str) -> None:
    module, init = golden.build(), golden.arrays("init")
    module.kernels = kernels
    for mode in ("eval", "train"):
        module.train(mode == "train")
        terms = golden.terms(module, init["rows"], init["labelled_rows"], seed=1)
        found = {"reconstruction_loss": (terms.reconstruction_n + terms.latent_n).detach()}
        if terms.logits_ml is None:
            found |= {"kl_local.kl_divergence_z": terms.kl_n.detach()}
            found |= {"kl_local.kl_divergence_l": terms.kl_library_n.detach()}
        else:
            found |= {"kl_local.kl_local": terms.kl_n.detach()}
            found |= {"classification_loss": golden.cross_entropy(terms, init["labelled_rows"]).detach()}
        for name, value in found.items():
            np.testing.assert_allclose(value, init[f"{mode}.{name}"], rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(golden.loss(terms, init["labelled_rows"]).item(), init[f"{mode}.loss"], rtol=1e-5)


def test_twenty_optimizer_steps_end_at_the_weights_of_scvi_tools(golden: Golden, kernels: str) -> None:
    module, steps = golden.build().train(), golden.arrays("steps")
    module.kernels = kernels
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3, eps=0.01, weight_decay=1e-6, fused=True)
    for step, (rows, labelled_rows) in enumerate(zip(steps["rows"], steps["labelled_rows"], strict=True)):
        loss = golden.loss(golden.terms(module, rows, labelled_rows, seed=step), labelled_rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for norm in module.norms():
            for sums, cells in zip(norm.sums, (len(rows), len(labelled_rows)), strict=False):
                norm.update(sums, cells)
            norm.sums = []
        np.testing.assert_allclose(loss.item(), steps["losses"][step], rtol=1e-4)
    # scvi-tools moves the running statistics of a head that nothing reads
    unread = "px_dropout" if isinstance(module, LDVAE) and golden.spec.model.gene_likelihood == "nb" else "\0"
    pairs = {
        key: (value.numpy(), steps[f"weight.{key}"]) for key, value in module.state_dict().items() if unread not in key
    }
    for key, (value, expected) in pairs.items():
        assert np.linalg.norm(value - expected) <= 1e-3 * np.linalg.norm(expected), key
    found, expected = (np.concatenate([np.ravel(pair[at]) for pair in pairs.values()]) for at in range(2))
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def test_unused_parts_have_no_gradient_and_used_ones_all_have(golden: Golden) -> None:
    module, init = golden.build().train(), golden.arrays("init")
    golden.loss(golden.terms(module, init["rows"], init["labelled_rows"], seed=0), init["labelled_rows"]).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_plain_likelihood_gives_the_same_terms(golden: Golden) -> None:
    module, rows = golden.build().eval(), golden.arrays("init")["rows"]
    cells = rows_minibatch(golden.data, rows).to("cpu")
    fast, plain = (module(cells, (), RowNoise(0, rows), reference=reference) for reference in (False, True))
    torch.testing.assert_close(fast.reconstruction_n, plain.reconstruction_n, rtol=1e-5, atol=0)


def test_expression_of_a_trained_model_matches_its_decoder(golden: Golden) -> None:
    expected = golden.arrays("outputs")
    module = golden.build().eval()
    module.load_state_dict(_weights_of(golden.folder / "model.pt", module))
    cells = rows_minibatch(golden.data, np.arange(24)).to("cpu")
    everyone = rows_minibatch(golden.data, np.arange(golden.data.n_cells)).to("cpu")
    with torch.no_grad():
        qzm, qzv = module.encode(everyone)
        np.testing.assert_allclose(qzm, expected["qzm"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(qzv, expected["qzv"], rtol=1e-5)
        z = module.latent(qzm[:24])
        library = torch.exp(module.encode_library(cells)[0][:, 0]) if module.latent_library else cells.library_n
        own = {"own": cells.covariates.batch_n}
        own |= {f"batch{code}": torch.full_like(cells.covariates.batch_n, code) for code in range(module.n_batch)}
        for name, batch_n in own.items():
            px = module.decode(z, library, replace(cells.covariates, batch_n=batch_n))
            found = {"rate": px.rate_ng, "scale": px.scale_ng, "theta": px.theta_ng, "zi_logits": px.zi_logits_ng}
            if golden.spec.model.gene_likelihood == "normal":
                found = {"rate": px.rate_ng, "scale": px.theta_ng}  # the file holds the standard deviation
            if golden.spec.model.gene_likelihood == "poisson":
                found = {"rate": px.rate_ng}
            if module.latent_library:
                found.pop("rate")  # the file holds a random draw
            for part in found.keys() & {key.removeprefix(f"{name}.") for key in expected}:
                value, wanted = np.broadcast_arrays(found[part].numpy(), expected[f"{name}.{part}"])
                np.testing.assert_allclose(value, wanted, rtol=2e-5, atol=1e-6, err_msg=f"{name}.{part}")
        if isinstance(module, SCANVAE):
            np.testing.assert_allclose(module.probabilities(qzm), expected["predict.soft"], rtol=1e-4, atol=1e-6)
        if isinstance(module, LDVAE):
            np.testing.assert_allclose(module.loadings(), expected["loadings"], rtol=1e-5, atol=1e-7)


def test_a_choice_of_genes_is_a_part_of_all_of_them(golden: Golden) -> None:
    module = golden.build().eval()
    cells, gene = rows_minibatch(golden.data, np.arange(9)).to("cpu"), torch.tensor([7, 3, 90])
    with torch.no_grad():
        z = module.latent(module.encode(cells)[0])
        few, all_ = (module.decode(z, cells.library_n, cells.covariates, gene_g=genes) for genes in (gene, None))
        torch.testing.assert_close(few.scale_ng, all_.scale_ng[:, gene])
        torch.testing.assert_close(few.rate_ng, all_.rate_ng[:, gene])
        torch.testing.assert_close(few.theta_ng, all_.theta_ng[..., gene])
        torch.testing.assert_close(module.shares(z, cells.covariates, gene), all_.scale_ng[:, gene])
        if all_.zi_logits_ng is not None:
            torch.testing.assert_close(few.zi_logits_ng, all_.zi_logits_ng[:, gene])


def _weights_of(path: Path, module: VAE) -> dict[str, torch.Tensor]:
    """Take the weights out of a model file of scvi-tools; the files beside the checkout are trusted."""
    stored = torch.load(path, weights_only=False)["model_state_dict"]
    return {key: stored[key] for key in module.state_dict()}
