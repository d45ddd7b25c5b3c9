"""The card of a model on a hub, with the headings, tables and tags of the cards of scvi-hub.

Layout as in scvi-tools 1.4.2: hub/_template.py, hub/_metadata.py and data/_manager.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
import yaml

from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.scvi_tools.registry_writer import VERSION, init_params_of, minified_fields, registry_of

_UNKNOWN = "Not provided by uploader"
_ABOUT = {
    "SCVI": (
        (
            "scVI is a variational autoencoder of single-cell RNA counts: a latent space that integrates batches, and "
            "the distribution of the counts given the latent space."
        ),
        "[scVI manuscript](https://www.nature.com/articles/s41592-018-0229-2)",
        "models/scvi.html",
    ),
    "SCANVI": (
        (
            "scANVI is scVI with labels of some of the cells: it learns a classifier in the latent space, which "
            "predicts the labels of all others."
        ),
        "[scANVI manuscript](https://www.embopress.org/doi/full/10.15252/msb.20209620)",
        "models/scanvi.html",
    ),
    "LinearSCVI": (
        "LDVAE is scVI with a linear decoder: each latent dimension has a loading for each gene.",
        "[LDVAE manuscript](https://academic.oup.com/bioinformatics/article/36/11/3418/5807606)",
        "models/linearscvi.html",
    ),
}


@dataclass(frozen=True, slots=True)
class CardDetails:
    """What a card says besides what follows from the model; texts are Markdown."""

    description: str = ""
    cell_wise_cv: str = ""
    gene_wise_cv: str = ""
    diff_exp: str = ""
    training_data: str = ""
    training_code: str = ""
    references: str = ""
    license: str | None = None
    modalities: Sequence[str] = ("rna",)
    tissues: Sequence[str] = ()
    more: Mapping[str, str] = field(default_factory=dict)
    """Further rows of the model's properties, by name."""


def hub_card(spec: ModelSpec, *, n_cells: int, minified: bool, details: CardDetails) -> str:
    """Return the card of a model: Markdown after a header in YAML.

    Parameters
    ----------
    n_cells
        Cells that the model was trained on.
    minified
        Whether the cells alongside the model are minified.
    details
        What cannot be known from the model; what is missing reads "Not provided by uploader", as in scvi-hub.
    """
    registry = registry_of(spec, n_cells=n_cells)
    fields = registry["field_registries"] | (minified_fields(spec) if minified else {})
    header: dict[str, Any] = {"library_name": "scvi-tools", "tags": card_tags(spec, details)}
    if details.license:
        header = {"license": details.license, **header}
    about, manuscript, guide = _ABOUT[spec.model.model_name]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False).strip()}\n---\n",
        f"{about}\n\n- [User guide](https://docs.scvi-tools.org/en/stable/user_guide/{guide})\n- {manuscript}\n",
        f"# Model Description\n\n{details.description or _UNKNOWN}\n",
        _metrics(details),
        "# Model Properties\n\nKey parameters of the set-up and the training of the model.\n",
        _folded("Model Parameters", f"Settings of the model:\n{_json(_flat_parameters(spec))}"),
        _folded("Setup Data Arguments", f"Arguments of `setup_anndata`:\n{_json(registry['setup_args'])}"),
        _folded(
            "Data Registry",
            f"Where the model finds its data:\n\n{_registry_table(fields)}\n\n- **Data is Minified**: {minified}",
        ),
        _folded("Summary Statistics", _statistics_table(fields)),
        _folded(
            "Training",
            f"**Training data url**: {details.training_data or _UNKNOWN}\n\n"
            f"**Training Code URL**: {details.training_code or _UNKNOWN}",
        ),
    ]
    if details.more:
        rows = [f"| {name} | {value} |" for name, value in details.more.items()]
        parts.append(_folded("More", "\n".join(["| | |", "|---|---|", *rows])))
    parts.append(f"# References\n\n{details.references or 'To be added...'}\n")
    return "\n".join(parts)


def card_tags(spec: ModelSpec, details: CardDetails) -> list[str]:
    """Return the tags by which scvi-hub finds models."""
    return [
        "biology",
        "genomics",
        "single-cell",
        f"model_cls_name:{spec.model.model_name}",
        f"scvi_version:{VERSION}",
        f"anndata_version:{version('anndata')}",
        *(f"modality:{modality}" for modality in details.modalities),
        *(f"tissue:{tissue}" for tissue in details.tissues),
        f"annotated:{spec.label is not None}",
    ]


def _metrics(details: CardDetails) -> str:
    variation = (
        "How well counts drawn from the model vary between cells, and between genes. Below a squared Pearson "
        "correlation of 0.4 of cells, drawn counts should not be used; the latent space may still be.\n\n"
        f"**Cell-wise Coefficient of Variation**:\n\n{details.cell_wise_cv or _UNKNOWN}\n\n"
        f"**Gene-wise Coefficient of Variation**:\n\n{details.gene_wise_cv or _UNKNOWN}"
    )
    expression = (
        "Each label against all other cells by Wilcoxon's test, in drawn as in observed counts: F1 of the top genes, "
        "agreement of fold changes, and areas under the curves.\n\n"
        f"**Differential expression**:\n\n{details.diff_exp or _UNKNOWN}"
    )
    folded = [
        _folded("Coefficient of variation", variation),
        _folded("Differential expression metric", expression),
    ]
    return "\n".join(["# Metrics\n", *folded])


def _folded(title: str, text: str) -> str:
    return f"<details>\n<summary><strong>{title}</strong></summary>\n\n{text}\n\n</details>\n"


def _flat_parameters(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of the class in one table, as the cards of scvi-hub have them."""
    parameters = init_params_of(spec.model)
    flat = dict(parameters["non_kwargs"])
    for nested in parameters["kwargs"].values():
        flat |= nested
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in flat.items()}


def _json(values: Mapping[str, Any]) -> str:
    return f"```json\n{json.dumps(values, indent=4, default=str)}\n```"


def _registry_table(fields: Mapping[str, Any]) -> str:
    lines = [
        "| Registry Key             | scvi-tools Location                  |",
        "|--------------------------|--------------------------------------|",
    ]
    for key, registered in fields.items():
        place = registered["data_registry"]
        if place:
            name = f"['{place['attr_key']}']" if place["attr_key"] is not None else ""
            lines.append(f"| {key:<25} | {'adata.' + place['attr_name'] + name:<36} |")
    return "\n".join(lines)


def _statistics_table(fields: Mapping[str, Any]) -> str:
    sizes = {name: size for registered in fields.values() for name, size in registered["summary_stats"].items()}
    lines = ["| Summary Stat Key          | Value |", "|--------------------------|-------|"]
    return "\n".join([*lines, *(f"| {name:<25} | {sizes[name]} |" for name in sorted(sizes))])
