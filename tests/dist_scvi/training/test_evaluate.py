"""Evaluation: exact means over a split, and over its labelled cells, as one pass over them by hand gives."""

import anndata as ad
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dist_scvi.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from dist_scvi.loaders import open_data
from dist_scvi.loaders.order.plan import split_rows
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.network.model_spec import spec_of
from dist_scvi.network.noise import RowNoise
from dist_scvi.training.evaluate import evaluate
from dist_scvi.training.resolve import resolve
from dist_scvi.world import World


@pytest.mark.parametrize("name", ["SCVI", "SCANVI", "LinearSCVI"])
def test_means_over_a_split_are_those_of_one_pass_by_hand(adata: ad.AnnData, name: str) -> None:
    labels = {"labels_key": "label", "unlabeled_category": "NK"} if name == "SCANVI" else {}
    data = open_data(adata, batch_key="batch", **labels)
    config = RunConfig(
        seed=3,
        data=DataConfig(uri="memory"),
        model=ModelConfig.model_validate({"model_name": name, "n_hidden": 8}),
        train=TrainConfig(batch_size=64, lanes=4, max_epochs=1),
    )
    config, plan = resolve(config, data)
    module = spec_of(config.model, 0, data).build().train()
    found = evaluate(module, data, plan, "validation", World(), config, 0.25)
    assert module.training

    row_n = np.sort(split_rows(plan, "validation", 0, plan.split_cells("validation")))
    minibatch = rows_minibatch(data, row_n)
    with torch.no_grad():
        cells = minibatch.to("cpu")
        terms = module.eval()(cells, (), RowNoise(3, row_n))
        label = torch.from_numpy(minibatch.label_n).long()
        reconstruction = (terms.reconstruction_n + terms.latent_n).mean().item()
        kl, library = terms.kl_n.mean().item(), terms.kl_library_n.mean().item()
        loss = reconstruction + 0.25 * kl + library
        if name == "SCANVI":
            logits = module.classifier(module.encode(cells)[0])[label >= 0]
            loss += 50 * F.cross_entropy(logits, label[label >= 0]).item()
            assert 0 < found["labelled_cells"] == (label >= 0).sum() < len(row_n)
            assert found["accuracy"] == pytest.approx((logits.argmax(1) == label[label >= 0]).double().mean().item())
    assert found["cells"] == len(row_n) == 40
    assert found["reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    assert found["kl"] == pytest.approx(kl + library, rel=1e-5)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert ("accuracy" in found) == (name == "SCANVI")
