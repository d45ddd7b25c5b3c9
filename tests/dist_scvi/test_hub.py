import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import dist_scvi
from dist_scvi.atlas.export_hub import write_scvi_hub
from dist_scvi.model import SCVI
from tests.dist_scvi.hub_server import HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture(scope="module")
def folder(model: SCVI, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hub")
    write_scvi_hub(model.minify(place / "atlas"), place / "folder")
    return place / "folder"


def test_a_folder_is_opened_as_the_model_that_it_holds(folder: Path, model: SCVI) -> None:
    found = dist_scvi.from_hub(folder)
    assert type(found) is SCVI
    assert found.data.n_cells == model.data.n_cells
    assert found.spec.var_names == model.spec.var_names


def test_a_model_goes_to_a_hub_and_comes_back(folder: Path, hub: HubServer, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("not for others")
    url = dist_scvi.push_to_hub(folder, "me/model", token="hf_test", endpoint=hub.url)
    assert url == f"{hub.url}/me/model"
    assert hub.files == {
        name: (folder / name).read_bytes()
        for name in ("README.md", "_scvi_required_metadata.json", "adata.h5ad", "model.pt")
    }
    found = dist_scvi.from_hub("me/model", cache_dir=tmp_path, token=False, endpoint=hub.url)
    expected = dist_scvi.from_hub(folder)
    np.testing.assert_array_equal(found.get_latent_representation(), expected.get_latent_representation())


def test_what_is_no_model_is_refused(folder: Path, hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.pt"):
        dist_scvi.from_hub(tmp_path)
    with pytest.raises(FileNotFoundError, match="export ATLAS OUT --to scvi-hub"):
        dist_scvi.push_to_hub(tmp_path, "me/model", endpoint=hub.url)
    with pytest.raises(ValueError, match="no repository"):
        dist_scvi.from_hub("me/absent", cache_dir=tmp_path, endpoint=hub.url)
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.pt").write_bytes((folder / "model.pt").read_bytes())
    (other / "_scvi_required_metadata.json").write_text('{"model_cls_name": "TOTALVI"}')
    with pytest.raises(ValueError, match="TOTALVI"):
        dist_scvi.from_hub(other)
