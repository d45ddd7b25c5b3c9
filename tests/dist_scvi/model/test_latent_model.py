"""What the encoder says of cells is the same in any company, on any number of workers, in memory and on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.inference import posterior
from dist_scvi.loaders import CellData, open_data
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.model import latent_model
from dist_scvi.model.likelihood_model import LikelihoodModel
from dist_scvi.network.model_spec import spec_of
from tests.dist_scvi.golden import Golden, needs_golden
from tests.dist_scvi.workers import together

pytestmark = pytest.mark.filterwarnings("ignore:Trying to query inferred values:UserWarning")

N = 403
ROWS = np.array([7, 3, 402, 3])


class Plain(LikelihoodModel):
    model_name = "SCVI"


class WithLabels(LikelihoodModel):
    model_name = "SCANVI"


def made(adata: Any, *, held: Any = None, **options: Any) -> LikelihoodModel:
    data = adata if isinstance(adata, CellData) else open_data(adata, batch_key="batch", labels_key="label")
    spec = spec_of(ModelConfig(**({"n_hidden": 8, "n_latent": 3} | options)), 1, data)
    kind = WithLabels if spec.model.model_name == "SCANVI" else Plain
    return kind._made(data, spec.build(), spec, adata=held)


def on(model: LikelihoodModel, world: Any) -> LikelihoodModel:
    return model._made(model.data, model.module, model.spec, world=world)


@pytest.fixture(scope="module")
def model(adata: Any) -> LikelihoodModel:
    return made(adata)


@torch.no_grad()
def moments(model: LikelihoodModel) -> tuple[np.ndarray, np.ndarray]:
    qzm, qzv = model.module.encode(rows_minibatch(model.data, np.arange(N)).to(model.device))
    return qzm.cpu().numpy(), qzv.cpu().numpy()


def test_the_latent_representation_is_the_posterior_of_the_encoder(model: LikelihoodModel) -> None:
    qzm, qzv = moments(model)
    np.testing.assert_allclose(model.get_latent_representation(), qzm, rtol=1e-4, atol=1e-6)
    found = model.get_latent_representation(indices=ROWS, return_dist=True)
    np.testing.assert_allclose(found[0], qzm[ROWS], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], qzv[ROWS], rtol=1e-4)


def test_draws_of_the_posterior_have_its_mean_and_variance_and_a_seed(model: LikelihoodModel) -> None:
    qzm, qzv = moments(model)
    drawn = np.stack([model.get_latent_representation(give_mean=False, seed=seed) for seed in range(40)])
    standard = (drawn - qzm) / np.sqrt(qzv)
    assert abs(standard.mean()) < 0.02
    assert abs(standard.std() - 1) < 0.02
    np.testing.assert_array_equal(model.get_latent_representation(give_mean=False, seed=3), drawn[3])


def test_a_logistic_normal_is_given_as_shares_or_as_moments_before_the_softmax(adata: Any) -> None:
    model = made(adata, latent_distribution="ln")
    qzm, qzv = moments(model)
    mean = model.get_latent_representation(mc_samples=4000)
    drawn = np.stack([model.get_latent_representation(give_mean=False, seed=seed) for seed in range(200)])
    np.testing.assert_allclose(mean.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(drawn.mean((0, 1)), mean.mean(0), atol=0.005)
    np.testing.assert_allclose(mean, drawn.mean(0), atol=0.09)
    found = model.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(found[0], qzm, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], qzv, rtol=1e-4)


QUESTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "mean": (LikelihoodModel.get_latent_representation, {}, "obsm/X_latent"),
    "draw": (LikelihoodModel.get_latent_representation, {"give_mean": False}, "obsm/X_latent"),
    "moments": (LikelihoodModel.get_latent_representation, {"return_dist": True}, "obsm/scvi_latent_qzm"),
    "elbo": (LikelihoodModel.get_elbo, {"return_mean": False}, "obs/elbo"),
    "error": (LikelihoodModel.get_reconstruction_error, {"return_mean": False}, "obs/reconstruction_loss"),
    "marginal": (
        LikelihoodModel.get_marginal_ll,
        {"return_mean": False, "n_mc_samples": 3, "n_mc_samples_per_pass": 2},
        "obs/marginal_ll",
    ),
    "library": (LikelihoodModel.get_latent_library_size, {}, "obs/latent_library_size"),
    "drawn library": (LikelihoodModel.get_latent_library_size, {"give_mean": False}, "obs/latent_library_size"),
    "batch": (LikelihoodModel.get_batch_representation, {}, "obsm/X_batch"),
}


def array_of(answer: Any) -> np.ndarray:
    if isinstance(answer, tuple):
        answer = answer[0]
    return np.asarray(answer["reconstruction_loss"] if isinstance(answer, dict) else answer)


@pytest.mark.parametrize("model_name", ["SCVI", "SCANVI"])
@pytest.mark.parametrize("identity", QUESTIONS)
def test_an_answer_does_not_depend_on_chunks_workers_or_company(
    adata: Any, tmp_path: Path, identity: str, model_name: str
) -> None:
    ask, options, place = QUESTIONS[identity]
    kind = {"model_name": model_name, "use_observed_lib_size": False, "batch_representation": "embedding"}
    model = made(adata, **kind)
    whole = array_of(ask(model, **options))
    assert len(whole) == N
    assert np.isfinite(whole).all()
    close = {"rtol": 1e-4, "atol": 1e-5}
    for found, expected in (
        (ask(model, batch_size=7, **options), whole),
        (ask(model, batch_size=1000, **options), whole),
        (ask(model, indices=ROWS, **options), whole[ROWS]),
        (ask(model, indices={"label": "NK"}, **options), whole[(adata.obs["label"] == "NK").to_numpy()]),
        (ask(model, model.data, np.arange(N) == 4, **options), whole[4:5]),
    ):
        np.testing.assert_allclose(array_of(found), expected, **close)
    for found in together(2, lambda world: ask(on(model, world), batch_size=50, **options)):
        np.testing.assert_allclose(array_of(found), whole, **close)
    group = ask(model, indices=np.arange(5, N, 2), out=tmp_path / "out.zarr", batch_size=50, **options)
    np.testing.assert_allclose(group[place][:], whole[5::2].squeeze(), **close)
    np.testing.assert_array_equal(ad.read_zarr(tmp_path / "out.zarr").obs["source_row"], np.arange(5, N, 2))


def test_noise_has_a_seed_in_every_question_that_draws(adata: Any) -> None:
    model = made(adata, use_observed_lib_size=False)
    for identity in ("draw", "elbo", "error", "marginal", "drawn library"):
        ask, options, _ = QUESTIONS[identity]
        first, same, other = (array_of(ask(model, indices=[5, 6], seed=seed, **options)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, same)
        assert not np.isclose(first, other, rtol=1e-7).all()


@pytest.mark.parametrize("identity", ["elbo", "error", "marginal"])
def test_the_mean_is_that_of_the_cells_asked_for(model: LikelihoodModel, identity: str) -> None:
    ask, options, _ = QUESTIONS[identity]
    each = array_of(ask(model, indices=ROWS, **options))
    mean = ask(model, indices=ROWS, **(options | {"return_mean": True, "batch_size": 2}))
    np.testing.assert_allclose(array_of(mean), each.astype(float).mean(), rtol=1e-5)
    assert isinstance(mean["reconstruction_loss"] if identity == "error" else mean, float)


def test_other_data_may_be_asked_about(model: LikelihoodModel, adata: Any) -> None:
    other = adata[::-1].copy()
    np.testing.assert_allclose(
        model.get_latent_representation(other)[::-1], model.get_latent_representation(), rtol=1e-4
    )


def test_the_library_size_is_latent_or_observed(adata: Any) -> None:
    observed, latent = made(adata), made(adata, use_observed_lib_size=False)
    total = np.asarray(adata.X.sum(1), dtype=np.float32)
    np.testing.assert_array_equal(observed.get_latent_library_size(give_mean=False), total)
    with pytest.raises(ValueError, match="observed library size: give_mean=False gives it"):
        observed.get_latent_library_size()
    drawn = np.mean([latent.get_latent_library_size(give_mean=False, seed=seed) for seed in range(300)], axis=0)
    mean = latent.get_latent_library_size()
    assert mean.shape == (N, 1)
    np.testing.assert_allclose(drawn.mean() / mean.mean(), 1, atol=0.05)


def test_the_batch_is_represented_by_its_embedding(adata: Any, model: LikelihoodModel) -> None:
    embedded = made(adata, batch_representation="embedding", embedding_dim=2)
    weight = embedded.module.state_dict()["_embeddings_dict.batch.weight"].cpu().numpy()
    code = (adata.obs["batch"] == "b1").to_numpy().astype(int)
    np.testing.assert_array_equal(embedded.get_batch_representation(), weight[code])
    with pytest.raises(ValueError, match="batch_representation='embedding'"):
        model.get_batch_representation()


def test_the_aggregated_posterior_mixes_those_of_the_cells_asked_for(model: LikelihoodModel) -> None:
    qzm, qzv = (torch.from_numpy(moment).to(model.device) for moment in moments(model))
    point = qzm[:20]
    for dof in (3.0, None):
        plain = posterior.AggregatedPosterior(qzm[ROWS], qzv[ROWS], dof)
        found = model.get_aggregated_posterior(indices=ROWS, batch_size=2, dof=dof).log_prob(point)
        torch.testing.assert_close(found, plain.log_prob(point), rtol=1e-4, atol=1e-5)
    student = model.get_aggregated_posterior(indices=ROWS).log_prob(point)
    torch.testing.assert_close(student, model.get_aggregated_posterior(indices=ROWS, dof=3.0).log_prob(point))
    wrong = model.get_aggregated_posterior(indices=ROWS, variance_as_scale=True).log_prob(point)
    assert not torch.allclose(wrong, student)


def test_abundance_is_the_density_under_the_posterior_of_each_sample(adata: Any, tmp_path: Path) -> None:
    held = adata.copy()
    model = made(held, held=held)
    table = model.differential_abundance(sample_key="site")
    assert list(table.columns) == ["x", "y", "z"]
    z = torch.from_numpy(model.get_latent_representation()).to(model.device)
    for site in "xyz":
        mixed = model.get_aggregated_posterior(indices={"site": site}, dof=None)
        np.testing.assert_allclose(table[site], mixed.log_prob(z).cpu(), rtol=1e-4)
    np.testing.assert_array_equal(held.obsm["da_log_probs"], table)
    np.testing.assert_array_equal(table.index, adata.obs_names)
    written = model.differential_abundance(sample_key="site", out=tmp_path / "da.zarr", batch_size=50)
    np.testing.assert_allclose(written["X"][:], table, rtol=1e-4)
    assert list(ad.read_zarr(tmp_path / "da.zarr").var_names) == ["x", "y", "z"]
    for found in together(2, lambda world: on(model, world).differential_abundance(sample_key="site")):
        np.testing.assert_allclose(found, table, rtol=1e-4)


def test_abundance_mixes_as_many_cells_as_allowed_and_leaves_a_store_alone(
    adata: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(adata)
    mixed: list[int] = []

    class Counted(posterior.AggregatedPosterior):
        def __init__(self, qzm_nk: torch.Tensor, *rest: Any, **options: Any) -> None:
            super().__init__(qzm_nk, *rest, **options)
            mixed.append(len(qzm_nk))

    monkeypatch.setattr(latent_model, "AggregatedPosterior", Counted)
    model.differential_abundance(str(store), "site", num_cells_posterior=5)
    assert mixed == [5, 5, 5]
    some, same, other = (
        model.differential_abundance(str(store), "site", num_cells_posterior=5, seed=seed, dof=3.0)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(some, same)
    assert not np.allclose(some, other)
    everyone = model.differential_abundance(str(store), "site", num_cells_posterior=1000, dof=3.0)
    np.testing.assert_array_equal(everyone, model.differential_abundance(str(store), "site", dof=3.0))
    assert "da_log_probs" not in adata.obsm


@pytest.mark.parametrize(
    ("ask", "options", "message"),
    [
        ("get_latent_representation", {"mc_samples": 0}, "mc_samples=0: a whole number from 1"),
        ("get_latent_representation", {"batch_size": 0}, "batch_size=0: a whole number from 1"),
        ("get_latent_representation", {"indices": [403]}, "there are cells 0 to 402"),
        ("get_latent_representation", {"indices": [2, 1], "out": "out.zarr"}, "sort indices, or leave out away"),
        ("get_elbo", {"batch_size": -1}, "batch_size=-1"),
        ("get_elbo", {"out": "out.zarr"}, "give return_mean=False with it"),
        ("get_marginal_ll", {"n_mc_samples": 0}, "n_mc_samples=0"),
        ("get_marginal_ll", {"n_mc_samples_per_pass": 0.5}, "n_mc_samples_per_pass=0.5"),
        ("get_marginal_ll", {"include_latent_terms": True}, "SCVI has no latent terms"),
        ("get_reconstruction_error", {"include_latent_terms": True}, "SCVI has no latent terms"),
        ("get_aggregated_posterior", {"dof": 0}, "dof=0: a number above 0"),
        ("differential_abundance", {}, "sample_key is needed"),
        ("differential_abundance", {"sample_key": "donor"}, "donor"),
        ("differential_abundance", {"sample_key": "site", "num_cells_posterior": 0}, "num_cells_posterior=0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    model: LikelihoodModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: str,
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        getattr(model, ask)(**options)
    assert not list(tmp_path.iterdir())


def trained(name: str) -> tuple[LikelihoodModel, dict[str, Any]]:
    """Give the trained model of a golden case, and what scvi-tools 1.4.2 said of it."""
    golden = Golden(name)
    stored = torch.load(golden.folder / "model.pt", weights_only=False)["model_state_dict"]
    module = golden.build()
    module.load_state_dict({key: stored[key] for key in module.state_dict()})
    kind = WithLabels if golden.spec.model.model_name == "SCANVI" else Plain
    return kind._made(golden.data, module, golden.spec), golden.arrays("outputs")


class TestAgainstScviTools:
    pytestmark = needs_golden

    @pytest.mark.parametrize("name", ["scvi_default", "scvi_gene_batch", "scvi_nb"])
    def test_bound_and_marginal_likelihood_agree_within_sampling_error(self, name: str) -> None:
        model, expected = trained(name)
        bound = np.mean([model.get_elbo(seed=seed) for seed in range(5)])
        np.testing.assert_allclose(bound, expected["elbo"], atol=0.3)
        each = model.get_marginal_ll(n_mc_samples=150, n_mc_samples_per_pass=10, return_mean=False)
        assert isinstance(each, np.ndarray)
        by_minibatch = np.mean([each[at : at + 128].mean() for at in range(0, 400, 128)])  # the mean it takes
        np.testing.assert_allclose(by_minibatch, expected["marginal_ll"], atol=0.8)

    def test_the_bound_with_a_latent_library_agrees_within_sampling_error(self) -> None:
        model, expected = trained("scvi_latent_library")
        bound = np.mean([model.get_elbo(seed=seed) for seed in range(10)])
        np.testing.assert_allclose(bound, expected["elbo"], rtol=0.01)
        library = model.get_latent_library_size()
        np.testing.assert_allclose(library.mean(), 4.541039, rtol=1e-6)  # get_latent_library_size

    def test_scanvi_agrees_where_it_is_asked_to(self) -> None:
        model, _ = trained("scanvi_default")
        errors = {
            terms: np.mean(
                [
                    model.get_reconstruction_error(include_latent_terms=terms, seed=s)["reconstruction_loss"]
                    for s in range(8)
                ]
            )
            for terms in (False, True)
        }
        np.testing.assert_allclose(errors[True], 318.894, atol=0.25)  # get_reconstruction_error, mean of 20
        assert errors[False] < errors[True] - 0.5
        options = {"n_mc_samples": 100, "n_mc_samples_per_pass": 20}
        theirs = model.get_marginal_ll(**options, include_latent_terms=True)
        np.testing.assert_allclose(theirs, -315.030, atol=1.0)  # get_marginal_ll, mean over the cells, 500 samples
        assert model.get_marginal_ll(**options) < theirs - 1

    def test_the_aggregated_posterior_agrees_where_it_is_asked_to(self) -> None:
        model, _ = trained("scvi_default")
        point = torch.from_numpy(model.get_latent_representation(indices=range(50))).to(model.device)
        for dof, expected in ((None, -9.719664), (3.0, -10.700008)):  # get_aggregated_posterior, mean log_prob
            mixed = model.get_aggregated_posterior(indices=range(60), dof=dof, variance_as_scale=True)
            np.testing.assert_allclose(mixed.log_prob(point).mean().item(), expected, rtol=1e-5)
        table = model.differential_abundance(sample_key="batch", variance_as_scale=True)
        np.testing.assert_allclose(table.to_numpy().mean(), -9.643251, rtol=1e-5)  # differential_abundance
