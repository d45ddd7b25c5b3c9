"""The keys of a configuration: scvi-tools' defaults, and what does not go together."""

import pytest

from dist_scvi.config.load import parse_config
from dist_scvi.config.schema import ModelConfig, TrainConfig


def test_defaults_of_the_model_are_those_of_scvi_tools() -> None:
    expected = {
        "n_hidden": 128,
        "n_latent": 10,
        "n_layers": 1,
        "dropout_rate": 0.1,
        "dispersion": "gene",
        "gene_likelihood": "zinb",
        "use_observed_lib_size": True,
        "latent_distribution": "normal",
        "log_variational": True,
        "encode_covariates": False,
        "deeply_inject_covariates": True,
        "batch_representation": "one-hot",
        "embedding_dim": 5,
        "use_batch_norm": "both",
        "use_layer_norm": "none",
        "linear_classifier": False,
        "y_prior": None,
    }
    assert expected.items() <= ModelConfig().model_dump().items()
    assert expected.items() <= ModelConfig(model_name="SCANVI").model_dump().items()
    linear = expected | {"gene_likelihood": "nb", "use_observed_lib_size": False}
    assert linear.items() <= ModelConfig(model_name="LinearSCVI").model_dump().items()


def test_defaults_of_training_are_those_of_scvi_tools_where_it_has_them() -> None:
    assert {
        "train_size": None,
        "validation_size": None,
        "optimizer": "Adam",
        "lr": 1e-3,
        "eps": 0.01,
        "weight_decay": 1e-6,
        "gradient_clip_val": None,
        "n_steps_kl_warmup": None,
        "max_kl_weight": 1.0,
        "min_kl_weight": 0.0,
        "classification_ratio": 50,
        "n_samples_per_label": None,
        "reduce_lr_on_plateau": False,
        "lr_factor": 0.6,
        "lr_patience": 30,
        "lr_threshold": 0.0,
        "lr_scheduler_metric": "elbo_validation",
        "lr_min": 0,
        "early_stopping": False,
        "early_stopping_monitor": "elbo_validation",
        "early_stopping_mode": "min",
        "early_stopping_min_delta": 0.0,
        "early_stopping_patience": 45,
        "early_stopping_warmup_epochs": 0,
    }.items() <= TrainConfig().model_dump().items()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {"early_stopping_monitor": "elbo"}}, r"monitor='elbo' .* 'elbo_validation', .* or 'validation_cal"),
        ({"train": {"lr_scheduler_metric": "validation_accuracy"}}, r"Input should be 'elbo_validation', 'reconst"),
        (
            {"train": {"min_kl_weight": 0.5, "max_kl_weight": 0.4}},
            r"^train: min_kl_weight=0\.5 is above max_kl_weight=0",
        ),
        ({"train": {"n_steps_kl_warmup": 4, "n_epochs_kl_warmup": 2}}, r"^train: .* both set: choose one$"),
        (
            {"train": {"classification_ratio": 5, "early_stopping_monitor": "validation_accuracy"}},
            r"^train\.classification_ratio, train\.early_stopping_monitor=validation_accuracy: SCANVI has this, SCVI",
        ),
        (
            {"train": {"n_samples_per_label": 5}, "model": {"model_name": "LinearSCVI"}},
            r"^train\.n_samples_per_label: SCANVI has this, LinearSCVI does not$",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(tree: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config({"data": {"uri": "x"}, **tree})


def test_options_of_scanvi_are_allowed_to_scanvi() -> None:
    train = {"classification_ratio": 5, "n_samples_per_label": 3, "early_stopping_monitor": "validation_accuracy"}
    config = parse_config({"data": {"uri": "x"}, "model": {"model_name": "SCANVI"}, "train": train})
    assert train.items() <= config.train.model_dump().items()


@pytest.mark.parametrize("key", ["aws_secret_access_key", "TOKEN", "vfs.s3.aws_session_token"])
def test_credentials_do_not_get_into_a_configuration(key: str) -> None:
    for section in ({"storage_options": {key: "hunter2"}}, {"soma": {"tiledb_config": {key: "hunter2"}}}):
        with pytest.raises(
            ValueError, match="is stored with every result, give credentials in the environm"
        ) as refused:
            parse_config({"data": {"uri": "s3://bucket/a.zarr", **section}})
        assert "hunter2" not in str(refused.value)
