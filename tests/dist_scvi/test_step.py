"""One step: gradients are those of the mean over all cells of the global minibatch, however it is parted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dist_scvi.config import ModelConfig
from dist_scvi.loaders import CellData, make_plan, open_data
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.stream import train_stream
from dist_scvi.noise import step_noise
from dist_scvi.spec import ModelSpec, spec_of
from dist_scvi.step import take_step
from dist_scvi.world import World


@pytest.fixture
def data(store: Path) -> CellData:
    return open_data(store, batch_key="batch")


@pytest.fixture
def spec(data: CellData) -> ModelSpec:
    return spec_of(ModelConfig(), 0, data)


def first_parts(data: CellData, world_size: int, epochs: int = 1) -> list[MiniBatch]:
    plan = make_plan(n_cells=data.n_cells, n_entries=9, n_genes=50, batch_size=60, lanes=4, micro_cells=8)
    last = plan.steps_per_epoch - 1  # the smaller step, in which lanes hold different numbers of cells
    streams = [
        train_stream(data, plan, rank=rank, world_size=world_size, epoch=0, step=last, n_epochs=epochs)
        for rank in range(world_size)
    ]
    return [next(stream) for stream in streams]


def gradients(spec: ModelSpec, parts: list[MiniBatch]) -> dict[str, torch.Tensor]:
    """What averaging over as many workers as there are parts gives."""
    module = spec.build().train()
    for part in parts:
        noise = step_noise(0, part.epoch, part.step, part.micro_keys, part.micro_n, torch.device("cpu"))
        terms = module(part.to("cpu"), part.micro_n, noise)
        ((terms.reconstruction_n.sum() + 0.5 * terms.kl_n.sum()) / part.global_cells).backward()
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_gradient_does_not_depend_on_how_many_workers_share_a_minibatch(
    data: CellData, spec: ModelSpec, world_size: int
) -> None:
    alone, shared = gradients(spec, first_parts(data, 1)), gradients(spec, first_parts(data, world_size))
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_step_moves_the_weights_by_that_gradient_and_tells_its_sums(data: CellData, spec: ModelSpec) -> None:
    (part,) = first_parts(data, 1)
    module = spec.build().train()
    optimizer = torch.optim.SGD([value for value in module.parameters() if value.requires_grad], lr=1.0)
    noise = step_noise(0, part.epoch, part.step, part.micro_keys, part.micro_n, torch.device("cpu"))
    sums = take_step(module, module, optimizer, part, noise, 0.5, World())
    before = dict(spec.build().named_parameters())
    for name, gradient in gradients(spec, [part]).items():
        torch.testing.assert_close(before[name] - module.get_parameter(name), gradient, rtol=1e-3, atol=1e-5)
    assert sums.dtype == torch.float64
    assert sums[2].item() == part.n_cells == part.global_cells


def test_running_statistics_are_the_mean_over_micro_minibatches_weighed_by_cells(
    data: CellData, spec: ModelSpec
) -> None:
    (part,) = first_parts(data, 1)
    module = spec.build().train()
    optimizer = torch.optim.SGD([value for value in module.parameters() if value.requires_grad], lr=0.0)
    noise = step_noise(0, part.epoch, part.step, part.micro_keys, part.micro_n, torch.device("cpu"))
    take_step(module, module, optimizer, part, noise, 1.0, World())
    layer, norm = module.z_encoder.encoder.fc_layers[0].children()
    hidden = layer(torch.log1p(part.to("cpu").counts_ng)).detach().numpy()
    pieces = np.split(hidden, np.cumsum(part.micro_n)[:-1])
    mean = sum(len(piece) * piece.mean(0) for piece in pieces) / part.n_cells
    var = sum(len(piece) * piece.var(0, ddof=1) for piece in pieces) / part.n_cells
    np.testing.assert_allclose(norm.running_mean, 0.01 * mean, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, 0.99 + 0.01 * var, rtol=1e-4)
