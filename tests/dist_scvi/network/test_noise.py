"""Random numbers that belong to a cell or a micro-minibatch, not to who draws them."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from dist_scvi.network.noise import RowNoise, global_noise, row_normal, step_noise

CPU = torch.device("cpu")
ROWS = np.arange(2000)


def test_normals_of_a_cell_are_these() -> None:
    expected = [
        [-1.1975237, 0.0832815, -0.8531803],
        [-1.2143035, 1.6217530, 0.6854190],
        [-1.1607550, 0.7463230, 0.9339590],
    ]
    np.testing.assert_allclose(row_normal(7, np.array([0, 1, 10**9]), 2, 3), expected, atol=1e-6)


def test_normals_depend_on_seed_row_draw_and_column_alone() -> None:
    whole = row_normal(3, ROWS, 1, 4)
    order = np.random.default_rng(0).permutation(ROWS)
    np.testing.assert_array_equal(row_normal(3, order, 1, 4), whole[order])
    np.testing.assert_array_equal(row_normal(3, ROWS[5:9], 1, 2), whole[5:9, :2])
    for other in (row_normal(4, ROWS, 1, 4), row_normal(3, ROWS, 2, 4), row_normal(3, ROWS + 2000, 1, 4)):
        assert (other == whole).mean() < 0.001


def test_normals_are_standard_and_uncorrelated() -> None:
    normal = np.concatenate([row_normal(seed, ROWS, draw, 5) for seed in (0, 1) for draw in (0, 1)])
    assert stats.kstest(normal.ravel(), "norm").pvalue > 0.01
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    np.testing.assert_allclose(np.corrcoef(normal.T), np.eye(5), atol=0.05)


def test_the_extreme_hashes_give_finite_normals(monkeypatch) -> None:
    for bits in (0, 2**64 - 1):
        monkeypatch.setattr(
            "dist_scvi.network.noise.hash_rows", lambda rows, *_, b=bits: np.full(len(rows), b, np.uint64)
        )
        assert np.isfinite(row_normal(0, ROWS[:1], 0, 1)).all()


def test_noise_of_a_micro_minibatch_does_not_depend_on_the_others_held() -> None:
    keys, sizes = (0, 1, 1 << 20, (1 << 20) + 1), (3, 4, 2, 5)
    whole = step_noise(5, 2, 9, keys, sizes, CPU)
    like = torch.ones(sum(sizes), 6)
    dropped, normal = whole.dropout(like, 0.3), whole.normal(like)
    for which in ((2, 3), (1,), (3, 0)):
        noise = step_noise(5, 2, 9, tuple(keys[i] for i in which), tuple(sizes[i] for i in which), CPU)
        rows = torch.cat([torch.arange(14).split(sizes)[i] for i in which])
        assert torch.equal(noise.dropout(like[rows], 0.3), dropped[rows])
        assert torch.equal(noise.normal(like[rows]), normal[rows])


def test_every_step_has_noise_of_its_own() -> None:
    like = torch.zeros(2, 3)
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [step_noise(seed, epoch, step, (key,), (2,), CPU).normal(like) for seed, epoch, step, key in places]
    assert torch.stack(drawn).unique().numel() == 6 * len(places)


def test_dropout_from_torchs_own_generator_is_that_of_torch() -> None:
    hidden = torch.randn(50, 20)
    torch.manual_seed(8)
    expected = F.dropout(hidden, 0.1)
    torch.manual_seed(8)
    assert torch.equal(global_noise(50).dropout(hidden, 0.1), expected)


def test_dropout_drops_its_share_and_scales_up_the_rest() -> None:
    dropped = step_noise(0, 0, 0, (0,), (200,), CPU).dropout(torch.ones(200, 100), 0.25)
    assert torch.equal(dropped.unique(), torch.tensor([0, 1 / 0.75]))
    assert abs((dropped == 0).float().mean() - 0.25) < 0.01


def test_normals_from_torchs_own_generator_are_those_of_rsample() -> None:
    mean, scale = torch.randn(50, 10), torch.rand(50, 10) + 0.1
    torch.manual_seed(8)
    expected = torch.distributions.Normal(mean, scale).rsample()
    torch.manual_seed(8)
    assert torch.equal(mean + scale * global_noise(50).normal(mean), expected)


def test_noise_of_cells_spreads_over_what_comes_before_them() -> None:
    noise, like = RowNoise(3, ROWS[:5], 1), torch.zeros(2, 5, 4)
    drawn = noise.normal(like)
    np.testing.assert_array_equal(drawn[0], row_normal(3, ROWS[:5], 1, 4))
    assert torch.equal(drawn[0], drawn[1])
    assert (noise.normal(like[0]) != drawn[0]).all()  # what is asked next is another draw


def test_parts_of_the_noise_of_cells_are_theirs() -> None:
    whole, cut, like = RowNoise(3, ROWS[:9]), RowNoise(3, ROWS[:9]), torch.zeros(9, 2)
    for sizes in ((4, 5), (2, 7)):
        parts = [part.normal(like[:n]) for part, n in zip(cut.parts(sizes), sizes, strict=True)]
        expected = whole.normal(like)
        assert torch.equal(torch.cat(parts), expected)
        assert torch.equal(cut.normal(like), expected)


def test_a_micro_minibatch_can_have_its_noise_once_more() -> None:
    parts = step_noise(5, 2, 9, (4, 7), (3, 2), CPU).parts((3, 2))
    alone = step_noise(5, 2, 9, (7,), (2,), CPU).parts((2,))[0]
    like = torch.zeros(4, 2, 6)
    drawn = parts[1].normal(like)
    assert torch.equal(alone.normal(like), drawn)
    assert not torch.equal(parts[1].normal(like), drawn)
    assert torch.equal(parts[1].anew().normal(like), drawn)
    assert not torch.equal(step_noise(5, 2, 9, (7,), (2,), CPU).normal(like), drawn)


def test_torchs_own_generator_has_no_parts() -> None:
    noise = global_noise(5)
    assert noise.parts((5,)) == [noise]
    assert not noise.keyed
