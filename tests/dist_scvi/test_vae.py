"""The model is that of scvi-tools 1.4.2: golden cases written by it, and what it gets wrong done right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_scvi.config import ModelConfig
from dist_scvi.loaders import CellData, open_data
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.noise import global_noise
from dist_scvi.spec import spec_of
from dist_scvi.vae import VAE, LossTerms

GOLDEN = Path(__file__).parents[3] / "shared" / "parity" / "golden"
COVARIATES = ("scvi_default_cov", "scvi_nb_cov", "scvi_poisson_cov", "scvi_gene_batch_cov", "scvi_two_layers_cov")
CASES = [
    "scvi_default",
    "scvi_nb",
    "scvi_poisson",
    "scvi_gene_batch",
    "scvi_two_layers",
    "scvi_wide",
    "scvi_no_batch",
    *COVARIATES,
    "scvi_wide_cov",
]

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden cases are not beside the checkout ({GOLDEN})"),
]


class Golden:
    """One case: its cells, its untrained model, and what scvi-tools said of them."""

    def __init__(self, name: str) -> None:
        self.folder = GOLDEN / name
        case = json.loads((self.folder / "case.json").read_text())
        self.data: CellData = open_data(self.folder / "adata.h5ad", **case["setup"])
        self.spec = spec_of(ModelConfig(**case["init"]), case["seed"], self.data)
        self.kl_weight = case["kl_weight"]

    def arrays(self, name: str) -> dict[str, Any]:
        return dict(np.load(self.folder / f"{name}.npz"))

    def terms(self, module: VAE, rows: np.ndarray, seed: int) -> LossTerms:
        torch.manual_seed(seed)
        return module(rows_minibatch(self.data, rows).to("cpu"), (len(rows),), global_noise(len(rows)))


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_untrained_weights_are_bit_for_bit_those_of_scvi_tools(golden: Golden) -> None:
    weights = {key: value.numpy() for key, value in golden.spec.build().state_dict().items()}
    expected = {key.removeprefix("weight."): v for key, v in golden.arrays("init").items() if key.startswith("weight.")}
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value, err_msg=key)


def test_loss_terms_are_those_of_scvi_tools_in_eval_and_train_mode(golden: Golden) -> None:
    module, init = golden.spec.build(), golden.arrays("init")
    for mode in ("eval", "train"):
        module.train(mode == "train")
        terms = golden.terms(module, init["rows"], seed=1)
        loss = (terms.reconstruction_n + golden.kl_weight * terms.kl_n).mean()
        np.testing.assert_allclose(terms.reconstruction_n.detach(), init[f"{mode}.reconstruction_loss"], rtol=1e-5)
        np.testing.assert_allclose(terms.kl_n.detach(), init[f"{mode}.kl_local.kl_divergence_z"], rtol=1e-5)
        np.testing.assert_allclose(loss.item(), init[f"{mode}.loss"], rtol=1e-5)


def test_twenty_optimizer_steps_end_at_the_weights_of_scvi_tools(golden: Golden) -> None:
    module, steps = golden.spec.build().train(), golden.arrays("steps")
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3, eps=0.01, weight_decay=1e-6, fused=True)
    for step, rows in enumerate(steps["rows"]):
        terms = golden.terms(module, rows, seed=step)
        loss = (terms.reconstruction_n + golden.kl_weight * terms.kl_n).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for norm in module.norms():
            norm.update(norm.sums, len(rows))
        np.testing.assert_allclose(loss.item(), steps["losses"][step], rtol=1e-4)
    for key, value in module.state_dict().items():
        np.testing.assert_allclose(value, steps[f"weight.{key}"], rtol=1e-4, atol=1e-6, err_msg=key)


def test_unused_parts_have_no_gradient_and_used_ones_all_have(golden: Golden) -> None:
    module, rows = golden.spec.build().train(), golden.arrays("init")["rows"]
    terms = golden.terms(module, rows, seed=0)
    (terms.reconstruction_n.sum() + terms.kl_n.sum()).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_plain_likelihood_gives_the_same_terms(golden: Golden) -> None:
    module, rows = golden.spec.build().eval(), golden.arrays("init")["rows"]
    cells = rows_minibatch(golden.data, rows).to("cpu")
    qzm, qzv = module.encode(cells.counts_ng)
    normal = torch.zeros_like(qzm)
    fast, plain = (module.terms(cells, qzm, qzv, normal, reference=reference) for reference in (False, True))
    torch.testing.assert_close(fast.reconstruction_n, plain.reconstruction_n, rtol=1e-5, atol=0)


def test_expression_from_the_minibatch_of_scvi_tools_matches_its_decoder(golden: Golden) -> None:
    expected = golden.arrays("outputs")
    module = golden.spec.build().eval()
    module.load_state_dict(_weights_of(golden.folder / "model.pt", module))
    cells = rows_minibatch(golden.data, np.arange(24)).to("cpu")
    everyone = rows_minibatch(golden.data, np.arange(golden.data.n_cells)).to("cpu")
    with torch.no_grad():
        qzm, qzv = module.encode(everyone.counts_ng)
        np.testing.assert_allclose(qzm, expected["qzm"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(qzv, expected["qzv"], rtol=1e-5)
        own = {"own": cells.batch_n} | {
            f"batch{code}": torch.full_like(cells.batch_n, code) for code in range(module.n_batch)
        }
        for name, batch_n in own.items():
            px = module.decode(qzm[:24], cells.library_n, batch_n, cells.categorical_nc, cells.continuous_nc)
            np.testing.assert_allclose(px.rate_ng, expected[f"{name}.rate"], rtol=2e-5, err_msg=name)
            if golden.spec.model.gene_likelihood != "poisson":
                np.testing.assert_allclose(px.scale_ng, expected[f"{name}.scale"], rtol=2e-5, err_msg=name)


def _weights_of(path: Path, module: VAE) -> dict[str, torch.Tensor]:
    """Take the weights out of a model file of scvi-tools; the files beside the checkout are trusted."""
    stored = torch.load(path, weights_only=False)["model_state_dict"]
    return {key: stored[key] for key in module.state_dict()}
