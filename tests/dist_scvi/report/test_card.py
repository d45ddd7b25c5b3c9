"""The card has the headings, tables and tags of scvi-hub, and the values of the model."""

import json
import os
import re
import subprocess
from dataclasses import replace

import pytest
import yaml

from dist_scvi.data import synthetic_iid
from dist_scvi.model import SCVI
from dist_scvi.report.card import card_of
from dist_scvi.report.subject import subject_of_model
from dist_scvi.scvi_tools.hub_card import CardDetails

PEER = os.environ.get("SCVI_TOOLS_PYTHON")
HEADINGS = """
import inspect, re, sys
from scvi.hub._template import template
print("\\n".join(re.findall(r"^# .*|<strong>.*</strong>|^\\*\\*.*?\\*\\*", template, re.M)))
"""


@pytest.fixture(scope="module")
def iid() -> SCVI:
    """A model of the data of which the cards of scvi-hub's own tests are."""
    cells = synthetic_iid(seed=0)
    SCVI.setup_anndata(cells, batch_key="batch", labels_key="labels")
    model = SCVI(cells)
    model.train(1, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def card(iid: SCVI, tmp_path_factory: pytest.TempPathFactory) -> str:
    atlas = iid.minify(tmp_path_factory.mktemp("card") / "atlas")
    subject = subject_of_model(iid, {"data": {"uri": "/home/me/cells.zarr"}, "model": {"n_latent": 10}})
    return card_of(replace(subject, atlas=atlas), CardDetails(license="cc-by-4.0", tissues=["lung"]), n_cells=100)


def _table(card: str, head: str) -> dict[str, str]:
    lines = card[card.index(head) :].splitlines()[2:]
    rows = [line for line in lines[: lines.index("")] if line.startswith("|")]
    return dict(tuple(cell.strip() for cell in row.strip("|").split("|"))[:2] for row in rows)


def test_the_header_has_the_tags_by_which_models_are_found(card: str) -> None:
    header = yaml.safe_load(card.split("---")[1])
    assert (header["license"], header["library_name"]) == ("cc-by-4.0", "scvi-tools")
    assert header["tags"][:3] == ["biology", "genomics", "single-cell"]
    keys = dict(tag.split(":") for tag in header["tags"][3:])
    assert keys.keys() == {"model_cls_name", "scvi_version", "anndata_version", "modality", "tissue", "annotated"}
    assert (keys["model_cls_name"], keys["modality"], keys["annotated"]) == ("SCVI", "rna", "True")


def test_the_fields_are_those_of_a_card_of_the_hub(card: str) -> None:
    parameters, setup = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", card, re.S))
    expected = {
        "n_hidden": 128, "n_latent": 10, "n_layers": 1, "dropout_rate": 0.1, "dispersion": "gene",
        "gene_likelihood": "zinb", "latent_distribution": "normal",
    }  # fmt: skip
    assert {key: parameters[key] for key in expected} == expected
    assert (setup["batch_key"], setup["labels_key"]) == ("batch", "labels")
    assert _table(card, "| Registry Key") == {
        "X": "adata.X",
        "batch": "adata.obs['_scvi_batch']",
        "labels": "adata.obs['_scvi_labels']",
        "latent_qzm": "adata.obsm['scvi_latent_qzm']",
        "latent_qzv": "adata.obsm['scvi_latent_qzv']",
        "minify_type": "adata.uns['_scvi_adata_minify_type']",
        "observed_lib_size": "adata.obs['observed_lib_size']",
    }
    assert _table(card, "| Summary Stat Key") == {
        "n_batch": "2", "n_cells": "400", "n_extra_categorical_covs": "0", "n_extra_continuous_covs": "0",
        "n_labels": "3", "n_latent_qzm": "10", "n_latent_qzv": "10", "n_vars": "100",
    }  # fmt: skip
    assert "**Data is Minified**: True" in card


def test_nothing_that_the_model_knows_is_left_to_the_uploader(card: str) -> None:
    assert "Not provided by uploader" not in card
    assert "| Pearson Correlation |" in card
    assert "| label_0 |" in card
    assert "cells.zarr" in card
    assert "/home/me" not in card


@pytest.mark.skipif(not PEER, reason="SCVI_TOOLS_PYTHON names no interpreter with scvi-tools 1.4.2")
def test_the_card_has_all_headings_of_scvi_tools(card: str) -> None:
    done = subprocess.run([str(PEER), "-c", HEADINGS], capture_output=True, text=True, check=True, timeout=250)
    headings = done.stdout.splitlines()
    assert len(headings) > 10
    assert [heading for heading in headings if heading not in card] == []


def test_texts_of_the_user_replace_those_of_the_model(iid: SCVI) -> None:
    text = card_of(subject_of_model(iid, {}), CardDetails(description="Mine."), n_cells=50)
    assert "# Model Description\n\nMine.\n" in text
    assert "**Data is Minified**: False" in text
