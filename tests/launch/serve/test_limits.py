"""The names of atlases and the tokens of a service."""

import hmac
from pathlib import Path

import pytest

from dist_scvi.launch.serve.limits import Limits, Service, hash_token, name_atlases, read_tokens, service_from


def test_an_atlas_is_named_after_its_folder_or_after_that_of_its_run() -> None:
    assert name_atlases(["runs/lung/atlas", "s3://bucket/blood", "gut=/data/x=1"]) == {
        "lung": "runs/lung/atlas",
        "blood": "s3://bucket/blood",
        "gut": "/data/x=1",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a/atlas", "b/a"], "both called 'a'"),
        (["jobs=x"], "'jobs' cannot be the name"),
        (["/data/***"], "cannot be the name"),
    ],
)
def test_names_that_are_taken_or_not_allowed_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        name_atlases(words)


def test_tokens_are_read_one_a_line_and_kept_as_hashes(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# ours\n0123456789abcdef\n\n fedcba9876543210 \n")
    hashes = read_tokens(path)
    assert hashes == (hash_token("0123456789abcdef"), hash_token("fedcba9876543210"))
    service = Service(atlases={}, token_hashes=hashes)
    assert service.accepts("fedcba9876543210")
    assert not service.accepts("fedcba987654321")
    assert not service.accepts("")
    assert not service.accepts("\udcff")


@pytest.mark.parametrize(("text", "message"), [("", "holds no token"), ("short\n", "5 characters")])
def test_a_file_without_tokens_or_with_one_that_can_be_guessed_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_tokens(tmp_path / "tokens")


def test_every_known_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(offered: str, known: str) -> bool:
        compared.append(known)
        return offered == known

    monkeypatch.setattr(hmac, "compare_digest", compare)
    hashes = tuple(map(hash_token, ("first-token-01234", "second-token-0123", "third-token-01234")))
    assert Service(atlases={}, token_hashes=hashes).accepts("first-token-01234")
    assert compared == list(hashes)


def test_a_service_travels_as_plain_values() -> None:
    service = Service(atlases={"a": "s3://b/a"}, token_hashes=("x",), hosts=("localhost",), limits=Limits(cells=7))
    values = {**service.to_dict(), "token_hashes": ["x"], "hosts": ["localhost"]}  # as YAML has them
    assert service_from(values) == service
