"""Batch normalisation: torch's own for one micro-minibatch, or for all cells that several processes hold."""

import pytest
import torch
from torch import nn

from dist_scvi.network.batch_norm import MicroBatchNorm
from dist_scvi.world import World
from tests.dist_scvi.workers import ThreadWorld, together

SIZES = (5, 9, 3)


@pytest.fixture
def hidden() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(17, 4) * 3 + torch.arange(4)


def norm_of(seed: int = 1) -> MicroBatchNorm:
    torch.manual_seed(seed)
    norm = MicroBatchNorm(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def reference_of(norm: MicroBatchNorm) -> nn.BatchNorm1d:
    reference = nn.BatchNorm1d(4, momentum=0.01, eps=0.001)
    reference.load_state_dict(norm.state_dict())
    return reference


def backward(output: torch.Tensor) -> None:
    (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()


def test_one_micro_minibatch_is_torchs_batch_norm_in_value_and_gradient(hidden: torch.Tensor) -> None:
    norm = norm_of()
    reference = reference_of(norm)
    mine, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    output, expected = norm.normalise(mine, (17,)), reference(other)
    assert torch.equal(output, expected)
    backward(output)
    backward(expected)
    for found, needed in ((mine, other), (norm.weight, reference.weight), (norm.bias, reference.bias)):
        assert torch.equal(found.grad, needed.grad)


def test_running_statistics_of_one_micro_minibatch_are_torchs(hidden: torch.Tensor) -> None:
    norm = norm_of()
    reference = reference_of(norm)
    for step in range(3):
        norm.normalise(hidden + step, (17,))
        norm.update(norm.sums.pop(), 17)
        reference(hidden + step)
    torch.testing.assert_close(norm.running_mean, reference.running_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(norm.running_var, reference.running_var, rtol=1e-6, atol=1e-7)
    assert norm.num_batches_tracked == reference.num_batches_tracked == 3


def test_each_micro_minibatch_is_normalised_alone(hidden: torch.Tensor) -> None:
    norm = norm_of()
    output = norm.normalise(hidden, SIZES)
    parts = [reference_of(norm)(part) for part in hidden.split(SIZES)]
    assert torch.equal(output, torch.cat(parts))


def test_the_sums_over_processes_give_the_statistics_of_one(hidden: torch.Tensor) -> None:
    alone, first, second = norm_of(), norm_of(), norm_of()
    alone.normalise(hidden, SIZES)
    first.normalise(hidden[:14], SIZES[:2])
    second.normalise(hidden[14:], SIZES[2:])
    torch.testing.assert_close(first.sums[0] + second.sums[0], alone.sums[0], rtol=1e-6, atol=1e-6)


def test_running_statistics_are_the_mean_weighted_by_cells(hidden: torch.Tensor) -> None:
    norm = norm_of()
    norm.normalise(hidden, SIZES)
    assert torch.equal(norm.running_mean, torch.zeros(4))  # until update
    norm.update(norm.sums[0], 17)
    parts = list(zip(SIZES, hidden.split(SIZES), strict=True))
    mean = sum(n * part.mean(0) for n, part in parts) / 17
    var = sum(n * part.var(0) for n, part in parts) / 17
    torch.testing.assert_close(norm.running_mean, 0.01 * mean)
    torch.testing.assert_close(norm.running_var, 0.99 + 0.01 * var)


def test_outside_training_the_running_statistics_are_used_and_kept(hidden: torch.Tensor) -> None:
    norm = norm_of()
    norm.running_mean.normal_()
    norm.eval()
    reference = reference_of(norm).eval()
    torch.testing.assert_close(norm.normalise(hidden, ()), reference(hidden), rtol=0, atol=0)
    torch.testing.assert_close(norm.normalise(hidden[:1], ()), reference(hidden[:1]), rtol=0, atol=0)
    assert norm.sums == []


def test_each_pass_of_a_step_keeps_sums_of_its_own(hidden: torch.Tensor) -> None:
    norm = norm_of()
    norm.normalise(hidden, (17,))
    norm.normalise(hidden[:4], (4,))
    assert len(norm.sums) == 2
    torch.testing.assert_close(norm.sums[1][0], 4 * hidden[:4].mean(0))


def test_rows_before_the_cells_belong_to_the_same_micro_minibatch(hidden: torch.Tensor) -> None:
    norm, stacked = norm_of(), torch.stack([hidden, 2 * hidden, hidden - 1])
    output = norm.normalise(stacked, SIZES)
    parts = [reference_of(norm)(part.reshape(-1, 4)).view_as(part) for part in stacked.split(SIZES, dim=1)]
    assert torch.equal(output, torch.cat(parts, dim=1))


def test_a_worker_without_cells_adds_nothing_but_a_gradient_of_zero() -> None:
    norm = norm_of()
    output = norm.normalise(torch.zeros(0, 4), ())
    assert output.shape == (0, 4)
    assert torch.equal(norm.sums[0], torch.zeros(2, 4))
    output.sum().backward()
    assert torch.equal(norm.weight.grad, torch.zeros(4))
    assert torch.equal(norm.bias.grad, torch.zeros(4))


def test_a_norm_that_is_held_normalises_by_what_it_knows_and_learns_nothing(hidden: torch.Tensor) -> None:
    norm = norm_of()
    norm.running_mean.normal_()
    norm.momentum = 0.0
    torch.testing.assert_close(norm.normalise(hidden, (17,)), reference_of(norm).eval()(hidden), rtol=0, atol=0)
    assert norm.sums == []


class AddingWorld(ThreadWorld):
    """A thread that can add up tensors with the others, going forward and backward."""

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.from_all(tensor.clone())).sum(0)


@pytest.mark.parametrize("layers", [1, 3])
def test_over_all_workers_it_is_torchs_batch_norm_of_all_cells_together(hidden: torch.Tensor, layers: int) -> None:
    """The third of four workers has no cells; a mean of 1000 spreads is no harm."""
    stacked = torch.stack([hidden * (1 + layer) + 3000 for layer in range(layers)])
    sizes, edges = ((5, 4), (6,), (), (2,)), [(0, 9), (9, 15), (15, 15), (15, 17)]
    slope = torch.arange(stacked.numel()).view_as(stacked).cos()
    norms = [norm_of() for _ in edges]  # here, as threads share one state of random numbers

    def work(world: AddingWorld) -> tuple[torch.Tensor, torch.Tensor]:
        norm, (low, high) = norms[world.rank], edges[world.rank]
        norm.world = AddingWorld(world.rank, 4, world._barrier, world._said)
        mine = stacked[:, low:high].clone().requires_grad_()
        output = norm.normalise(mine, sizes[world.rank])
        (output * slope[:, low:high]).sum().backward()
        return output, mine.grad

    outputs, gradients = zip(*together(4, work), strict=True)
    norm, whole = norms[0], stacked.double().requires_grad_()
    reference = reference_of(norm_of()).double()
    expected = reference(whole.view(-1, 4)).view_as(whole)
    (expected * slope).sum().backward()
    close = {"rtol": 1e-3, "atol": 1e-4}  # the cells are of float32
    torch.testing.assert_close(torch.cat(outputs, 1).double(), expected, **close)
    torch.testing.assert_close(torch.cat(gradients, 1).double(), whole.grad, **close)
    for name in ("weight", "bias"):
        found = sum(getattr(norm, name).grad for norm in norms)
        torch.testing.assert_close(found.double(), getattr(reference, name).grad, **close)
    norm.update(sum(norm.sums[0].double() for norm in norms), 17)
    torch.testing.assert_close(norm.running_mean.double(), reference.running_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.running_var.double(), reference.running_var, rtol=1e-4, atol=0)


def test_one_worker_normalises_all_its_cells_together(hidden: torch.Tensor) -> None:
    norm = norm_of()
    norm.world = World()
    assert torch.equal(norm.normalise(hidden, SIZES), norm_of().normalise(hidden, (17,)))
    torch.testing.assert_close(norm.sums[0], 17 * torch.stack(torch.var_mean(hidden, 0)[::-1]))
    assert norm.normalise(hidden[:0], ()).shape == (0, 4)
    norm.eval()
    assert torch.equal(norm.normalise(hidden[:1], ()), reference_of(norm).eval()(hidden[:1]))
