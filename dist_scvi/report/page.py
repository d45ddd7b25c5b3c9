"""The page of a report: one HTML file that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml

from dist_scvi.report.drawing.panel import Panel
from dist_scvi.report.measure import Measurements, SampleSizes
from dist_scvi.report.subject import Subject
from dist_scvi.report.verdict import Verdict

_ROWS = 20


@dataclass(frozen=True, slots=True)
class Table:
    """A table; without a head its rows are pairs of name and value."""

    title: str
    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """A text that opens on a click."""

    title: str
    text: str
    open: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what belongs to it."""

    title: str
    text: str = ""
    panels: Sequence[Mapping[str, str]] = ()
    tables: Sequence[Table] = ()
    blocks: Sequence[Block] = field(default=())


def build_page(
    subject: Subject,
    found: Measurements,
    verdict: Verdict,
    panels: Sequence[Panel],
    sizes: SampleSizes,
    *,
    footer: str,
) -> str:
    """Return the HTML of a report.

    Raises
    ------
    ValueError
        If jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise ValueError(f"a report needs jinja2: pip install 'dist-scvi[report]' ({error})") from error
    template = files("dist_scvi.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template)
    under = (
        f"{subject.spec.model.model_name} trained on {found.sample.n_cells:,} cells and "
        f"{len(subject.spec.var_names):,} genes"
    )
    return page.render(
        title=subject.title,
        under=under,
        verdict=verdict,
        sections=_sections(subject, found, panels, sizes),
        footer=footer,
    )


def _sections(subject: Subject, found: Measurements, panels: Sequence[Panel], sizes: SampleSizes) -> list[Section]:
    by_name = {panel.name: panel for panel in panels}

    def chosen(*prefixes: str) -> list[dict[str, str]]:
        names = [name for prefix in prefixes for name in by_name if name.startswith(prefix)]
        return [_shown(by_name[name]) for name in names]

    sections = [
        Section("Latent space", _sampling(subject, found), chosen("map_", "latent_use")),
        Section(
            "Integration and conservation",
            "",
            chosen("scores", "batch_leak"),
            _score_tables(found),
        ),
        Section("Labels", "", chosen("label_"), _label_tables(found)),
        Section(
            "Posterior predictive checks",
            "Counts drawn from the model for held-out cells, against the observed ones.",
            chosen("cv_", "zero_", "library", "differential", "donors"),
            _count_tables(found),
        ),
        Section("Training", "", chosen("curve_", "schedule", "throughput", "data_wait")),
    ]
    kept = [section for section in sections if section.panels or section.tables]
    config = yaml.safe_dump(_plain(subject.config), sort_keys=False) if subject.config else ""
    blocks = [Block("Command to train the same model", subject.command, open=True)]
    if config:
        blocks.append(Block("Resolved configuration", config))
    if found.notes:
        blocks.append(Block("Notes", "\n".join(f"- {note}" for note in found.notes), open=True))
    data = Section(
        "Data, split, and lineage", "", (), [Table("Data", _data_rows(subject, found)), _facts(subject)], blocks
    )
    return [*kept, data]


def _shown(panel: Panel) -> dict[str, str]:
    image = f"data:image/svg+xml;base64,{base64.b64encode(panel.svg).decode()}"
    return {"title": panel.title, "caption": panel.caption, "image": image}


def _sampling(subject: Subject, found: Measurements) -> str:
    sample = found.sample
    if sample.is_everything:
        return f"All {sample.n_cells:,} cells."
    near = "all cells of the atlas" if subject.atlas is not None else "the sampled cells"
    return (
        f"{len(sample.row_m):,} of {sample.n_cells:,} cells, sampled from {sample.n_strata} combinations of label and "
        f"batch; the scores weigh them by the cells that they stand for. Neighbours for LISI are searched among {near}."
    )


def _score_tables(found: Measurements) -> list[Table]:
    tables = []
    if found.scores:
        rows = [(name, f"{one.value:.3f}", f"{one.low:.3f} to {one.high:.3f}") for name, one in found.scores.items()]
        tables.append(Table("Scores", rows, ("score", "value", "95 % interval")))
    if found.leaks:
        worst = sorted(found.leaks, key=lambda one: -one.leak)[:_ROWS]
        leaks = [(one.label, f"{one.n_cells:,}", f"{one.linear:.2f}", f"{one.local:.2f}") for one in worst]
        caption = "0: no better than chance; 1: certain. Linear: a logistic regression; local: the nearest cells."
        tables.append(
            Table("Batch predicted from the latent space", leaks, ("label", "cells", "linear", "local"), caption)
        )
    return tables


def _label_tables(found: Measurements) -> list[Table]:
    check = found.labels
    if check is None:
        return []
    rows = [
        ("accuracy", f"{check.accuracy:.3f}"),
        ("F1, mean over labels", f"{check.f1_macro:.3f}"),
        ("calibration error", f"{check.calibration_error:.3f}"),
        ("Brier score", f"{check.brier:.3f}"),
        ("held-out cells", f"{check.n_cells:,}"),
        ("predicted by", check.method),
    ]
    return [Table("Predicted labels", rows)]


def _count_tables(found: Measurements) -> list[Table]:
    tables = []
    if found.counts is not None:
        check = found.counts
        parts = {
            "variation within cells": check.cv_cell,
            "variation of genes": check.cv_gene,
            "zeros of genes": check.zero_gene,
            "log total counts": check.library,
        }
        rows = [(name, f"{one.pearson:.2f}", f"{one.r2:.2f}", f"{one.mae:.3f}") for name, one in parts.items()]
        tables.append(Table("Drawn against observed", rows, ("", "Pearson", "R²", "MAE")))
    if found.donors:
        worst = sorted(found.donors, key=lambda one: one.gain)[:_ROWS]
        rows = [(one.donor, f"{one.n_cells:,}", f"{one.elbo:,.1f}", f"{one.gain:.1%}") for one in worst]
        head = (str(found.donor_key), "cells", "ELBO", "saved")
        tables.append(Table(f"Worst {found.donor_key}", rows, head, "Saved: share of the baseline's loss."))
    return tables


def _data_rows(subject: Subject, found: Measurements) -> list[tuple[str, str]]:
    spec = subject.spec
    rows = [("cells", f"{found.sample.n_cells:,}"), ("genes", f"{len(spec.var_names):,}")]
    if subject.data is not None:
        rows.insert(0, ("store", str(subject.data.store.uri)))
    rows += [(f"{name} cells", f"{n:,}") for name, n in subject.split_sizes.items()]
    for name, covariate in {"batch_key": spec.batch, "labels_key": spec.label}.items():
        if covariate is not None:
            rows.append((name, f"{covariate.key} ({len(covariate.categories)} values)"))
    further = [*(one.key for one in spec.categorical_covariates), *spec.continuous_covariates]
    return [*rows, *([("covariates", ", ".join(further))] if further else [])]


def _facts(subject: Subject) -> Table:
    model = subject.spec.model.model_dump(mode="json")
    shown = ("model_name", "n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood")
    rows = [(key, str(model[key])) for key in shown] + [(key, str(value)) for key, value in subject.facts.items()]
    return Table("Model and run", rows)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value not in ({}, None)}
