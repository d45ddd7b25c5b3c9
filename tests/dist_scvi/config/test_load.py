"""Reading a configuration: errors name the key, the value and what was meant."""

import os
import time
from pathlib import Path

import pytest
import yaml

from dist_scvi.config.load import load_config, parse_config
from dist_scvi.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"data": {"uri": "x", "batchkey": "donor"}}, r"^there is no key data\.batchkey: did you mean batch_key"),
        ({"data": {"uri": "x"}, "train": {"max_epoch": 3}}, r"^there is no key train\.max_epoch: .*max_epochs"),
        ({"data": {"uri": "x"}, "modle": {}}, r"^there is no key modle: did you mean model\?$"),
        (
            {"data": {"uri": "x"}, "qqqq": 1},
            r"^there is no key qqqq: did you mean run, storage_options, .*, data, model, train\?$",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_near_ones(tree: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(tree)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=1", r"^train\.batch_size=1 does not fit: .*greater than or equal to 2"),
        ("train.lr=fast", r"^train\.lr='fast' does not fit"),
        ("train.lr=.nan", r"^train\.lr=nan does not fit"),
        (
            "model.gene_likelihood=gauss",
            r"^model\.gene_likelihood='gauss' does not fit: .*'zinb', 'nb', 'poisson' or 'no",
        ),
        ("model.use_observed_lib_size=maybe", r"^model\.use_observed_lib_size='maybe' does not fit"),
        ("model.dropout_rate=1", r"^model\.dropout_rate=1 does not fit"),
        ("data.continuous_covariate_keys=[[1]]", r"^data\.continuous_covariate_keys\.0=\[1\] does not fit"),
        (
            "data.categorical_covariate_keys=donor",
            r"^data\.categorical_covariate_keys: 'donor' is one text, a list is needed: \[donor\]$",
        ),
        ("train=fast", r"^train='fast' does not fit"),
    ],
)
def test_a_bad_value_is_refused_with_key_and_value(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, ["data.uri=cells.zarr", override])


def test_all_bad_keys_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"seed=-1 does not fit.*; there is no key dat: did you mean data"):
        parse_config({"data": {"uri": "x"}, "seed": -1, "dat": 3})


def test_overrides_are_yaml_values_set_on_top_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 3\ndata: {uri: /a.zarr, batch_key: donor}\ntrain: {lr: 0.1}\n")
    overrides = [
        "train.lr=1e-4",
        "data.batch_key=null",
        "data.categorical_covariate_keys=[sex, site]",
        "model.n_latent=3",
    ]
    config = load_config(path, overrides)
    assert (config.seed, config.data.uri, config.train.lr, config.data.batch_key) == (3, "/a.zarr", 1e-4, None)
    assert (config.data.categorical_covariate_keys, config.model.n_latent) == (("sex", "site"), 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", r"^'train\.lr' is no override: write key=value"),
        ("train.lr=[", r"^the value of 'train\.lr' is not valid YAML: "),
        ("seed.deep=1", r"^seed\.deep cannot be set: seed holds a value, not a section"),
        ("=1", r"^there is no key : did you mean"),
    ],
)
def test_a_bad_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path, "seed: 3\ndata: {uri: a.zarr}\n")
    with pytest.raises(ValueError, match=message):
        load_config(path, [override])


def test_cells_must_be_named(tmp_path: Path) -> None:
    for path in (None, write(tmp_path, ""), write(tmp_path, "data: {batch_key: donor}")):
        with pytest.raises(ValueError, match=r"^data\.uri is needed: set it in the file or with data\.uri=VALUE$"):
            load_config(path)


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["data.uri=cells.zarr", "run=runs/a", "start_from=runs/b/model"])
    assert (config.data.uri, config.run) == (str(tmp_path / "cells.zarr"), str(tmp_path / "runs" / "a"))
    assert config.start_from == str(tmp_path / "runs" / "b" / "model")


def test_a_remote_address_stays_as_it_is() -> None:
    assert load_config(None, ["data.uri=s3://bucket/cells.zarr"]).data.uri == "s3://bucket/cells.zarr"


@pytest.mark.parametrize(
    ("text", "message"),
    [("data: [", r"run\.yaml is not valid YAML"), ("- 1", r"run\.yaml holds a list: keys such as 'data'")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, text))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{level}: &a{level}\n  <<: [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 30,000 values"),
        (MERGES, "merged mappings are too large"),
        ("data: &all {uri: *all}", r"is not valid YAML|has 17 levels"),
        ("data: " + "[" * 100_000, "is nested more than 16 deep"),
        ("seed: [" + "1, " * 31_000 + "]", r"(holds|has) more than 30,?000 values"),
        ("#" * (1 << 19) + "\n", "has 524,289 bytes, at most 524,288"),
        ("seed: \udcff", "is not a text file in UTF-8"),
    ],
    ids=["aliases", "merges", "itself", "deep", "many", "long", "binary"],
)
def test_a_file_beyond_all_bounds_is_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, errors="surrogateescape")
    began = time.monotonic()
    with pytest.raises(ValueError, match=message):
        load_config(path, ["data.uri=x"])
    assert time.monotonic() - began < 5  # a second on a quiet machine


def test_an_alias_is_resolved(tmp_path: Path) -> None:
    text = "data: {uri: x, categorical_covariate_keys: &keys [a, b], continuous_covariate_keys: *keys}"
    assert load_config(write(tmp_path, text)).data.continuous_covariate_keys == ("a", "b")


@pytest.mark.timeout(20)
def test_a_pipe_or_a_folder_is_no_configuration_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match=rf"^{path} is not a regular file: a YAML file is needed$"):
            load_config(path)


def test_an_error_message_is_short_whatever_the_file_holds(tmp_path: Path) -> None:
    text = yaml.safe_dump({"seed": ["x" * 50_000] * 3, "data": {"uri": "x"}} | {f"k{n}" * 99: n for n in range(300)})
    with pytest.raises(ValueError, match=r"seed=.*does not fit.*; and 293 more$") as refused:
        load_config(write(tmp_path, text))
    assert len(str(refused.value)) < 3000


def test_a_section_without_keys_and_one_in_a_section_are_known(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "data: {uri: x}\ntrain:\nmodel:\n")).train == TrainConfig()
    with pytest.raises(ValueError, match=r"^there is no key data\.soma\.measurment: did you mean measurement"):
        load_config(write(tmp_path, "data: {uri: x, soma: {measurment: RNA}}"))


def test_a_path_in_a_home_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(ValueError, match=r"^~/x: Could not determine home directory\. \(set HOME, or give the path"):
        load_config(None, ["data.uri=~/x"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no configuration file .*run\.yaml$"):
        load_config(tmp_path / "run.yaml")


def test_a_configuration_survives_being_written_and_read(tmp_path: Path) -> None:
    config = RunConfig(
        run="/runs/a",
        seed=7,
        data=DataConfig(uri="/cells.zarr", categorical_covariate_keys=("sex", "site")),
        model=ModelConfig(n_latent=30, gene_likelihood="nb"),
        train=TrainConfig(lr=1e-5, max_epochs=4),
    )
    assert load_config(write(tmp_path, yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_several_stores_and_a_file_of_genes_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = load_config(None, ["data.uri=[a.zarr, s3://bucket/b.zarr]", "data.genes=genes.txt"]).data
    assert data.uri == (str(tmp_path / "a.zarr"), "s3://bucket/b.zarr")
    assert data.genes == str(tmp_path / "genes.txt")
