"""``dist-scvi serve``: where it may listen."""

import argparse
from pathlib import Path

import pytest

from dist_scvi.launch.serve.command import add_serve, service_of


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_serve(parser.add_subparsers())
    return parser.parse_args(["serve", *words])


def test_it_listens_on_this_machine_only_unless_asked() -> None:
    asked = options("runs/a/atlas")
    assert asked.host == "127.0.0.1"
    assert service_of(asked).hosts == ("localhost", "127.0.0.1", "[::1]", "127.0.0.1")


def test_others_need_a_token_or_an_explicit_word(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--token-file FILE, or --insecure"):
        service_of(options("a", "--host", "0.0.0.0"))
    assert service_of(options("a", "--host", "0.0.0.0", "--insecure")).token_hashes == ()
    (tmp_path / "tokens").write_text("0123456789abcdef0123\n")
    service = service_of(options("a", "--host", "0.0.0.0", "--token-file", str(tmp_path / "tokens")))
    assert len(service.token_hashes) == 1
    assert service.hosts == ()


def test_limits_are_those_of_the_options() -> None:
    limits = service_of(options("a", "--limit-cells", "10", "--limit-body", "2MiB")).limits
    assert (limits.cells, limits.body_bytes, limits.genes) == (10, 2 << 20, 1000)
