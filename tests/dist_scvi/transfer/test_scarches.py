"""Surgery: the reference stays what it was, what belongs to the query is trained, and nothing else moves."""

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders import CellData
from dist_scvi.loaders.data import open_data
from dist_scvi.loaders.library_prior import library_prior
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.loss_terms import Labelled
from dist_scvi.network.model_files import load_model, save_model
from dist_scvi.network.model_spec import ModelSpec, spec_of
from dist_scvi.network.noise import step_noise
from dist_scvi.network.vae import VAE
from dist_scvi.transfer.query_data import prepare_query_data
from dist_scvi.transfer.scarches import extend, freeze, load_query, query_spec

BATCH = {"batch_key": "batch"}
ALL = BATCH | {"categorical_covariate_keys": ["site", "kit"], "continuous_covariate_keys": ["age"]}
LABELS = ALL | {"labels_key": "label", "unlabeled_category": "?"}
CASES = {
    "one-hot": ({}, BATCH),
    "covariates": ({}, ALL),
    "embedding": ({"batch_representation": "embedding"}, ALL),
    "encoded embedding": ({"batch_representation": "embedding", "encode_covariates": True}, BATCH),
    "gene-batch": ({"dispersion": "gene-batch"}, ALL),
    "gene-label": ({"dispersion": "gene-label"}, ALL | {"labels_key": "label"}),
    "encoded": ({"encode_covariates": True, "n_layers": 2}, ALL),
    "shallow": ({"encode_covariates": True, "n_layers": 2, "deeply_inject_covariates": False}, ALL),
    "layer norm": ({"encode_covariates": True, "use_batch_norm": "none", "use_layer_norm": "both"}, ALL),
    "latent library": ({"encode_covariates": True, "use_observed_lib_size": False}, ALL),
    "SCANVI": ({"model_name": "SCANVI"}, LABELS),
    "SCANVI, encoded": ({"model_name": "SCANVI", "encode_covariates": True, "n_layers": 2}, LABELS),
    "SCANVI, gene-label": ({"model_name": "SCANVI", "dispersion": "gene-label"}, LABELS),
    "LinearSCVI": ({"model_name": "LinearSCVI", "use_observed_lib_size": True}, BATCH),
}
# What a test is not about: most of these models do not encode covariates, and of that `load_query` warns.
latent_stays = pytest.mark.filterwarnings("ignore:training on the query will not change:UserWarning")


@pytest.fixture(scope="module")
def cells(adata: ad.AnnData) -> ad.AnnData:
    cells = adata.copy()
    cells.obs["kit"] = "k1"
    return cells


@pytest.fixture(scope="module")
def query(cells: ad.AnnData) -> ad.AnnData:
    """Cells of which half are of a new batch, site and kit; two of the names sort before those of the reference."""
    query = cells[:150].copy()
    new = np.arange(150) % 2 == 0
    for key, name in {"batch": "a9", "site": "m", "kit": "k2"}.items():
        query.obs[key] = np.where(new, name, query.obs[key].astype(str))
    query.X = query.X * 2
    return query


class Reference:
    """A network with covariates, whose every weight is off its start."""

    def __init__(self, cells: ad.AnnData, query: ad.AnnData, options: dict, keys: dict) -> None:
        self.data, self.query = open_data(cells, **keys), query
        self.spec: ModelSpec = spec_of(ModelConfig(n_hidden=16, n_latent=4, **options), 1, self.data)
        self.data = fit_to_spec(self.data, self.spec)
        self.module = self.spec.build().eval()
        generator = torch.Generator().manual_seed(2)
        for name, value in self.module.state_dict().items():
            if value.is_floating_point() and name != "y_prior":
                value.add_(0.1 * torch.rand(value.shape, generator=generator))

    def load(self, query: ad.AnnData | None = None, seed: int = 5, **flags: bool) -> tuple[VAE, ModelSpec, CellData]:
        data = prepare_query_data(self.query if query is None else query, self.spec)
        return load_query(self.module, self.spec, data, seed=seed, **flags)


Make = Callable[[str], Reference]


@pytest.fixture(scope="module")
def reference(cells: ad.AnnData, query: ad.AnnData) -> Make:
    return lambda name: Reference(cells, query, *CASES[name])


@torch.no_grad()
def answers(module: VAE, data: CellData) -> dict[str, torch.Tensor]:
    """Give all that a network says of 100 cells."""
    cells = rows_minibatch(data, np.arange(100)).to("cpu")
    found = dict(zip(("qzm", "qzv"), module.encode(cells), strict=True))
    library_n = cells.library_n
    if module.latent_library:
        found |= dict(zip(("qlm", "qlv"), module.encode_library(cells), strict=True))
        found |= dict(zip(("prior_mean", "prior_var"), module.library_prior(cells.covariates.batch_n), strict=True))
    z_nk = module.latent(found["qzm"])
    px = module.decode(z_nk, library_n, cells.covariates)
    found |= {"scale": px.scale_ng, "rate": px.rate_ng, "theta": px.theta_ng}
    if px.zi_logits_ng is not None:
        found["zi"] = px.zi_logits_ng
    if hasattr(module, "probabilities"):
        found["label"] = module.probabilities(z_nk)
        found["label terms"] = torch.cat(module._over_labels(z_nk, (100,), step_noise(0, 0, 0, (0,), (100,), "cpu")))
    return found


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> set[str]:
    assert left.keys() == right.keys()
    return {name for name in left if not torch.equal(left[name], right[name])}


def train(module: VAE, data: CellData, n_steps: int = 3) -> None:
    """Take steps as `dist_scvi.training.step` does, with a weight decay that moves whatever may be moved."""
    module.train()
    moving = {name: value for name, value in module.named_parameters() if value.requires_grad}
    optimizer = torch.optim.Adam(moving.values(), lr=0.01, weight_decay=0.1)
    minibatch, sizes = rows_minibatch(data, np.arange(data.n_cells)), (data.n_cells,)
    for step in range(n_steps):
        noise, again = (step_noise(0, 0, step, (key,), sizes, torch.device("cpu")) for key in (0, 1))
        cells = minibatch.to("cpu")
        labelled = Labelled(cells, sizes, again) if hasattr(module, "classifier") else None
        terms = module(cells, sizes, noise, labelled)
        loss = (terms.reconstruction_n + terms.latent_n + terms.kl_n + terms.kl_library_n).mean()
        if terms.logits_ml is not None:
            loss = loss + torch.logsumexp(terms.logits_ml, 1).mean()
        optimizer.zero_grad()
        loss.backward()
        before = {name: moving[name].detach().clone() for name in module.frozen}
        optimizer.step()
        with torch.no_grad():
            for name, mask in module.frozen.items():
                moving[name][mask] = before[name][mask]
        for norm in module.norms():
            for sums in norm.sums:
                norm.update(sums, data.n_cells)
            norm.sums.clear()
    module.eval()


def trained(module: VAE) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def copied(module: VAE) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@latent_stays
@pytest.mark.parametrize("name", CASES)
def test_an_extended_network_says_of_the_reference_what_the_reference_said(reference: Make, name: str) -> None:
    known = reference(name)
    extended, spec, _ = known.load()
    assert differing(answers(known.module, known.data), answers(extended, fit_to_spec(known.data, spec))) == set()
    assert extended.n_batch == known.module.n_batch + 1
    assert not extended.training


@latent_stays
@pytest.mark.parametrize("name", CASES)
def test_training_on_the_query_leaves_the_reference_bit_for_bit_as_it_was(reference: Make, name: str) -> None:
    known = reference(name)
    extended, spec, data = known.load(freeze_batchnorm_decoder=True)
    at_first, before = answers(extended, data), answers(extended, fit_to_spec(known.data, spec))
    train(extended, data)
    trained_whole = {"qlm", "qlv"} if extended.latent_library else set()  # the library encoder, as in scvi-tools
    assert differing(before, answers(extended, fit_to_spec(known.data, spec))) == trained_whole
    assert {"scale", "rate"} <= differing(at_first, answers(extended, data))
    assert ("qzm" in differing(at_first, answers(extended, data))) == known.spec.model.encode_covariates


def test_only_the_columns_of_new_categories_and_the_norms_of_the_decoder_move(reference: Make) -> None:
    extended, _, data = reference("encoded").load()
    before = copied(extended)
    train(extended, data)
    moved = {name: value != before[name] for name, value in extended.state_dict().items()}
    columns = {name: mask.any(0).nonzero()[:, 0].tolist() for name, mask in moved.items() if mask.ndim == 2}
    # [input | b0 b1 a9 | x y z m | k1 k2], where the input of a first layer ends with the age
    assert {name: found for name, found in columns.items() if found} == {
        f"{part}.fc_layers.Layer {layer}.0.weight": [n_x + 2, n_x + 3 + 3, n_x + 3 + 4 + 1]
        for part, layer, n_x in [
            ("z_encoder.encoder", 0, 51),
            ("z_encoder.encoder", 1, 16),
            ("decoder.px_decoder", 0, 5),
            ("decoder.px_decoder", 1, 16),
        ]
    }
    assert {name for name, mask in moved.items() if mask.ndim < 2 and mask.any()} == {
        f"decoder.px_decoder.fc_layers.Layer {layer}.1.{name}"
        for layer in (0, 1)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


@latent_stays
def test_embeddings_and_dispersions_of_new_batches_move_and_the_others_stay(reference: Make) -> None:
    for name, weight, axis in [("embedding", "_embeddings_dict.batch.weight", 1), ("gene-batch", "px_r", 0)]:
        extended, _, data = reference(name).load()
        before = copied(extended)[weight]
        train(extended, data)
        assert (extended.state_dict()[weight] != before).all(axis).tolist() == [False, False, True]
        assert (extended.state_dict()[weight] != before).any(axis).tolist() == [False, False, True]


def test_categories_of_the_reference_are_trained_where_that_is_asked_for(reference: Make) -> None:
    extended, _, data = reference("encoded").load(freeze_reference_categories=False)
    name = "z_encoder.encoder.fc_layers.Layer 0.0.weight"
    before = copied(extended)[name]
    train(extended, data)
    moved = (extended.state_dict()[name] != before).any(0)
    assert moved.nonzero()[:, 0].tolist() == list(range(51, 60))


def both(*paths: str) -> set[str]:
    return {f"{path}.{name}" for path in paths for name in ("weight", "bias")}


Z_FIRST = "z_encoder.encoder.fc_layers.Layer 0"
PX_FIRST = "decoder.px_decoder.fc_layers.Layer 0"
DECODER_NORMS = both(f"{PX_FIRST}.1", "decoder_z1_z2.decoder.fc_layers.Layer 0.1")
ENCODER_NORMS = both(f"{Z_FIRST}.1", "encoder_z2_z1.encoder.fc_layers.Layer 0.1")
CLASSIFIER = both(*(f"classifier.classifier.{at}" for at in ("0.fc_layers.Layer 0.0", "0.fc_layers.Layer 0.1", "1")))
MASKED = {f"{PX_FIRST}.0.weight"}


@latent_stays
@pytest.mark.parametrize(
    ("flags", "added", "left_out", "masked"),
    [
        ({}, set(), set(), MASKED),
        ({"freeze_dropout": True}, set(), set(), MASKED),
        ({"freeze_batchnorm_encoder": False}, ENCODER_NORMS, set(), MASKED),
        ({"freeze_batchnorm_decoder": True}, set(), DECODER_NORMS, MASKED),
        ({"freeze_expression": False}, both(f"{Z_FIRST}.0"), set(), MASKED),
        ({"freeze_decoder_first_layer": False}, {f"{PX_FIRST}.0.bias"}, set(), set()),
        ({"freeze_classifier": False}, CLASSIFIER, set(), MASKED),
    ],
    ids=lambda value: next(iter(value), "default") if isinstance(value, dict) else "",
)
def test_each_choice_frees_what_it_names(reference: Make, flags: dict, added: set, left_out: set, masked: set) -> None:
    extended, _, _ = reference("SCANVI").load(**flags)
    assert trained(extended) == (MASKED | DECODER_NORMS | added) - left_out
    assert extended.frozen.keys() == masked


def test_an_unfrozen_network_trains_what_a_new_one_trains(reference: Make) -> None:
    for name in ("SCANVI", "latent library"):
        extended, spec, _ = reference(name).load(unfrozen=True)
        assert trained(extended) == trained(spec.build())
        assert extended.frozen == {}


def test_the_library_encoder_is_trained_whole_where_it_is_used(reference: Make) -> None:
    for name, used in [("latent library", True), ("encoded", False)]:
        extended, _, _ = reference(name).load()
        assert {parameter.requires_grad for parameter in extended.l_encoder.parameters()} == {used}


@latent_stays
@pytest.mark.parametrize(
    ("flags", "moving"),
    [
        ({}, {"decoder", "decoder_z1_z2"}),
        ({"freeze_batchnorm_decoder": True}, set()),
        ({"freeze_batchnorm_encoder": False}, {"decoder", "decoder_z1_z2", "z_encoder", "encoder_z2_z1"}),
        ({"freeze_classifier": False}, {"decoder", "decoder_z1_z2", "classifier"}),
    ],
)
def test_running_statistics_move_only_in_parts_that_are_not_frozen(reference: Make, flags: dict, moving: set) -> None:
    extended, _, data = reference("SCANVI").load(**flags)
    before = copied(extended)
    train(extended, data)
    after = extended.state_dict()
    assert {name.split(".")[0] for name in differing(before, after) if "running" in name} == moving


@latent_stays
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_dropout_drops_nothing_in_training(reference: Make, frozen: bool) -> None:
    extended, _, data = reference("one-hot").load(freeze_dropout=frozen)
    extended.train()
    noises = [step_noise(0, 0, step, (0,), (50,), torch.device("cpu")) for step in (0, 1)]
    cells_ = rows_minibatch(data, np.arange(50)).to("cpu")
    first, second = (extended.encode(cells_, (50,), noise)[0] for noise in noises)
    assert torch.equal(first, second) == frozen


def test_new_weights_are_those_of_the_untrained_network_and_depend_on_the_seed(reference: Make) -> None:
    known = reference("encoded")
    (first, spec, _), (second, _, _) = known.load(), known.load(seed=6)
    fresh = spec.build().state_dict()
    name = "decoder.px_decoder.fc_layers.Layer 1.0.weight"
    new = [16 + 2, 16 + 3 + 3, 16 + 3 + 4 + 1]
    assert torch.equal(first.state_dict()[name][:, new], fresh[name][:, new])
    apart = (first.state_dict()[name] != second.state_dict()[name]).any(0)
    assert apart.nonzero()[:, 0].tolist() == new


def test_the_reference_is_left_as_it_is(reference: Make) -> None:
    known = reference("encoded")
    before = copied(known.module)
    extended, _, data = known.load()
    train(extended, data)
    assert differing(before, known.module.state_dict()) == set()
    assert known.module.frozen == {}
    assert known.spec.lineage == {}


def test_the_library_prior_is_that_of_the_reference_and_of_new_batches_that_of_the_query(reference: Make) -> None:
    known = reference("latent library")
    extended, spec, data = known.load()
    for name, expected_b in zip(("library_log_means", "library_log_vars"), library_prior(data), strict=True):
        found_b = extended.get_buffer(name)[0]
        assert torch.equal(found_b[:2], known.module.get_buffer(name)[0])
        assert found_b[2] == expected_b[2]
    without = extend(known.module, spec)
    assert (without.library_log_means[0, 2], without.library_log_vars[0, 2]) == (0, 1)


def test_new_categories_are_appended_in_sorted_order(reference: Make, query: ad.AnnData) -> None:
    more = query.copy()
    more.obs["batch"] = [*"zyxwvuts", *query.obs["batch"][8:]]
    known = reference("covariates")
    spec = query_spec(known.spec, prepare_query_data(more, known.spec), seed=8)
    assert spec.batch is not None
    assert spec.batch.categories == ("b0", "b1", "a9", *"stuvwxyz")
    assert [covariate.categories for covariate in spec.categorical_covariates] == [("x", "y", "z", "m"), ("k1", "k2")]
    assert spec.seed == 8
    was = {"model_name": "SCVI", "seed": 1, "n_batch": 2, "n_labels": 1, "n_cats_per_cov": [3, 1], "lineage": {}}
    assert spec.lineage["reference"] == was


@latent_stays
def test_labels_that_scanvi_does_not_know_are_refused(reference: Make, query: ad.AnnData) -> None:
    known = reference("SCANVI")
    other = query.copy()
    label = np.where(np.arange(150) < 3, "mast", query.obs["label"].astype(str))
    other.obs["label"] = label
    with pytest.raises(ValueError, match=r"'label' has 1 labels that the reference does not know \(mast\).* to '\?'"):
        known.load(other)
    other.obs["label"] = np.where(label == "mast", "?", label)
    _, _, data = known.load(other)
    assert (rows_minibatch(data, np.arange(6)).label_n < 0).tolist() == [True] * 3 + [False] * 3


@latent_stays
def test_labels_of_a_dispersion_by_label_are_extended(reference: Make, query: ad.AnnData) -> None:
    known = reference("gene-label")
    other = query.copy()
    other.obs["label"] = np.where(np.arange(150) < 30, "A", query.obs["label"].astype(str))
    extended, spec, data = known.load(other)
    assert spec.label is not None
    assert spec.label.categories == ("B", "NK", "T", "A")
    before = copied(extended)["px_r"]
    train(extended, data)
    assert (extended.px_r != before).any(0).tolist() == [False, False, False, True]


def test_a_query_that_is_read_back_is_frozen_as_it_was(reference: Make, tmp_path: Path) -> None:
    extended, spec, _ = reference("encoded").load(freeze_dropout=True, freeze_batchnorm_decoder=True)
    save_model(tmp_path / "model", extended, spec)
    read, read_spec = load_model(tmp_path / "model")
    assert trained(read) == trained(spec.build())
    freeze(read, read_spec)
    assert differing(extended.frozen, read.frozen) == set()
    assert trained(read) == trained(extended)
    assert [norm.momentum for norm in read.norms()] == [norm.momentum for norm in extended.norms()]
    assert read.z_encoder.encoder.dropout_rate == 0


def test_a_query_can_be_the_reference_of_another(reference: Make, query: ad.AnnData) -> None:
    known = reference("encoded")
    extended, spec, data = known.load()
    other = query.copy()
    other.obs["batch"] = "c"
    last, last_spec, _ = load_query(extended, spec, prepare_query_data(other, spec), seed=7)
    assert differing(answers(extended, data), answers(last, fit_to_spec(data, last_spec))) == set()
    assert last_spec.lineage["reference"]["lineage"] == spec.lineage
    assert last.frozen["z_encoder.encoder.fc_layers.Layer 0.0.weight"].all(0).tolist().count(False) == 1


def test_freezing_leaves_the_network_of_a_model_that_is_no_query_alone(reference: Make) -> None:
    known = reference("one-hot")
    freeze(known.module, known.spec)
    assert known.module.frozen == {}
    assert trained(known.module) == trained(known.spec.build())


def test_it_is_told_when_the_latent_representation_cannot_change(reference: Make, cells: ad.AnnData) -> None:
    known = reference("covariates")
    with pytest.warns(UserWarning, match=r"will not change its latent .* encode_covariates=False: train it with True"):
        known.load()
    for flags in ({"freeze_expression": False}, {"unfrozen": True}, {"freeze_batchnorm_encoder": False}):
        known.load(**flags)
    encoded = reference("encoded")
    with pytest.warns(UserWarning, match=r"no batch or covariate that is new: give freeze_reference_categories=False"):
        encoded.load(cells)
    encoded.load(cells, freeze_reference_categories=False)
    reference("encoded embedding").load()
