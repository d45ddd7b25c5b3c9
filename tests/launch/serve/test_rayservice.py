"""The RayService for Kubernetes: what it starts, who may ask, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_scvi.launch.arguments import parse
from dist_scvi.launch.clusters.command import launch
from dist_scvi.launch.clusters.options import PodOptions
from dist_scvi.launch.clusters.schema_check import check
from dist_scvi.launch.serve.limits import hash_token, service_from
from dist_scvi.launch.serve.rayservice import RayServiceOptions, render_rayservice

PODS = PodOptions(image="registry/dist-scvi:1", volumes=(("claim", "/data"),), node_selector=(("pool", "small"),))
OPTIONS = RayServiceOptions(
    atlases=("s3://bucket/lung", "gut=/data/gut/atlas"), insecure=True, replicas=(2, 6), cpus_per_replica=3
)


def rendered(options: RayServiceOptions = OPTIONS, pods: PodOptions = PODS) -> tuple[dict[str, Any], dict[str, Any]]:
    [document] = yaml.safe_load_all(render_rayservice(options, pods))
    return document, yaml.safe_load(document["spec"]["serveConfigV2"])


def test_it_serves_the_atlases_from_replicas_that_grow_with_the_load() -> None:
    document, config = rendered()
    [app] = config["applications"]
    assert app["args"]["atlases"] == {"lung": "s3://bucket/lung", "gut": "/data/gut/atlas"}
    assert (app["args"]["replicas"], app["args"]["cpus_per_replica"]) == ([2, 6], 3)
    cluster = document["spec"]["rayClusterConfig"]
    [group] = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"], cluster["enableInTreeAutoscaling"]) == (2, 6, True)
    container = group["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["cpu"] == "3"
    assert {"name": "claim-0", "mountPath": "/data"} in container["volumeMounts"]


def test_ray_serve_accepts_its_configuration_and_makes_the_service_of_it(tmp_path: Path) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    _, config = rendered(replace(OPTIONS, insecure=False, token_file=tmp_path / "tokens"))
    [app] = schema.ServeDeploySchema.model_validate(config).applications
    module, _, name = app.import_path.partition(":")
    assert (module, name) == ("dist_scvi.launch.serve.ray_serve", "build")
    given = {key: value for key, value in app.args.items() if key not in ("replicas", "cpus_per_replica")}
    assert service_from(given).token_hashes == (hash_token("0123456789abcdef"),)
    assert "0123456789abcdef" not in yaml.safe_dump(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(OPTIONS, insecure=False), "--token-file FILE, or --insecure"),
        (replace(OPTIONS, atlases=()), "no atlas is named"),
        (replace(OPTIONS, atlases=("/home/me/atlas",)), "which the replicas do not see"),
        (replace(OPTIONS, name="A b"), "rayservice: at metadata/name"),
        (replace(OPTIONS, memory_bytes=1 << 20), "--shm of 0 MiB"),
    ],
)
def test_what_cannot_work_is_refused(options: RayServiceOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rendered(options)


def test_a_field_that_kuberay_does_not_know_is_refused() -> None:
    document, _ = rendered()
    document["spec"]["backoffLimit"] = 3
    with pytest.raises(ValueError, match="backoffLimit"):
        check(document, "rayservice")


def test_the_command_writes_it(tmp_path: Path) -> None:
    out = tmp_path / "service.yaml"
    words = ["launch", "rayservice", "s3://bucket/lung", "--image", "a/b:1", "--insecure", "--out", str(out)]
    assert parse(words, {"launch": launch}).command(parse(words, {"launch": launch})) == 0
    assert yaml.safe_load(out.read_text())["kind"] == "RayService"
