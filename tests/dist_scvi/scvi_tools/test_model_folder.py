"""Models go from scvi-tools to dist_scvi and back with equal weights, and nothing that does not fit is taken over."""

import json
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from dist_scvi.config.schema import ModelConfig
from dist_scvi.loaders import open_data
from dist_scvi.loaders.stream import rows_minibatch
from dist_scvi.network.model_spec import Covariate, ModelSpec
from dist_scvi.scvi_tools.minified_h5ad import open_minified_h5ad
from dist_scvi.scvi_tools.model_folder import is_scvi_tools, read_scvi_tools, write_scvi_tools

SHARED = Path(__file__).parents[4] / "shared"
GOLDEN, MODELS = SHARED / "parity" / "golden", SHARED / "models"
PEER = os.environ.get("SCVI_TOOLS_PYTHON")
Change = Callable[[dict[str, Any]], None]


def spec_of_name(name: str = "SCVI", **config: Any) -> ModelSpec:
    return ModelSpec(
        model=ModelConfig(model_name=name, n_hidden=8, n_latent=3, **config),
        seed=1,
        layer=None,
        var_names=tuple(f"gen-{gene}ü" for gene in range(6)),
        batch=Covariate(key="batch", categories=("b", "a")),
        label=Covariate(key="label", categories=("T", "B", "NK")),
        unlabeled_category="Unknown" if name == "SCANVI" else None,
        categorical_covariates=(),
        continuous_covariates=(),
    )


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """Write a model as scvi-tools lays it out, changed as the test wants."""

    def write(name: str = "SCVI", change: Change | None = None, **config: Any) -> Path:
        spec = spec_of_name(name, **config)
        write_scvi_tools(tmp_path / name, spec.build(), spec, history={"elbo_train": [3.0, 2.5]}, overwrite=True)
        if change is not None:
            file = tmp_path / name / "model.pt"
            content = torch.load(file, weights_only=False)
            change(content)
            torch.save(content, file)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["SCVI", "SCANVI", "LinearSCVI"])
def test_a_written_model_is_read_as_it_was(stored: Callable[..., Path], name: str) -> None:
    spec = spec_of_name(name)
    found = read_scvi_tools(stored(name))
    assert found.spec == spec.model_copy(update={"seed": 0, "lineage": {"scvi_tools": "1.4.2"}})
    assert found.history == {"elbo_train": [3.0, 2.5]}
    assert found.is_trained
    assert found.scvi_version == "1.4.2"
    assert not found.minified
    assert found.cells is None
    for key, value in spec.build().state_dict().items():
        assert torch.equal(found.weights[key], value), key
        assert torch.equal(found.build().state_dict()[key], value), key


def test_files_with_a_prefix_and_cells_beside_them_are_found(tmp_path: Path) -> None:
    path, spec = tmp_path / "model", spec_of_name()
    write_scvi_tools(
        path, spec.build(), spec, is_trained=False, prefix="my_", history={"elbo": pd.DataFrame({"elbo": [2.0, 1.0]})}
    )
    assert is_scvi_tools(path, "my_")
    assert not is_scvi_tools(path)
    assert read_scvi_tools(path, prefix="my_").history == {"elbo": [2.0, 1.0]}
    assert not read_scvi_tools(path, prefix="my_").is_trained
    ad.AnnData(np.ones((1, 1), np.float32)).write_h5ad(path / "my_adata.h5ad")
    assert read_scvi_tools(path, prefix="my_").cells == path / "my_adata.h5ad"
    with pytest.raises(FileNotFoundError):
        read_scvi_tools(path)


def test_metrics_of_pandas_become_plain_lists(stored: Callable[..., Path]) -> None:
    frame = pd.DataFrame({"elbo": [2.0, 1.0]}, index=pd.Index([0, 1], name="epoch"))
    texts = pd.DataFrame({"note": ["a", "b"]})

    def change(content: dict[str, Any]) -> None:
        content["attr_dict"]["history_"] = {"elbo": frame, "object": frame.astype(object), "texts": texts, "none": None}

    assert read_scvi_tools(stored(change=change)).history == {"elbo": [2.0, 1.0], "object": [2.0, 1.0]}


def test_the_three_files_of_before_0_15_are_read(stored: Callable[..., Path], tmp_path: Path) -> None:
    content = torch.load(stored() / "model.pt", weights_only=False)
    setup = {
        "scvi_version": "0.10.0",
        "data_registry": {"batch_indices": {"attr_name": "obs", "attr_key": "_scvi_batch"}},
        "categorical_mappings": {"_scvi_batch": {"original_key": "batch", "mapping": np.array(["b", "a"], object)}},
    }
    options = {"n_hidden": 8, "n_latent": 3, "use_cuda": True, "model_kwargs": {}}
    old = tmp_path / "old"
    old.mkdir()
    torch.save(content["model_state_dict"], old / "model_params.pt")
    (old / "attr.pkl").write_bytes(pickle.dumps({"scvi_setup_dict_": setup, "init_params_": options}))
    np.savetxt(old / "var_names.csv", content["var_names"], fmt="%s", encoding="utf-8")
    found = read_scvi_tools(old)
    assert found.spec.model == ModelConfig(n_hidden=8, n_latent=3)
    assert found.spec.var_names == spec_of_name().var_names
    assert found.spec.batch == spec_of_name().batch
    assert found.scvi_version == "0.10.0"


def without(*names: str) -> Change:
    return lambda content: [content["model_state_dict"].pop(name) for name in names] and None


def setting(**weights: Any) -> Change:
    return lambda content: content["model_state_dict"].update(weights)


def options(**changed: Any) -> Change:
    return lambda content: content["attr_dict"]["init_params_"]["non_kwargs"].update(changed)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("px_r"), r"do not fit.*px_r absent for \(6,\)"),
        (setting(px_r=torch.ones(7)), r"px_r \(7,\) for \(6,\)"),
        (setting(extra=torch.ones(1)), r"extra \(1,\) for none"),
        (setting(extra="text"), "weights are not all tensors"),
        (options(n_latent=4), r"do not fit.*\(3, 8\) for \(4, 8\)"),
        (options(n_hidden=65_536, n_layers=64), "do not fit"),  # 1 TiB of weights, were it built
        (options(dispersion="gene-batch"), r"px_r \(6,\) for \(6, 2\)"),
        (lambda content: content.update(var_names=content["var_names"][:5]), "do not fit"),
        (lambda content: content.update(var_names={"rna": ["a"]}), "genes by modality"),
        (lambda content: content["attr_dict"]["registry_"].update(model_name="TOTALVI"), "a model TOTALVI"),
        (lambda content: content["attr_dict"]["registry_"].pop("field_registries"), "its registry is damaged"),
        (lambda content: content["attr_dict"].pop("registry_"), "no model of scvi-tools"),
        (lambda content: content.pop("attr_dict"), "no model of scvi-tools"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(stored: Callable[..., Path], change: Change, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_scvi_tools(stored(change=change))


def test_labels_that_the_weights_did_not_learn_are_refused(stored: Callable[..., Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        state = content["attr_dict"]["registry_"]["field_registries"]["labels"]["state_registry"]
        state["categorical_mapping"] = np.array(["T", "Unknown"], dtype=object)

    with pytest.raises(ValueError, match=r"do not fit.*\(3, 8\) for \(1, 8\)"):
        read_scvi_tools(stored("SCANVI", change))


def test_weights_that_are_not_numbers_are_kept(stored: Callable[..., Path]) -> None:
    found = read_scvi_tools(stored(change=setting(px_r=torch.full((6,), torch.nan))))
    assert found.weights["px_r"].isnan().all()


def test_a_model_is_replaced_only_where_allowed_and_other_files_stay(stored: Callable[..., Path]) -> None:
    path, spec = stored(), spec_of_name("LinearSCVI")
    with pytest.raises(ValueError, match="overwrite=True"):
        write_scvi_tools(path, spec.build(), spec)
    assert read_scvi_tools(path).spec.model.model_name == "SCVI"
    write_scvi_tools(path, spec.build(), spec, overwrite=True)
    assert read_scvi_tools(path).spec.model.model_name == "LinearSCVI"
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    (path / "model.pt").rename(path / "thesis.docx")
    write_scvi_tools(path, spec.build(), spec, overwrite=True)
    assert {child.name for child in path.iterdir()} == {"model.pt", "thesis.docx"}


def test_nothing_is_there_after_a_write_that_failed(tmp_path: Path) -> None:
    spec = spec_of_name("SCVI", dispersion="gene-label").model_copy(update={"unlabeled_category": "Unknown"})
    with pytest.raises(ValueError, match="cannot load"):
        write_scvi_tools(tmp_path / "model", spec.build(), spec)
    assert not list(tmp_path.iterdir())


def latent(path: Path, cells: Path | ad.AnnData, setup: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Encode all cells with the model in `path`; their categories are in the order of that model."""
    model = read_scvi_tools(path)
    data = open_data(cells, **setup)
    for ours, theirs in zip(
        (data.batch, *data.categorical_covariates), (model.spec.batch, *model.spec.categorical_covariates), strict=True
    ):
        assert (ours is None) == (theirs is None)
        assert ours is None or ours.vocabulary == theirs.categories
    with torch.no_grad():
        qzm, qzv = model.build().encode(rows_minibatch(data, np.arange(data.n_cells)).to("cpu"))
    return qzm.numpy(), qzv.numpy()


@pytest.mark.real_data
@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden cases are not beside the checkout ({GOLDEN})")
def test_every_golden_model_encodes_cells_as_scvi_tools_did(tmp_path: Path) -> None:
    for folder in sorted(path for path in GOLDEN.iterdir() if path.is_dir()):
        expected = np.load(folder / "outputs.npz")
        read = read_scvi_tools(folder)
        write_scvi_tools(tmp_path / folder.name, read.build(), read.spec)
        setup = json.loads((folder / "case.json").read_text())["setup"]
        qzm, qzv = latent(tmp_path / folder.name, folder / "adata.h5ad", setup)
        np.testing.assert_allclose(qzm, expected["qzm"], rtol=1e-4, atol=1e-5, err_msg=folder.name)
        np.testing.assert_allclose(qzv, expected["qzv"], rtol=1e-5, err_msg=folder.name)


@pytest.mark.real_data
@pytest.mark.skipif(not MODELS.is_dir(), reason=f"the old models are not beside the checkout ({MODELS})")
def test_models_of_old_versions_are_read() -> None:
    scanvi = read_scvi_tools(MODELS / "scanvi_1.0.3_pre_logits_fix")
    assert scanvi.spec.label == Covariate(key="labels", categories=("label_2", "label_1"))
    assert scanvi.spec.unlabeled_category == "label_0"
    assert scanvi.spec.batch is None
    assert "classifier" in scanvi.spec.lineage
    assert set(scanvi.history) > {"elbo_train", "train_accuracy"}
    scvi = read_scvi_tools(MODELS / "scvi_0.16.1_pancreas")
    assert scvi.spec.batch is not None
    assert scvi.spec.batch.categories == ("Pancreas CelSeq", "Pancreas Fluidigm C1", "Pancreas inDrop")
    assert scvi.spec.model.use_layer_norm == "both"
    assert scvi.spec.model.use_observed_lib_size
    assert len(scvi.history["train_loss_step"]) == 3


# The rest runs scvi-tools itself, in the environment whose interpreter SCVI_TOOLS_PYTHON names.

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "covariates": (
        "SCVI",
        {"encode_covariates": True, "n_layers": 2},
        {
            "batch_key": "lane",
            "labels_key": "label",
            "size_factor_key": "size",
            "categorical_covariate_keys": ["flag", "site"],
            "continuous_covariate_keys": ["age"],
        },
    ),
    "gene_label": ("SCVI", {"dispersion": "gene-label", "use_observed_lib_size": False}, {"labels_key": "label"}),
    "embedding": (
        "SCVI",
        {"batch_representation": "embedding", "batch_embedding_kwargs": {"embedding_dim": 3}, "log_variational": False},
        {"batch_key": "site", "layer": "counts"},
    ),
    "scanvi": (
        "SCANVI",
        {
            "classifier_parameters": {"n_layers": 2, "n_hidden": 16},
            "latent_distribution": "ln",
            "gene_likelihood": "nb",
        },
        {"batch_key": "lane", "labels_key": "code", "unlabeled_category": -1, "categorical_covariate_keys": ["site"]},
    ),
    "linear": ("LinearSCVI", {"use_batch_norm": False, "bias": True}, {"batch_key": "site", "labels_key": "label"}),
    "minified": ("SCVI", {"n_latent": 4}, {"batch_key": "site"}),
}

MAKE = """
import sys, json, warnings
warnings.filterwarnings("ignore")
import anndata as ad, scvi, torch
out, cases = sys.argv[1], json.loads(sys.argv[2])
for name, (kind, init, setup) in cases.items():
    model_of, cells = getattr(scvi.model, kind), ad.read_h5ad(f"{out}/cells.h5ad")
    model_of.setup_anndata(cells, **setup)
    torch.manual_seed(0)
    model = model_of(cells, **init)
    model.train(1, accelerator="cpu")
    if name == "minified":
        cells.obsm["X_latent_qzm"], cells.obsm["X_latent_qzv"] = model.get_latent_representation(return_dist=True)
        model.minify_adata()
    model.save(f"{out}/made_{name}", save_anndata=name == "minified")
"""

LOAD = """
import sys, json, warnings
warnings.filterwarnings("ignore")
import anndata as ad, numpy as np, scvi
for path, cells, kind, result in json.loads(sys.argv[1]):
    model = getattr(scvi.model, kind).load(path, adata=ad.read_h5ad(cells), accelerator="cpu")
    qzm, qzv = model.get_latent_representation(return_dist=True)
    soft = model.predict(soft=True) if kind == "SCANVI" else None
    names = [] if soft is None else [str(name) for name in soft.columns]
    np.savez(result, qzm=qzm, qzv=qzv, soft=[] if soft is None else soft.to_numpy(), names=names)
"""


def peer(script: str, *arguments: str) -> None:
    done = subprocess.run([PEER, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that scvi-tools trained on cells with columns of every type."""
    path, rng, n = tmp_path_factory.mktemp("peer"), np.random.default_rng(0), 150
    counts = rng.poisson(rng.gamma(1.0, 2.0, (n, 12))).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "lane": rng.integers(0, 3, n),
            "flag": rng.random(n) < 0.5,
            "site": pd.Categorical(rng.choice(["z", "a", "ü"], n), ["z", "ü", "a"]),
            "label": rng.choice(["T", "B"], n),
            "code": rng.choice([-1, 4, 12], n),
            "age": rng.normal(size=n),
            "size": counts.sum(1),
        },
        index=[f"c{row}" for row in range(n)],
    )
    cells = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{gene}" for gene in range(12)]))
    cells.layers["counts"] = counts * 2
    cells.write_h5ad(path / "cells.h5ad")
    peer(MAKE, str(path), json.dumps(CASES))
    return path


needs_peer = pytest.mark.skipif(not PEER, reason="SCVI_TOOLS_PYTHON names no interpreter with scvi-tools 1.4.2")


@needs_peer
@pytest.mark.timeout(1200)
def test_scvi_tools_loads_what_was_read_and_written_and_encodes_the_same(made: Path, tmp_path: Path) -> None:
    obs = ad.read_h5ad(made / "cells.h5ad", backed="r").obs
    jobs, pairs = [], []
    golden = sorted(path for path in GOLDEN.glob("*") if path.is_dir())
    folders = [
        (made / f"made_{name}", made / "cells.h5ad", kind, obs)
        for name, (kind, *_) in CASES.items()
        if name != "minified"
    ]
    folders += [
        (path, path / "adata.h5ad", json.loads((path / "case.json").read_text())["model"], None) for path in golden
    ]
    for folder, cells, kind, table in folders:
        read = read_scvi_tools(folder)
        write_scvi_tools(tmp_path / folder.name, read.build(), read.spec, history=read.history, obs=table)
        results = [tmp_path / f"{folder.name}.{when}.npz" for when in ("before", "after")]
        jobs += [(str(folder), str(cells), kind, str(results[0]))]
        jobs += [(str(tmp_path / folder.name), str(cells), kind, str(results[1]))]
        pairs.append(results)
    peer(LOAD, json.dumps(jobs))
    for before, after in pairs:
        expected, found = np.load(before), np.load(after)
        for key in ("qzm", "qzv", "soft", "names"):
            np.testing.assert_array_equal(found[key], expected[key], err_msg=f"{after.name} {key}")


@needs_peer
@pytest.mark.timeout(1200)
def test_cells_that_scvi_tools_minified_are_read_with_their_model(made: Path) -> None:
    found = read_scvi_tools(made / "made_minified")
    assert found.minified
    assert found.cells is not None
    cells, original = open_minified_h5ad(found.cells, found.spec), ad.read_h5ad(made / "cells.h5ad")
    np.testing.assert_array_equal(cells.library_n, original.X.sum(1))
    assert cells.obs["site"].tolist() == original.obs["site"].tolist()
    with torch.no_grad():
        data = open_data(original, batch_key="site")
        qzm, qzv = found.build().encode(rows_minibatch(data, np.arange(data.n_cells)).to("cpu"))
    np.testing.assert_allclose(cells.qzm_nk, qzm, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cells.qzv_nk, qzv, rtol=1e-4)
