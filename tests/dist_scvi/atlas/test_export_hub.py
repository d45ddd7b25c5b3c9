"""A folder of scvi-hub holds what scvi-tools needs, and scvi-tools 1.4.2 agrees with the atlas."""

import json
import os
import subprocess

import numpy as np
import pytest

from dist_scvi.atlas.atlas import open_atlas
from dist_scvi.atlas.export_hub import write_scvi_hub
from dist_scvi.atlas.import_minified import import_minified
from dist_scvi.model import SCANVI, SCVI

PEER = os.environ.get("SCVI_TOOLS_PYTHON")
"""Interpreter of an environment with scvi-tools 1.4.2."""

LOAD = """
import sys, warnings
warnings.filterwarnings("ignore")
import numpy as np, scvi.hub
hub = scvi.hub.HubModel(sys.argv[1])
model = hub.model
assert "library_name: scvi-tools" in str(hub.model_card)
assert model.minified_data_type == "latent_posterior_parameters", model.minified_data_type
qzm, qzv = model.get_latent_representation(return_dist=True)
model.module.qz = None
z = np.asarray(qzm)
for key in ("scvi_latent_qzv", "scanvi_latent_qzv"):
    if key in model.adata.obsm:
        model.adata.obsm[key] = np.full_like(z, 1e-12)  # scvi-tools draws even a single sample
expression = model.get_normalized_expression(n_samples=1)
np.savez(sys.argv[2], qzm=qzm, qzv=qzv, expression=expression.to_numpy(), names=list(model.adata.obs_names))
"""


@pytest.fixture(scope="module")
def scanvi(adata, tmp_path_factory):
    """An atlas of SCANVI, some of whose labels are missing, with a batch of whole numbers."""
    cells = adata.copy()
    cells.obs["label"] = cells.obs["label"].where(np.arange(403) % 7 > 0)
    cells.obs["lane"] = np.arange(403) % 3 * 10
    SCANVI.setup_anndata(cells, labels_key="label", unlabeled_category="none", batch_key="lane")
    model = SCANVI(cells, n_hidden=8, n_latent=3)
    model.train(1, enable_progress_bar=False)
    return model.minify(tmp_path_factory.mktemp("scanvi") / "atlas")


def test_the_folder_is_that_of_a_minified_model(atlas, tmp_path):
    write_scvi_hub(atlas, tmp_path / "hub")
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        *("README.md", "_scvi_required_metadata.json", "adata.h5ad", "model.pt")
    ]
    metadata = json.loads((tmp_path / "hub" / "_scvi_required_metadata.json").read_text())
    assert (metadata["model_cls_name"], metadata["scvi_version"]) == ("SCVI", "1.4.2")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: scvi-tools\n")
    assert atlas.digest in card
    again = import_minified(tmp_path / "hub", tmp_path / "again")
    rows = again.rows_named(list(atlas.obs_names()))
    np.testing.assert_array_equal(again.read_latent(rows)[0], atlas.read_latent()[0])
    with pytest.raises(FileExistsError, match="allow it to be replaced"):
        write_scvi_hub(atlas, tmp_path / "hub")
    (tmp_path / "hub" / "notes.txt").write_text("mine")
    write_scvi_hub(atlas, tmp_path / "hub", card="---\n---\nours\n", overwrite=True)
    assert (tmp_path / "hub" / "README.md").read_text().endswith("ours\n")
    assert (tmp_path / "hub" / "notes.txt").read_text() == "mine"


def test_a_folder_of_something_else_and_a_model_that_cannot_be_minified_are_refused(atlas, adata, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"README\.md of something else"):
        write_scvi_hub(atlas, tmp_path / "mine", overwrite=True)
    cells = adata.copy()
    SCVI.setup_anndata(cells)
    with pytest.warns(UserWarning, match="untrained"):
        latent = SCVI(cells, n_hidden=8, n_latent=2, use_observed_lib_size=False).minify(tmp_path / "latent")
    with pytest.raises(ValueError, match="latent library size"):
        write_scvi_hub(latent, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


@pytest.mark.skipif(not PEER, reason="SCVI_TOOLS_PYTHON names no interpreter with scvi-tools 1.4.2")
@pytest.mark.parametrize("kind", ["SCVI", "SCANVI"])
def test_scvi_tools_opens_the_folder_and_agrees(kind, atlas, scanvi, tmp_path):
    found = open_atlas(atlas.uri) if kind == "SCVI" else scanvi
    write_scvi_hub(found, tmp_path / "hub")
    done = subprocess.run(
        [PEER, "-c", LOAD, str(tmp_path / "hub"), str(tmp_path / "said.npz")],
        capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = np.load(tmp_path / "said.npz")
    rows = found.rows_named(list(said["names"]))
    np.testing.assert_array_equal(said["qzm"], found.read_latent(rows)[0])
    np.testing.assert_allclose(said["qzv"], found.read_latent(rows)[1], rtol=1e-6)
    ours = found.get_normalized_expression(indices=rows).to_numpy()
    np.testing.assert_allclose(said["expression"], ours, rtol=1e-3, atol=1e-7)
