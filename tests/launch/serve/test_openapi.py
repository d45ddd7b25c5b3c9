"""The description of the service, and requests made from it and from nothing."""

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_scvi.launch.serve.questions.kinds import QUESTIONS

LEAN = settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


def test_every_question_has_an_address_an_example_and_every_type(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    for path, kind in QUESTIONS.items():
        operation = described["paths"][f"/v1/{{atlas}}/{path}"]["post"]
        assert set(operation["responses"]["200"]["content"]) == {
            *("application/json", "application/vnd.apache.arrow.stream", "text/csv")
        }
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
        for example in described["components"]["schemas"][name]["examples"]:
            kind.body.model_validate(example)
    for operations in described["paths"].values():
        for operation in operations.values():
            assert operation.get("summary")
            assert operation.get("description") or operation.get("summary")


@schemathesis.serializer("application/x-hdf5")
def _file(_context: Any, value: Any) -> bytes:
    return value.data if hasattr(value, "data") else str(value).encode("utf-8", "surrogatepass")


def _schema() -> Any:
    """Read the description when the tests are made: it does not depend on the atlases."""
    from fastapi import FastAPI

    from dist_scvi.launch.serve.routes import router

    app = FastAPI(title="dist_scvi")
    app.include_router(router)
    return schemathesis.openapi.from_dict(app.openapi())


@_schema().parametrize()
@LEAN
def test_no_request_that_fits_the_description_ends_in_a_failure(case: Any, client: httpx.Client) -> None:
    if "atlas" in case.path_parameters and len(str(case.path_parameters["atlas"])) % 4:
        case.path_parameters["atlas"] = "small"
    response = case.call(base_url=str(client.base_url))
    assert response.status_code < 500, response.text


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(sorted({name for kind in QUESTIONS.values() for name in kind.body.model_fields}))
KNOWN = st.sampled_from(
    ["label", "batch", "age", "gene1", "SYM2", "label == 'B'", "b1", "average", "latent", [0, 1], -1, 0]
)


@pytest.mark.parametrize("path", sorted(QUESTIONS))
@given(
    body=st.dictionaries(FIELDS | st.text(max_size=5), KNOWN | JSON_VALUES | st.lists(KNOWN, max_size=3), max_size=6)
)
@LEAN
def test_no_body_ends_in_a_failure(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    response = client.post(f"/v1/small/{path}", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code < 500, (body, response.text)


@given(
    content=st.binary(max_size=200), kind=st.sampled_from(["application/json", "application/x-hdf5", "", "text/csv"])
)
@LEAN
def test_no_bytes_end_in_a_failure(client: httpx.Client, content: bytes, kind: str) -> None:
    for path in ("expression", "where"):
        response = client.post(f"/v1/small/{path}", content=content, headers={"Content-Type": kind})
        assert response.status_code < 500
