"""Arguments are read as they are written, and refused where they make no sense."""

import argparse

import pytest

from dist_scvi.launch.arguments import parse


def command(_: argparse.Namespace) -> int:
    return 0


COMMANDS = dict.fromkeys(["simulate", "inspect", "verify", "pack", "train", "resume", "minify", "query"], command)


def test_the_command_that_was_named_is_given() -> None:
    def pack(_: argparse.Namespace) -> int:
        return 1

    assert parse(["pack", "a.zarr", "b.h5ad", "out"], {**COMMANDS, "pack": pack}).command is pack


def test_several_sources_and_then_the_destination() -> None:
    options = parse(["pack", "a.zarr", "b.h5ad", "out.zarr", "--hvg", "2000"], COMMANDS)
    assert (options.sources, str(options.out), options.hvg) == (["a.zarr", "b.h5ad"], "out.zarr", 2000)


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2 << 30), ("512MiB", 512 << 20), ("1.5 GiB", 3 << 29)])
def test_sizes_carry_their_unit(text: str, size: int) -> None:
    assert parse(["pack", "a", "b", "--memory", text], COMMANDS).memory == size


def test_overrides_may_stand_behind_options() -> None:
    assert parse(["train", "run.yaml", "--workers", "2", "seed=3"], COMMANDS).words == ["run.yaml", "seed=3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "a", "b", "--memory", "2"], "a size such as 512MiB or 2GiB is needed"),
        (["train", "run.yaml", "--wokers", "2"], "unrecognized arguments: --wokers"),
        (["pack", "a", "b", "--processes", "0"], "a whole number from 1 on is needed"),
        ([], "COMMAND"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(arguments, COMMANDS)
    assert message in capsys.readouterr().err
