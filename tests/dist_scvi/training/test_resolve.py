"""What training refuses before it opens a file."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dist_scvi.config.load import read_config
from dist_scvi.config.schema import TrainConfig
from dist_scvi.loaders import CellData
from dist_scvi.training.resolve import _kernels, check_config

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


def test_kernels_are_compiled_where_the_data_are_large_whatever_the_epochs(data: CellData) -> None:
    sizes: Any = SimpleNamespace(n_cells=10_000_000 // data.n_genes, var_names=data.store.var_names)
    large = replace(data, store=sizes)
    found = [
        _kernels(TrainConfig(kernels=kernels, max_epochs=epochs), cells)
        for kernels in ("auto", "torch", "compiled")
        for epochs in (1, 400)
        for cells in (data, large)
    ]
    assert found == ["torch", "compiled"] * 2 + ["torch"] * 4 + ["compiled"] * 4
