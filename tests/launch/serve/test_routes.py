"""Questions over HTTP: the same answers as in Python, in every type, with their identity, limits and jobs."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pyarrow as pa
import pytest

from dist_scvi.atlas.atlas import Atlas
from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.launch.serve.content import ARROW, CSV, JSON
from dist_scvi.launch.serve.limits import Service
from dist_scvi.launch.serve.watch import WatchedAtlas
from tests.launch.serve.conftest import client_of, new_cells

QUESTIONS: dict[str, tuple[dict[str, Any], Callable[[Atlas], Answer]]] = {
    "expression": (
        {"genes": ["SYM1", "gene7"], "by": ["label", "batch"], "where": "age > 45", "threshold": 0.01},
        lambda atlas: atlas.expression(["SYM1", "gene7"], ["label", "batch"], where="age > 45", threshold=0.01),
    ),
    "differential-expression": (
        {"group1": {"label": ["B"]}, "group2": "label == 'T'", "mode": "change", "engine": "pairs", "n_samples": 50},
        lambda atlas: atlas.differential_expression(
            {"label": ["B"]}, "label == 'T'", mode="change", engine="pairs", n_samples=50
        ),
    ),
    "markers": ({"by": "label", "n_genes": 3}, lambda atlas: atlas.markers("label", n_genes=3)),
    "abundance": ({"by": "donor", "groups": ["label"]}, lambda atlas: atlas.abundance("donor", ["label"])),
    "counterfactual": (
        {"from": "b0", "to": "b1", "genes": ["gene3"]},
        lambda atlas: atlas.counterfactual("b0", "b1", ["gene3"]),
    ),
}


@pytest.mark.parametrize("path", QUESTIONS)
def test_an_answer_is_that_of_the_atlas_in_every_type_of_content(client: httpx.Client, atlas: Atlas, path: str) -> None:
    body, ask = QUESTIONS[path]
    expected = ask(atlas)
    found = {}
    for kind in (ARROW, JSON, CSV):
        response = client.post(f"/v1/small/{path}", json=body, headers={"Accept": kind})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].split(";")[0] == kind
        assert response.headers["answer-engine"] == expected.engine
        assert response.headers["answer-digest"] == atlas.digest
        found[kind] = response.content
    answer = Answer.from_arrow(pa.ipc.open_stream(found[ARROW]).read_all())
    pd.testing.assert_frame_equal(answer.table, expected.table, check_exact=True)
    assert answer.provenance == json.loads(json.dumps({**expected.provenance, "atlas": "small"}, default=str))
    from_json = json.loads(found[JSON])
    assert from_json["provenance"] == answer.provenance
    flat = expected.table if isinstance(expected.table.index, pd.RangeIndex) else expected.table.reset_index()
    numbers = [name for name in flat if flat[name].dtype.kind == "f"]
    assert numbers
    for name in numbers:
        assert [row[str(name)] for row in from_json["rows"]] == flat[name].astype(object).where(
            flat[name].notna(), None
        ).tolist()
    assert pd.read_csv(io.BytesIO(found[CSV])).shape == flat.shape


def test_the_same_question_has_the_same_tag_and_is_not_computed_again(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"by": "label", "n_genes": 3}
    first, spelled_out = (client.post("/v1/small/markers", json={**body, **more}) for more in ({}, {"seed": 0}))
    tag = first.headers["etag"]
    assert spelled_out.headers["etag"] == tag
    assert client.post("/v1/small/markers", json={**body, "seed": 1}).headers["etag"] != tag
    assert client.post("/v1/small/markers", json=body, headers={"Accept": CSV}).headers["etag"] != tag
    monkeypatch.setattr(WatchedAtlas, "markers", None)
    again = client.post("/v1/small/markers", json=body, headers={"If-None-Match": f'"x", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    described = client.get("/v1/small")
    assert client.get("/v1/small", headers={"If-None-Match": described.headers["etag"]}).status_code == 304


def test_atlases_genes_and_columns_are_described(client: httpx.Client, atlas: Atlas, atlas_path: Path) -> None:
    [described] = client.get("/v1/atlases").json()
    assert described == client.get("/v1/small").json()
    assert (described["n_cells"], described["digest"], described["labels"]) == (403, atlas.digest, ["B", "NK", "T"])
    assert [gene["name"] for gene in client.get("/v1/small/genes?q=sym4&limit=3").json()] == [
        "gene4",
        "gene40",
        "gene41",
    ]
    column = client.get("/v1/small/obs/label").json()
    sizes = atlas.obs["label"].value_counts()
    assert {each["name"]: each["n_cells"] for each in column["categories"]} == sizes.to_dict()
    assert column["missing"] == 0
    ages = atlas.obs["age"]
    numeric = client.get("/v1/small/obs/age").json()
    assert (numeric["min"], numeric["max"]) == (ages.min(), ages.max())
    assert numeric["quantiles"]["0.5"] == pytest.approx(ages.median())
    assert client.get("/v1/small/obs/lable").status_code == 404
    assert client.get("/v1/none").status_code == 404


def test_a_file_of_new_cells_is_annotated_and_removed(
    client: httpx.Client, atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    new = new_cells(40, seed=9)
    new.write_h5ad(tmp_path / "new.h5ad")
    content, kind = (tmp_path / "new.h5ad").read_bytes(), {"Content-Type": "application/x-hdf5"}
    found = client.post("/v1/small/annotate?method=neighbors&k=5&coverage=0.8", content=content, headers=kind)
    assert found.status_code == 200, found.text
    expected = atlas.annotate(new, method="neighbors", k=5, coverage=0.8)
    assert [row["label"] for row in found.json()["rows"]] == expected.table["label"].tolist()
    assert [row["probability"] for row in found.json()["rows"]] == expected.table["probability"].tolist()
    tag = {"If-None-Match": found.headers["etag"]}
    again = client.post(
        "/v1/small/annotate?method=neighbors&k=5&coverage=0.8", content=content, headers={**kind, **tag}
    )
    assert again.status_code == 304
    near = client.post("/v1/small/neighbors-of-new-cells?k=2", content=content, headers=kind)
    assert [row["row"] for row in near.json()["rows"]] == atlas.neighbors(new, 2).table["row"].tolist()
    refused = client.post("/v1/small/annotate?label=lable", content=content, headers=kind)
    assert refused.status_code == 422
    assert str(tmp_path) not in refused.text
    assert [path.name for path in tmp_path.iterdir()] == ["new.h5ad"]


def test_a_file_that_is_damaged_or_refers_to_other_files_is_refused(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import h5py

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    new = new_cells(40, seed=9)
    new.X = new.X.toarray()
    new.write_h5ad(tmp_path / "new.h5ad")
    content, kind = (tmp_path / "new.h5ad").read_bytes(), {"Content-Type": "application/x-hdf5"}
    with h5py.File(tmp_path / "new.h5ad", "r+") as file:
        shape, attributes = file["X"].shape, dict(file["X"].attrs)
        del file["X"]
        external = file.create_dataset("X", shape, "f4", external=[("/etc/passwd", 0, 4 * shape[0] * shape[1])])
        external.attrs.update(attributes)
    linked = (tmp_path / "new.h5ad").read_bytes()
    for wrong in (
        b"",
        b"no h5ad",
        content[: len(content) // 2],
        content[:2000] + b"\xff" * 500 + content[2500:],
        linked,
    ):
        for path in ("annotate", "neighbors-of-new-cells"):
            refused = client.post(f"/v1/small/{path}", content=wrong, headers=kind)
            assert refused.status_code == 422, refused.text
            assert str(tmp_path) not in refused.text
    assert "in other files" in refused.text
    assert client.post("/v1/small/annotate", content=content, headers={"Content-Type": "text/csv"}).status_code == 413
    assert client.post("/v1/small/annotate", content=b"x", headers={"Content-Type": "text/csv"}).status_code == 415
    assert [path.name for path in tmp_path.iterdir()] == ["new.h5ad"]


def test_where_and_explain_tell_cells_before_a_question(client: httpx.Client, atlas: Atlas) -> None:
    rows = client.post("/v1/small/where", json={"text": "label == 'B' and age > 50"}).json()
    assert rows["provenance"]["n_cells"] == {"chosen": atlas.where("label == 'B' and age > 50").n_cells}
    assert [row["clause"] for row in rows["rows"]] == ["label == 'B'", "age > 50"]
    plan = client.post("/v1/small/explain", json={"query": "markers", "asked": {"by": "label"}}).json()["rows"][0]
    assert (plan["engine"], plan["cells"]) == ("sketch", 403)
    wrong = client.post("/v1/small/explain", json={"query": "markers", "asked": {"bye": "label"}})
    assert wrong.status_code == 422


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("expression", {"genes": ["SYM1x"]}, 422, "small has no gene 'SYM1x'"),
        ("expression", {"genes": ["gene1"], "where": "labl == 'B'"}, 422, "label"),
        ("expression", {"genes": ["gene1"], "where": "__import__('os')"}, 422, "where="),
        ("expression", {"genes": ["gene1"], "wheer": "x"}, 422, "Extra inputs"),
        ("expression", {"genes": [f"gene{g}" for g in range(21)]}, 422, "at most 20"),
        ("expression", {"genes": [f"gene{g}" for g in range(20)], "by": "label", "library_size": 1e400}, 422, ""),
        ("markers", {"by": "label", "n_genes": None, "delta": -1}, 422, "delta"),
        ("differential-expression", {"group1": "label == 'B'", "engine": "exact"}, 422, "at most 20,000"),
        ("differential-expression", {"group1": [0, 5000]}, 422, ""),
        ("nothing", {}, 405, ""),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_in_one_line(
    client: httpx.Client, atlas_path: Path, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    text = json.dumps(body).replace("Infinity", "1e400")
    response = client.post(f"/v1/small/{path}", content=text, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert message in response.text
    assert str(atlas_path) not in response.text


def test_bodies_that_are_no_json_are_refused(client: httpx.Client) -> None:
    for content in (b"", b"{", b"\xff\xfe", b"[" * 15_000, b'{"genes": ["\\ud800"]}', b"9" * 9_000, b'{"genes": NaN}'):
        response = client.post("/v1/small/expression", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), content[:20]
    response = client.post(
        "/v1/small/expression", content=b'{"genes": ["gene1"]}', headers={"Content-Type": "text/plain"}
    )
    assert response.status_code == 422


def test_cells_above_the_limit_are_not_decoded(service: Service) -> None:
    small = replace(service, limits=replace(service.limits, cells=300))
    with client_of(small) as client:
        asked = {"genes": ["gene1"], "by": "label", "engine": "exact"}
        assert "300 cells" in client.post("/v1/small/expression", json=asked).json()["detail"]
        assert client.post("/v1/small/expression", json={**asked, "where": "label == 'B'"}).status_code == 200


class Held:
    """Holds questions in the middle, until they are released."""

    def __init__(self) -> None:
        self.entered, self.go, self.ended = threading.Semaphore(0), threading.Event(), []

    def expression(self, view: WatchedAtlas, **_: object) -> Answer:
        self.entered.release()
        try:
            while not self.go.wait(0.01):
                view.read_latent(slice(0, 1))
        finally:
            self.ended.append(view)
        return Answer("expression", pd.DataFrame({"x": [1.0]}), "exact", "own", {"all": 1}, "", view.digest)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held()
    monkeypatch.setattr(WatchedAtlas, "expression", lambda view, **asked: held.expression(view, **asked))  # noqa: PLW0108
    yield held
    held.go.set()


def ask_async(client: httpx.Client) -> str:
    response = client.post("/v1/small/expression", json={"genes": ["gene1"]}, headers={"Prefer": "respond-async"})
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
    return response.headers["location"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_long_question_becomes_a_job_with_progress_and_an_answer(client: httpx.Client, held: Held) -> None:
    job = ask_async(client)
    until(lambda: client.get(job).json()["cells_read"] > 0)
    assert client.get(job).json()["state"] == "running"
    assert client.get(f"{job}/answer").status_code == 404
    held.go.set()
    until(lambda: client.get(job).json()["state"] == "done")
    answer = client.get(f"{job}/answer", headers={"Accept": CSV})
    assert answer.text == "x\n1.0\n"
    assert answer.headers["etag"]
    assert client.delete(job).status_code == 204
    assert client.get(f"{job}/answer").status_code == 404


def test_a_cancelled_job_stops_computing(client: httpx.Client, held: Held) -> None:
    job = ask_async(client)
    held.entered.acquire()
    assert client.delete(job).status_code == 204
    until(lambda: client.get(job).json()["state"] == "cancelled")
    assert len(held.ended) == 1
    assert client.delete("/v1/jobs/none").status_code == 404


def test_a_client_has_only_so_many_questions_at_a_time(client: httpx.Client, held: Held, service: Service) -> None:
    jobs = [ask_async(client) for _ in range(service.limits.questions_per_client)]
    refused = client.post("/v1/small/markers", json={"by": "label"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert client.get("/v1/small").status_code == 200
    held.go.set()
    for job in jobs:
        until(lambda job=job: client.get(job).json()["state"] == "done")
    assert client.post("/v1/small/markers", json={"by": "label", "n_genes": 1}).status_code == 200


def test_all_clients_together_have_only_so_many_questions(service: Service) -> None:
    none = replace(service, limits=replace(service.limits, questions=0))
    with client_of(none) as client:
        assert client.post("/v1/small/markers", json={"by": "label"}).status_code == 503


def test_health_and_metrics_tell_of_the_service(client: httpx.Client) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    client.get("/v1/small/genes?q=x")
    text = client.get("/metrics").text
    assert 'dist_scvi_requests_total{method="GET",route="/v1/{atlas}/genes",status="200"}' in text
    assert "process_resident_memory_bytes" in text
    client.get("/v1/small/guessed-by-a-scanner")
    assert "scanner" not in client.get("/metrics").text
