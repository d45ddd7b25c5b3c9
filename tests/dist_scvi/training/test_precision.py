"""Products in bfloat16: nothing else is rounded, training goes the same way, inference knows nothing of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_scvi.config.schema import ModelConfig, TrainConfig
from dist_scvi.loaders import CellData, make_plan, open_data
from dist_scvi.loaders.labelled_stream import labelled_plan, labelled_stream
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.stream import rows_minibatch, train_stream
from dist_scvi.network import layers, scanvae, vae
from dist_scvi.network.model_spec import spec_of
from dist_scvi.network.vae import VAE
from dist_scvi.training.step import make_optimizer, take_step
from dist_scvi.world import World

MODELS = {
    "SCVI": {"model_name": "SCVI", "n_layers": 2, "dispersion": "gene-cell"},
    "SCANVI": {"model_name": "SCANVI", "use_observed_lib_size": False},
    "LinearSCVI": {"model_name": "LinearSCVI"},
}


@pytest.fixture(scope="module")
def labelled_data(store: Path) -> CellData:
    return open_data(store, batch_key="batch", labels_key="label", unlabeled_category="unknown")


def build(data: CellData, name: str) -> VAE:
    return spec_of(ModelConfig.model_validate({"n_hidden": 32, **MODELS[name]}), 0, data).build().train()


def train(data: CellData, module: VAE, n_steps: int, *, precision: str) -> list[float]:
    """Losses of some steps."""
    plan = make_plan(n_cells=data.n_cells, n_entries=9, n_genes=50, batch_size=64, lanes=4, micro_cells=16)
    settings = TrainConfig.model_validate({"precision": precision})
    optimizer = make_optimizer(module, settings)
    where = {"rank": 0, "world_size": 1}
    stream = train_stream(data, plan, **where, epoch=0, step=0, n_epochs=9)
    beside: list[MiniBatch | None] = [None] * n_steps
    if module.config.model_name == "SCANVI":
        beside = list(labelled_stream(data, labelled_plan(data, plan), **where, first_step=0, n_steps=n_steps))
    losses = []
    for minibatch, labelled in zip(stream, beside, strict=False):
        step = take_step(module, module, optimizer, minibatch, labelled, settings, seed=0, kl_weight=0.5, world=World())
        losses.append((step.sums[0] / step.sums[3]).item())
    return losses


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1 << 14, 1])
def test_twenty_losses_are_within_a_hundredth_of_those_in_float32(
    labelled_data: CellData, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    """Also where SCANVI computes again going backward."""
    monkeypatch.setattr(scanvae, "_ROWS_AT_ONCE", rows)
    exact, mixed = build(labelled_data, name), build(labelled_data, name)
    needed = train(labelled_data, exact, 20, precision="32-true")
    found = train(labelled_data, mixed, 20, precision="bf16-mixed")
    assert len(found) == 20
    assert found == pytest.approx(needed, rel=1e-2)
    assert found != needed
    for parameter in mixed.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    assert {value.dtype for value in mixed.state_dict().values()} == {torch.float32, torch.int64}


class Rounded(TorchDispatchMode):
    """Notes the operations that are given bfloat16, going forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(arg, torch.Tensor) and arg.dtype == torch.bfloat16 for arg in args):
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_only_products_are_rounded(labelled_data: CellData, name: str) -> None:
    """What else takes bfloat16 turns it around, or makes it float32 again, alone or together with the bias."""
    with Rounded() as rounded:
        train(labelled_data, build(labelled_data, name), 1, precision="bf16-mixed")
    assert "mm" in rounded.names
    assert rounded.names <= {"mm", "t", "transpose", "view", "_unsafe_view", "detach", "clone", "_to_copy", "add"}
    with Rounded() as rounded:
        train(labelled_data, build(labelled_data, name), 1, precision="32-true")
    assert not rounded.names


@pytest.mark.parametrize("name", MODELS)
def test_inference_between_and_after_steps_is_exact(labelled_data: CellData, name: str) -> None:
    mixed, fresh = build(labelled_data, name), build(labelled_data, name)
    train(labelled_data, mixed, 2, precision="bf16-mixed")
    fresh.load_state_dict(mixed.state_dict())
    cells = rows_minibatch(labelled_data, labelled_data.store.n_cells - 1 - torch.arange(9).numpy()).to("cpu")
    for module in (mixed.eval(), fresh.eval()):
        module.found = module.latent(module.encode(cells)[0])
        module.shares_found = module.shares(module.found, cells.covariates)
    assert torch.equal(mixed.found, fresh.found)
    assert torch.equal(mixed.shares_found, fresh.shares_found)


def test_a_step_that_fails_leaves_the_network_exact(labelled_data: CellData, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise MemoryError

    module = build(labelled_data, "SCVI")
    monkeypatch.setattr(vae, "sparse_log_likelihood", fail)
    with pytest.raises(MemoryError):
        train(labelled_data, module, 1, precision="bf16-mixed")
    operands = {layer.operands for layer in module.modules() if isinstance(layer, layers.Linear)}
    assert operands == {None}


def test_the_bias_of_a_product_is_not_rounded() -> None:
    torch.manual_seed(0)
    layer = layers.Linear(3, 2)
    layer.operands = torch.bfloat16
    torch.nn.init.constant_(layer.bias, 1.001)  # bfloat16 would make it 1
    assert torch.equal(layer(torch.zeros(4, 3)), layer.bias.expand(4, 2))
    bare = layers.Linear(3, 2, bias=False)
    bare.operands = torch.bfloat16
    assert bare(torch.ones(4, 3)).dtype == torch.float32
