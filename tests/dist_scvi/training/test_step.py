"""One step: gradients are those of the mean over all cells of the global minibatch, however it is parted."""

import weakref
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dist_scvi.config.schema import ModelConfig, TrainConfig
from dist_scvi.loaders import CellData, make_plan, open_data
from dist_scvi.loaders.labelled_stream import labelled_plan, labelled_stream
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.loaders.stream import train_stream
from dist_scvi.network import scanvae
from dist_scvi.network.loss_terms import Labelled
from dist_scvi.network.model_spec import ModelSpec, spec_of
from dist_scvi.network.noise import step_noise
from dist_scvi.network.vae import VAE
from dist_scvi.training.step import Step, average_gradients, check_weights, make_optimizer, take_step
from dist_scvi.world import World

CPU = torch.device("cpu")
RATIO = 7.0
Parts = list[tuple[MiniBatch, MiniBatch | None]]


@pytest.fixture
def data(store: Path) -> CellData:
    return open_data(store, batch_key="batch")


@pytest.fixture
def spec(data: CellData) -> ModelSpec:
    return spec_of(ModelConfig(), 0, data)


@pytest.fixture(scope="module")
def few_labels(adata: ad.AnnData) -> CellData:
    """Cells of which every twentieth has a label."""
    adata = adata.copy()
    label = adata.obs["label"].astype(str).to_numpy()
    adata.obs["label"] = np.where(np.arange(len(label)) % 20 == 0, label, "unknown")
    return open_data(adata, batch_key="batch", labels_key="label", unlabeled_category="unknown")


def scanvi(data: CellData, **options: object) -> ModelSpec:
    return spec_of(ModelConfig.model_validate({"model_name": "SCANVI", "n_hidden": 16, **options}), 0, data)


def first_parts(data: CellData, world_size: int, *, labels: bool = False) -> Parts:
    """What each worker is given in the smaller step at the end of an epoch, in which lanes hold different numbers."""
    plan = make_plan(n_cells=data.n_cells, n_entries=9, n_genes=50, batch_size=60, lanes=4, micro_cells=8)
    last, beside = plan.steps_per_epoch - 1, labelled_plan(data, plan) if labels else None
    parts: Parts = []
    for rank in range(world_size):
        where = {"rank": rank, "world_size": world_size}
        minibatch = next(train_stream(data, plan, **where, epoch=0, step=last, n_epochs=1))
        labelled = beside and next(labelled_stream(data, beside, **where, first_step=last, n_steps=1))
        parts.append((minibatch, labelled))
    return parts


def noise_of(part: MiniBatch) -> object:
    return step_noise(0, part.epoch, part.step, part.micro_keys, part.micro_n, CPU)


def gradients(spec: ModelSpec, parts: Parts) -> dict[str, torch.Tensor]:
    """What averaging over as many workers as there are parts gives."""
    module = spec.build().train()
    for part, labelled in parts:
        beside = labelled and Labelled(labelled.to("cpu"), labelled.micro_n, noise_of(labelled))
        terms = module(part.to("cpu"), part.micro_n, noise_of(part), beside)
        local_n = terms.reconstruction_n + terms.latent_n + terms.kl_library_n + 0.5 * terms.kl_n
        loss = local_n.sum() / part.global_cells
        if labelled:
            label_m = torch.from_numpy(labelled.label_n).long()
            loss = loss + RATIO * F.cross_entropy(terms.logits_ml, label_m, reduction="sum") / labelled.global_cells
        loss.backward()
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


def step_with(module: VAE, optimizer: torch.optim.Optimizer, parts: Parts, **settings: object) -> Step:
    options = TrainConfig.model_validate({"classification_ratio": RATIO, **settings})
    return take_step(module.train(), module, optimizer, *parts[0], options, seed=0, kl_weight=0.5, world=World())


def descent(module: VAE, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([value for value in module.parameters() if value.requires_grad], lr=lr)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_gradient_does_not_depend_on_how_many_workers_share_a_minibatch(
    data: CellData, spec: ModelSpec, world_size: int
) -> None:
    alone, shared = gradients(spec, first_parts(data, 1)), gradients(spec, first_parts(data, world_size))
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("options", [{}, {"use_observed_lib_size": False, "dispersion": "gene-label"}])
def test_that_holds_where_some_workers_have_no_labelled_cells(few_labels: CellData, options: dict[str, object]) -> None:
    spec, parts = scanvi(few_labels, **options), first_parts(few_labels, 4, labels=True)
    assert 0 in [labelled.n_cells for _, labelled in parts if labelled]
    alone, shared = gradients(spec, first_parts(few_labels, 1, labels=True)), gradients(spec, parts)
    assert alone.keys() == {name for name, value in spec.build().named_parameters() if value.requires_grad}
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_a_worker_without_labelled_cells_still_has_a_gradient_for_every_weight(few_labels: CellData) -> None:
    spec, parts = scanvi(few_labels), first_parts(few_labels, 4, labels=True)
    (without,) = [part for part in parts if part[1] and not part[1].n_cells][:1]
    assert gradients(spec, [without]).keys() == gradients(spec, parts).keys()


@pytest.mark.parametrize("labels", [False, True])
def test_a_step_moves_the_weights_by_that_gradient_and_tells_its_sums(few_labels: CellData, labels: bool) -> None:
    spec = scanvi(few_labels) if labels else spec_of(ModelConfig(), 0, few_labels)
    parts, module, before = (
        first_parts(few_labels, 1, labels=labels),
        spec.build(),
        dict(spec.build().named_parameters()),
    )
    step = step_with(module, descent(module, 0.1), parts)
    for name, gradient in gradients(spec, parts).items():
        torch.testing.assert_close(before[name] - module.get_parameter(name), 0.1 * gradient, rtol=1e-3, atol=1e-5)
    assert step.sums.dtype == torch.float64
    assert step.sums[3].item() == parts[0][0].n_cells == parts[0][0].global_cells
    assert step.sums[0].item() == pytest.approx(step.loss_n.double().sum().item())
    np.testing.assert_array_equal(step.row_n, parts[0][0].row_n)


def test_running_statistics_are_the_mean_over_micro_minibatches_weighed_by_cells(
    data: CellData, spec: ModelSpec
) -> None:
    parts, module = first_parts(data, 1), spec.build()
    step_with(module, descent(module, 0.0), parts)
    layer, norm = module.z_encoder.encoder.fc_layers[0].children()
    mean, var = statistics(layer, parts[0][0])
    np.testing.assert_allclose(norm.running_mean, 0.01 * mean, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, 0.99 + 0.01 * var, rtol=1e-4)


def test_running_statistics_then_move_towards_those_of_the_labelled_cells(few_labels: CellData) -> None:
    parts, module = first_parts(few_labels, 1, labels=True), scanvi(few_labels).build()
    step_with(module, descent(module, 0.0), parts)
    layer, norm = module.z_encoder.encoder.fc_layers[0].children()
    (mean, var), (labelled_mean, labelled_var) = (statistics(layer, part) for part in parts[0] if part)
    np.testing.assert_allclose(norm.running_mean, 0.99 * 0.01 * mean + 0.01 * labelled_mean, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, 0.99 * (0.99 + 0.01 * var) + 0.01 * labelled_var, rtol=1e-4)
    assert all(not norm.sums for norm in module.norms())


def statistics(layer: torch.nn.Module, part: MiniBatch) -> tuple[np.ndarray, np.ndarray]:
    hidden = layer(torch.log1p(part.to("cpu").counts_ng)).detach().numpy()
    pieces = np.split(hidden, np.cumsum(part.micro_n)[:-1])
    mean = sum(len(piece) * piece.mean(0) for piece in pieces) / part.n_cells
    return mean, sum(len(piece) * piece.var(0, ddof=1) for piece in pieces) / part.n_cells


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
def test_frozen_entries_stay_bit_for_bit_whatever_the_optimizer_and_weight_decay(
    data: CellData, spec: ModelSpec, optimizer: str
) -> None:
    module, settings = spec.build(), TrainConfig.model_validate({"optimizer": optimizer, "weight_decay": 0.1})
    mask = torch.zeros_like(module.px_r, dtype=torch.bool)
    mask[::2] = True
    module.frozen = {"px_r": mask}
    module.decoder.px_scale_decoder.requires_grad_(False)
    made, before = make_optimizer(module, settings), {name: v.clone() for name, v in module.named_parameters()}
    for _ in range(3):
        step_with(module, made, first_parts(data, 1))
    after = dict(module.named_parameters())
    assert torch.equal(after["px_r"][mask], before["px_r"][mask])
    assert (after["px_r"][~mask] != before["px_r"][~mask]).all()
    still = [name for name in before if torch.equal(after[name], before[name])]
    assert {"decoder.px_scale_decoder.0.weight", "decoder.px_scale_decoder.0.bias"} <= set(still)
    assert "z_encoder.mean_encoder.weight" not in still


def test_frozen_entries_have_no_part_in_the_length_of_the_gradient(data: CellData, spec: ModelSpec) -> None:
    lengths = []
    for frozen in (False, True):
        module = spec.build()
        if frozen:
            module.frozen = {"px_r": torch.ones_like(module.px_r, dtype=torch.bool)}
        step_with(module, descent(module, 1e-3), first_parts(data, 1))
        lengths.append(sum(p.grad.square().sum().item() for n, p in module.named_parameters() if p.grad is not None))
        assert (module.px_r.grad == 0).all().item() == frozen
    assert lengths[1] < lengths[0]


def test_a_longer_gradient_is_shortened_to_the_length_asked_for(data: CellData, spec: ModelSpec) -> None:
    parts = first_parts(data, 1)
    length = torch.stack([value.norm() for value in gradients(spec, parts).values()]).norm().item()
    for longest in (length / 3, length * 3):
        module, before = spec.build(), spec.build()
        step_with(module, descent(module, 1.0), parts, gradient_clip_val=longest)
        moved = [(new - old).norm() for new, old in zip(module.parameters(), before.parameters(), strict=True)]
        assert torch.stack(moved).norm().item() == pytest.approx(min(length, longest), rel=1e-3)


def test_the_optimizer_is_the_one_named_with_its_settings(spec: ModelSpec) -> None:
    for name, kind in (("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW)):
        settings = TrainConfig.model_validate({"optimizer": name, "lr": 0.1, "eps": 0.2, "weight_decay": 0.3})
        optimizer = make_optimizer(spec.build(), settings)
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert (group["lr"], group["eps"], group["weight_decay"]) == (0.1, 0.2, 0.3)


def test_the_noise_of_labelled_cells_is_their_own(few_labels: CellData) -> None:
    ((minibatch, labelled),) = first_parts(few_labels, 1, labels=True)
    same = replace(labelled, epoch=minibatch.epoch, step=minibatch.step)
    drawn = [noise_of(part).normal(torch.zeros(part.n_cells, 4))[:8] for part in (minibatch, same)]
    assert not torch.isclose(*drawn).any()


def test_weights_that_are_not_finite_are_refused_by_name(spec: ModelSpec) -> None:
    module = spec.build()
    check_weights(module, 3)
    with torch.no_grad():
        module.z_encoder.mean_encoder.bias[2] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 3 left .* not finite \(z_encoder\.mean_encoder\.bias\)"):
        check_weights(module, 3)


def test_one_worker_needs_no_averaging(spec: ModelSpec) -> None:
    module = spec.build()
    assert average_gradients(module, World(), TrainConfig.model_validate({"gradient_compression": "bf16"})) is module


def test_what_a_worker_asks_is_told_with_the_step(data: CellData, spec: ModelSpec) -> None:
    module, part = spec.build().train(), first_parts(data, 1)[0]
    given = {"seed": 0, "kl_weight": 0.5, "world": World()}
    for asked in ((0.0, 0.0), (1.0, 0.0), (0.0, 2.0)):
        step = take_step(module, module, descent(module, 0.0), *part, TrainConfig(), **given, requests=asked)
        assert step.requests.dtype == torch.float64
        assert step.requests.tolist() == list(asked)
        assert step.sums[3].item() == part[0].n_cells


@pytest.fixture(scope="module")
def every_column(adata: ad.AnnData) -> CellData:
    """Cells of which all columns that a minibatch may have are known; every twentieth has a label."""
    adata = adata.copy()
    label = adata.obs["label"].astype(str).to_numpy()
    adata.obs["label"] = np.where(np.arange(len(label)) % 20 == 0, label, "unknown")
    adata.obs["size"] = np.linspace(0.5, 2, len(label), dtype=np.float32)
    return open_data(
        adata,
        batch_key="batch",
        labels_key="label",
        unlabeled_category="unknown",
        size_factor_key="size",
        categorical_covariate_keys=["site"],
        continuous_covariate_keys=["age"],
    )


@pytest.mark.parametrize(("name", "rows"), [("SCVI", 1 << 14), ("SCANVI", 1 << 14), ("SCANVI", 1)])
def test_a_step_computed_in_parts_is_the_step_computed_at_once(
    every_column: CellData, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    """Also if labelled cells are fewer than parts, and where SCANVI computes again going backward."""
    monkeypatch.setattr(scanvae, "_ROWS_AT_ONCE", rows)
    options = {"dispersion": "gene-label"} if name == "SCANVI" else {"encode_covariates": True}
    spec = spec_of(ModelConfig.model_validate({"model_name": name, "n_hidden": 16, **options}), 0, every_column)
    parts, taken = first_parts(every_column, 1, labels=name == "SCANVI"), []
    for n_parts in (1, 2, 3, 99):
        module, passes = spec.build(), []
        module.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        step = step_with(module, descent(module, 0.1), parts, gradient_accumulation_steps=n_parts)
        taken.append((step, module.state_dict()))
        assert len(passes) == min(n_parts, len(parts[0][0].micro_n))
        assert all(not norm.sums for norm in module.norms())
    (step, weights), *others = taken
    for other, state in others:
        torch.testing.assert_close(other.sums, step.sums, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.loss_n, step.loss_n, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(other.row_n, step.row_n)
        for key, value in weights.items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-4, msg=key)


def test_parts_hold_less_for_the_backward_pass(data: CellData) -> None:
    ((minibatch, _),), peaks = first_parts(data, 1), []
    for n_parts in (1, 4):
        open_run_for_writing = Held()
        module = spec_of(ModelConfig(n_hidden=4), 0, data).build()
        with torch.autograd.graph.saved_tensors_hooks(open_run_for_writing.keep, lambda kept: kept.tensor):
            step_with(module, descent(module, 0.1), [(minibatch, None)], gradient_accumulation_steps=n_parts)
        peaks.append(open_run_for_writing.most)
    assert peaks[1] < 0.4 * peaks[0]


class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Held:
    """Counts the bytes that autograd keeps at the same time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def keep(self, tensor: torch.Tensor) -> Kept:
        kept = Kept(tensor.detach())
        self._add(tensor.nbytes)
        weakref.finalize(kept, self._add, -tensor.nbytes)
        return kept

    def _add(self, n_bytes: int) -> None:
        self.now += n_bytes
        self.most = max(self.most, self.now)


def test_all_cells_normalised_together_and_in_parts_are_refused() -> None:
    for fine in ({"batch_norm": "global"}, {"gradient_accumulation_steps": 2}):
        TrainConfig.model_validate(fine)
    with pytest.raises(ValueError, match=r"batch_norm='global' .* gradient_accumulation_steps=2"):
        TrainConfig.model_validate({"batch_norm": "global", "gradient_accumulation_steps": 2})


@pytest.mark.parametrize("labels", [False, True])
def test_all_cells_normalised_together_are_a_single_micro_minibatch(few_labels: CellData, labels: bool) -> None:
    spec = scanvi(few_labels, dropout_rate=0.0) if labels else spec_of(ModelConfig(dropout_rate=0.0), 0, few_labels)
    parts, module = first_parts(few_labels, 1, labels=labels), spec.build()
    step_with(module, descent(module, 0.0), parts, batch_norm="global")
    layer, norm = module.z_encoder.encoder.fc_layers[0].children()
    last = [part for part in parts[0] if part][-1]
    hidden = layer(torch.log1p(last.to("cpu").counts_ng)).detach()
    before = (0.0, 1.0)
    if labels:
        first = layer(torch.log1p(parts[0][0].to("cpu").counts_ng)).detach()
        before = (0.01 * first.mean(0), 0.99 + 0.01 * first.var(0))
    torch.testing.assert_close(norm.running_mean, 0.99 * before[0] + 0.01 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var, 0.99 * before[1] + 0.01 * hidden.var(0), rtol=1e-4, atol=0)
    assert {norm.world for norm in module.norms()} == {None}
