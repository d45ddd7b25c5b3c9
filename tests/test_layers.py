"""Imports point down, and each large dependency is named where it belongs and nowhere else."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("loaders", "dist_scvi", "launch")
ALLOWED = {
    "ray": {"launch/ray_train.py"},
    "tiledbsoma": {"loaders/soma_store.py"},
    "h5py": {"loaders/h5ad_store.py"},
    "zarrs": {"loaders/zarr_store.py"},
    "numcodecs": {"loaders/codecs.py"},
    "obstore": {"loaders/remote.py"},
    "jsonschema": {"launch/schema_check.py"},
    "skmisc": {"loaders/genes.py"},
    "dask": {"loaders/pack.py"},
    "safetensors": {"dist_scvi/spec.py", "dist_scvi/checkpoint.py"},
    "tensorboardX": {"dist_scvi/logger_services.py"},
    "mlflow": {"dist_scvi/logger_services.py"},
    "wandb": {"dist_scvi/logger_services.py"},
    "pydantic": {"dist_scvi/config.py", "dist_scvi/config_file.py", "dist_scvi/spec.py", "dist_scvi/scvi_registry.py"},
    "argparse": {
        "launch/argument_types.py",
        "launch/render.py",
        "launch/arguments.py",
        "launch/cli.py",
        "launch/query.py",
        "launch/torchrun.py",
    },
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for layer in LAYERS:
        for path in sorted((ROOT / layer).glob("*.py")):
            yield f"{layer}/{path.name}", ast.parse(path.read_text())


def imported(module: ast.Module, layer: str) -> set[str]:
    package = {"loaders": "dist_scvi.loaders", "dist_scvi": "dist_scvi", "launch": "dist_scvi.launch"}[layer]
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{package}." if node.level else ""
            names.add(prefix + (node.module or ""))
    return names


@pytest.mark.parametrize(("file", "module"), list(sources()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_down(file: str, module: ast.Module) -> None:
    layer = file.split("/", maxsplit=1)[0]
    above = {"loaders": ("dist_scvi",), "dist_scvi": ("dist_scvi.launch",), "launch": ()}[layer]
    for name in imported(module, layer):
        if layer == "loaders" and name.startswith("dist_scvi.loaders"):
            continue
        assert not name.startswith(above or "\0"), f"{file} imports {name}"


@pytest.mark.parametrize("dependency", sorted(ALLOWED))
def test_a_large_dependency_is_named_in_one_place(dependency: str) -> None:
    users = {
        file
        for file, module in sources()
        if any(name.split(".")[0] == dependency for name in imported(module, file.split("/")[0]))
    }
    assert users <= ALLOWED[dependency]


@pytest.mark.parametrize(
    "statement", ["import dist_scvi", "import dist_scvi.model, dist_scvi.atlas.atlas, dist_scvi.training.worker"]
)
def test_importing_the_package_brings_in_neither_ray_nor_tiledbsoma(statement: str) -> None:
    script = f"import sys; {statement}; sys.exit(any(name in sys.modules for name in ('ray', 'tiledbsoma')))"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_command_line_answers_without_torch_zarr_or_ray() -> None:
    script = (
        "import sys; from dist_scvi.launch.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'zarr', 'ray', 'pandas')))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True)
