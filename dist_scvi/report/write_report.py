"""Write the report of a run or a model: HTML, JSON, figures, and a file for MultiQC."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from dist_scvi.report.drawing.cells import draw_leaks, draw_maps, draw_scores
from dist_scvi.report.drawing.checks import draw_counts, draw_donors, draw_labels
from dist_scvi.report.drawing.panel import Panel
from dist_scvi.report.drawing.training import draw_latent_use, draw_training
from dist_scvi.report.measure import FAST, Measurements, SampleSizes, measure
from dist_scvi.report.page import build_page
from dist_scvi.report.results import multiqc_section, plain_results
from dist_scvi.report.subject import Subject
from dist_scvi.report.verdict import Verdict, reach_verdict
from dist_scvi.storage.atomic_files import write_file


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """Files of a report, and its verdict."""

    html: Path
    json: Path
    figures: Path
    """Folder with each figure as SVG and PNG."""
    multiqc: Path | None
    verdict: Verdict


def write_report(
    subject: Subject,
    out: Path,
    *,
    columns: Sequence[str] = (),
    sizes: SampleSizes | None = None,
    fast: bool = False,
    multiqc: bool = False,
    seed: int = 0,
) -> WrittenReport:
    """Measure a model and write what was found.

    Parameters
    ----------
    out
        The HTML file. Alongside it are written ``NAME.json``, the folder ``NAME_figures``, and with `multiqc`
        ``NAME_mqc.json``. Files of an earlier report are replaced.
    columns
        obs columns that colour the map.
    sizes
        Numbers of cells; by default those of `SampleSizes`, or with `fast` those for continuous integration.

    Raises
    ------
    ValueError
        If `out` is not the name of an HTML file, a column does not exist, or a package is not installed.
    """
    if out.suffix != ".html":
        raise ValueError(f"{out}: the name of a report ends with .html")
    sizes = sizes or (FAST if fast else SampleSizes())
    found = measure(subject, sizes, columns=columns, seed=seed)
    verdict = reach_verdict(subject, found)
    panels = list(draw_panels(subject, found))
    page = build_page(subject, found, verdict, panels, sizes, footer=_footer(sizes, seed))
    results = plain_results(subject, found, verdict, sizes)
    out.parent.mkdir(parents=True, exist_ok=True)
    figures = out.with_name(f"{out.stem}_figures")
    figures.mkdir(exist_ok=True)
    for panel in panels:
        write_file(figures / f"{panel.name}.svg", panel.svg)
        write_file(figures / f"{panel.name}.png", panel.png)
    target = out.with_suffix(".json")
    write_file(target, json.dumps(results, indent=1).encode())
    summary = out.with_name(f"{out.stem}_mqc.json") if multiqc else None
    if summary is not None:
        write_file(summary, json.dumps(multiqc_section(subject, found), indent=1).encode())
    write_file(out, page.encode())  # last: a report that is there is whole
    return WrittenReport(out, target, figures, summary, verdict)


def draw_panels(subject: Subject, found: Measurements) -> Iterator[Panel]:
    """Draw all figures for which there is something to show."""
    spec, sample = subject.spec, found.sample
    of = f"{len(sample.row_m):,} of {sample.n_cells:,} cells." if not sample.is_everything else "All cells."
    roles = {covariate.key: role for role, covariate in (("batch", spec.batch), ("label", spec.label)) if covariate}
    of_map = f"{len(found.xy_m2):,} of {sample.n_cells:,} cells."
    yield from draw_maps(found.xy_m2, found.columns, of_map, roles)
    yield draw_latent_use(found.use)
    if found.scores:
        yield draw_scores(found.scores, of)
    if found.leaks:
        yield draw_leaks(found.leaks)
    if found.labels is not None:
        yield from draw_labels(found.labels)
    if found.counts is not None:
        yield from draw_counts(found.counts)
    if found.donors and found.donor_key:
        yield draw_donors(found.donors, found.donor_key)
    starts = subject.facts.get("starts")
    yield from draw_training(subject.history, subject.rows, None if starts is None else int(starts))


def _footer(sizes: SampleSizes, seed: int) -> str:
    profile = "the fast profile" if sizes.fast else "the full profile"
    return (
        f"Made by dist_scvi {version('dist_scvi')} on {datetime.now(UTC):%Y-%m-%d} with {profile}: at most "
        f"{sizes.cells:,} cells for scores and {sizes.mapped:,} of them for maps, {sizes.held_out:,} held-out and as "
        f"many training cells for losses, {sizes.counted:,} cells with {sizes.draws} draws for counts; seed {seed}. "
        "All numbers are in the JSON file alongside this page."
    )
