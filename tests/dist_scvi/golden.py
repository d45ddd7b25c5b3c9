"""The golden cases that scvi-tools 1.4.2 wrote, beside the checkout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders import CellData, open_data
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.network.loss_terms import Labelled, LossTerms
from dist_scvi.network.model_spec import spec_of
from dist_scvi.network.noise import global_noise
from dist_scvi.network.vae import VAE

GOLDEN = Path(__file__).parents[3] / "shared" / "parity" / "golden"
CASES = sorted(path.name for path in GOLDEN.glob("*")) if GOLDEN.is_dir() else []
CLASSIFICATION_RATIO = 50

needs_golden = [
    pytest.mark.real_data,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden cases are not beside the checkout ({GOLDEN})"),
]


class Golden:
    """One case: its cells, its untrained model, and what scvi-tools said of them."""

    def __init__(self, name: str) -> None:
        self.name, self.folder = name, GOLDEN / name
        case = json.loads((self.folder / "case.json").read_text())
        self.data: CellData = open_data(self.folder / "adata.h5ad", **case["setup"])
        config = ModelConfig(model_name=case["model"], **case["init"])
        self.spec = spec_of(config, case["seed"], self.data)
        self.kl_weight = case["kl_weight"]

    def build(self) -> VAE:
        module = self.spec.build()
        if module.latent_library:
            init = self.arrays("init")
            for name in ("library_log_means", "library_log_vars"):
                getattr(module, name).copy_(torch.from_numpy(init[f"weight.{name}"]))
        return module

    def arrays(self, name: str) -> dict[str, Any]:
        return dict(np.load(self.folder / f"{name}.npz"))

    def terms(self, module: VAE, rows: np.ndarray, labelled_rows: np.ndarray, seed: int) -> LossTerms:
        torch.manual_seed(seed)
        labelled = None
        if self.spec.model.model_name == "SCANVI":
            n = len(labelled_rows)
            labelled = Labelled(rows_minibatch(self.data, labelled_rows).to("cpu"), (n,), global_noise(n))
        return module(rows_minibatch(self.data, rows).to("cpu"), (len(rows),), global_noise(len(rows)), labelled)

    def loss(self, terms: LossTerms, labelled_rows: np.ndarray) -> torch.Tensor:
        local = terms.reconstruction_n + terms.latent_n + self.kl_weight * terms.kl_n + terms.kl_library_n
        if terms.logits_ml is None:
            return local.mean()
        return local.mean() + CLASSIFICATION_RATIO * self.cross_entropy(terms, labelled_rows)

    def cross_entropy(self, terms: LossTerms, labelled_rows: np.ndarray) -> torch.Tensor:
        label_m = torch.from_numpy(rows_minibatch(self.data, labelled_rows).label_n).long()
        assert terms.logits_ml is not None
        return torch.nn.functional.cross_entropy(terms.logits_ml, label_m)
