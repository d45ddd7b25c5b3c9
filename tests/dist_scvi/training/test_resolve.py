"""What training refuses before it opens a file."""

import pytest

from dist_scvi.config.load import read_config
from dist_scvi.training.resolve import check_config

CONFIG = "run: s3://bucket/run\ndata: {uri: s3://bucket/atlas.zarr}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["logger=tensorboard"], "where TensorBoard cannot write: set logger_options.dir"),
        (["logger=mlflow", "logger_options={tracking: x}"], r"logger_options\.tracking is not known"),
        (["run=https://host/run"], "https://host/run cannot be written"),
        (["storage_options={regoin: eu}"], "regoin"),
        (["train.lanes=7"], "must be a multiple of lanes=7"),
        (["train.train_size=0.9", "train.validation_size=0.2"], "together at most 1"),
        (["train.train_size=1", "train.early_stopping=true"], r"train\.early_stopping depends on validations"),
        (["train.load_best=true", "train.check_val_every_n_epoch=0"], r"train\.load_best depends on validations"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_file_is_opened(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(read_config(CONFIG, "run.yaml", words))


def test_a_column_may_make_the_validations() -> None:
    words = ["train.early_stopping=true", "data.split_key=split", "train.train_size=1"]
    check_config(read_config(CONFIG, "run.yaml", words))
