"""The client in Python: its methods are those of the atlas, and so are its answers and its errors."""

import inspect
import threading

import numpy as np
import pandas as pd
import pytest

import dist_scvi
from dist_scvi.atlas.atlas import Atlas
from dist_scvi.client import RemoteAtlas
from dist_scvi.launch.serve.limits import Service
from dist_scvi.launch.serve.watch import WatchedAtlas
from tests.launch.serve.conftest import TOKEN, new_cells, running


@pytest.fixture(scope="module")
def remote(client) -> RemoteAtlas:
    return dist_scvi.connect(str(client.base_url))


QUESTIONS = [
    lambda atlas: atlas.expression(["SYM1", "gene3"], "label"),
    lambda atlas: atlas.expression("gene3", per_cell=True, where=np.arange(403) % 5 == 0),
    lambda atlas: atlas.differential_expression({"label": np.array(["B", "T"])}, mode="change", seed=np.int64(3)),
    lambda atlas: atlas.differential_expression([3, 1, 2], range(10, 20), n_samples=20),
    lambda atlas: atlas.markers(["label", "batch"], n_genes=2, where="age > 40"),
    lambda atlas: atlas.neighbors([5, 3], 4),
    lambda atlas: atlas.neighbors(["cell7"], 3, where="label == 'B'", metric="posterior"),
    lambda atlas: atlas.neighbors(np.zeros((2, 4), np.float32), 2, engine="exact"),
    lambda atlas: atlas.neighbors("age > 60", 2),
    lambda atlas: atlas.neighbors(new_cells(12, seed=8), 2),
    lambda atlas: atlas.annotate(new_cells(12, seed=8), method="neighbors", k=5),
    lambda atlas: atlas.latent("age > 60", return_dist=True),
    lambda atlas: atlas.latent(indices=[5, 2, 5]),
    lambda atlas: atlas.abundance("donor", "label"),
    lambda atlas: atlas.counterfactual("b0", "b1", ["gene3"], where={"label": "B"}),
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_does_not_tell_where_the_atlas_lies(remote: RemoteAtlas, atlas: Atlas, question) -> None:
    near, far = question(atlas), question(remote)
    pd.testing.assert_frame_equal(far.table, near.table, check_exact=True, check_dtype=False)
    assert {**far.provenance, "atlas": ""} == {**near.provenance, "atlas": ""}


def test_the_methods_have_the_arguments_of_those_of_the_atlas() -> None:
    for name in (
        "expression",
        "differential_expression",
        "markers",
        "neighbors",
        "annotate",
        "latent",
        "counterfactual",
    ):
        assert (
            list(inspect.signature(getattr(RemoteAtlas, name)).parameters)[1:]
            == list(inspect.signature(getattr(Atlas, name)).parameters)[1:]
        )


def test_labels_are_predicted_as_by_the_atlas(remote: RemoteAtlas, atlas: Atlas) -> None:
    np.testing.assert_array_equal(remote.predict([7, 3]), atlas.predict([7, 3]))
    soft = remote.predict(soft=True, where="age > 60")
    pd.testing.assert_frame_equal(soft, atlas.predict(soft=True, where="age > 60"), check_exact=True)


def test_genes_cells_and_plans_are_those_of_the_atlas(remote: RemoteAtlas, atlas: Atlas) -> None:
    assert remote.var_names == atlas.var_names
    pd.testing.assert_frame_equal(remote.var, atlas.var, check_dtype=False)
    assert (remote.n_cells, remote.digest) == (atlas.n_cells, atlas.digest)
    cells = remote.where("label == 'B' and age > 50")
    assert cells.n_cells == atlas.where(cells.text).n_cells
    assert remote.expression(["gene1"], where=cells).n_cells == {"all": cells.n_cells}
    assert remote.explain("markers", by="label") == atlas.explain("markers", by="label")


def test_what_the_atlas_refuses_is_a_value_error_with_its_message(remote: RemoteAtlas) -> None:
    with pytest.raises(ValueError, match="no gene 'SYM1x'"):
        remote.expression(["SYM1x"])
    with pytest.raises(TypeError, match="unexpected"):
        remote.expression(["SYM1"], wheer="x")  # type: ignore[call-arg]


def test_a_service_asks_for_the_name_of_an_atlas_and_for_its_token(service: Service, guarded, client) -> None:
    with pytest.raises(ValueError, match="no atlas 'large': it has small"):
        dist_scvi.connect(str(client.base_url), atlas="large")
    with pytest.raises(PermissionError, match="token"):
        dist_scvi.connect(str(guarded.base_url))
    assert dist_scvi.connect(str(guarded.base_url), TOKEN).n_cells == 403
    with pytest.raises(ValueError, match="an address such as"):
        dist_scvi.connect("file:///etc/passwd")


def test_without_a_service_there_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_scvi.client._FIRST_PAUSE_S", 0.0)
    with pytest.raises(ConnectionError, match="no answer from"):
        dist_scvi.connect("http://127.0.0.1:9")


def test_a_long_question_is_waited_for_and_cancelled_if_the_wait_is_interrupted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    real, go, ended = Atlas.markers, threading.Event(), threading.Event()

    def markers(view: WatchedAtlas, **arguments: object) -> object:
        try:
            while not go.wait(0.01):
                view.read_latent(slice(0, 1))
        finally:
            ended.set()
        return real(view, **arguments)

    monkeypatch.setattr(WatchedAtlas, "markers", markers)
    with running(replace(service, limits=replace(service.limits, wait_s=0.05))) as port:
        remote = dist_scvi.connect(f"http://127.0.0.1:{port}")
        with monkeypatch.context() as patch:
            patch.setattr("dist_scvi.client.time.sleep", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                remote.markers("label")
        assert ended.wait(10)
        go.set()
        assert len(remote.markers("label", n_genes=1)) == 3


def _interrupted(_seconds: float) -> None:
    raise KeyboardInterrupt
