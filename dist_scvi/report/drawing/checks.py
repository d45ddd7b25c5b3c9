"""Figures of the checks: predicted labels, drawn counts, donors."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.criticism.check import LEAST_R2, CountCheck
from dist_scvi.report.drawing.panel import BAD, MUTED, THIRD, TRAIN, VALIDATION, Panel, draw_panel
from dist_scvi.report.label_check import LabelCheck
from dist_scvi.report.measure import DonorLoss

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 20


def draw_labels(check: LabelCheck) -> Iterator[Panel]:
    """Draw confusion, reliability and abstention."""
    of = f"Labels of {check.n_cells:,} held-out cells, predicted by {check.method}."
    n = min(len(check.labels), _SHOWN)
    more = f" The {n} largest of {len(check.labels)} labels." if len(check.labels) > n else ""
    yield draw_panel(
        "label_confusion",
        "Label confusion",
        f"{of} Rows are known labels and sum to 1. A dark diagonal is good; dark cells beside it are labels that the "
        f"latent space does not tell apart.{more}",
        lambda ax: _confusion(ax, check, n),
        size=(4.2, 3.9),
    )
    yield draw_panel(
        "label_reliability",
        "Reliability of label confidences",
        f"{of} Points on the diagonal: a confidence is the share that is right. Below it the predictor is too sure. "
        f"Mean distance (expected calibration error) {check.calibration_error:.3f}; below 0.05 is good.",
        lambda ax: _reliability(ax, check),
    )
    yield draw_panel(
        "label_abstention",
        "Accuracy if the least certain are left out",
        f"{of} The curve starts near 1 and stays there for long: uncertain cells are those that would be wrong, and "
        "leaving "
        "them to a person pays.",
        lambda ax: _abstention(ax, check),
    )


def draw_counts(check: CountCheck) -> Iterator[Panel]:
    """Draw observed against drawn counts."""
    moments = check.moments
    of = f"{len(moments.row_n):,} cells, {check.n_samples} draws of the counts of each."
    yield _against(
        "cv_cell",
        "Variation of counts within cells",
        f"{of} Points along the diagonal are good. The squared Pearson correlation is {check.cv_cell.pearson**2:.2f}; "
        "below "
        f"{LEAST_R2} scvi-hub advises not to use drawn counts.",
        moments.cv_cell_n,
        moments.cv_cell_drawn_n,
        "coefficient of variation",
    )
    yield _against(
        "cv_gene",
        "Variation of counts across cells, by gene",
        f"{of} Points along the diagonal are good: drawn genes vary as observed ones do. Pearson "
        f"{check.cv_gene.pearson:.2f}, "
        "usually above 0.8.",
        moments.cv_gene_g,
        moments.cv_gene_drawn_g,
        "coefficient of variation",
        log=True,
    )
    yield _against(
        "zero_fraction",
        "Zeros by gene",
        f"{of} Share of cells in which a gene is 0. Points along the diagonal: the likelihood explains the zeros. "
        "Above it "
        "the model draws too many.",
        moments.zero_gene_g,
        moments.zero_gene_drawn_g,
        "share of zeros",
    )
    found, expected = check.library_coverage
    yield _against(
        "library",
        "Total counts",
        f"{of} Points along the diagonal. Of the observed totals {found:.0%} are within the range of the draws, "
        f"{expected:.0%} "
        "are expected; far fewer: drawn totals vary too little or are shifted.",
        moments.library_n,
        moments.library_drawn_ns.mean(axis=1),
        "total count",
        log=True,
    )
    if check.groups is not None and len(check.groups):
        yield _groups(check.groups, of)


def draw_donors(donors: Sequence[DonorLoss], key: str) -> Panel:
    """Draw the gain over the baseline by donor, the worst first."""
    shown = sorted(donors, key=lambda one: one.gain)[:_SHOWN][::-1]

    def bars(ax: "Axes") -> None:
        gains = [100 * one.gain for one in shown]
        ax.barh(range(len(shown)), gains, color=[BAD if gain <= 0 else TRAIN for gain in gains], height=0.7)
        ax.set_yticks(range(len(shown)), [one.donor[:22] for one in shown])
        ax.set_xlabel("loss saved against the baseline, %")
        ax.grid(visible=False, axis="y")

    return draw_panel(
        "donors",
        f"Held-out cells by {key}",
        f"How much better than the baseline the model predicts the cells of each {key}, the worst at the bottom. Bars "
        "of "
        f"similar length are good; a short one is a {key} unlike the others.",
        bars,
        size=(4.2, max(1.8, 0.9 + 0.22 * len(shown))),
    )


def _confusion(ax: "Axes", check: LabelCheck, n: int) -> None:
    largest = np.argsort(-check.confusion_ll.sum(axis=1))[:n]
    part = check.confusion_ll[np.ix_(largest, largest)]
    total = check.confusion_ll[largest].sum(axis=1, keepdims=True)
    ax.imshow(part / np.maximum(total, 1), cmap="Blues", vmin=0, vmax=1)
    names = [check.labels[at][:16] for at in largest]
    ax.set_xticks(range(n), names, rotation=90, fontsize=7)
    ax.set_yticks(range(n), names, fontsize=7)
    ax.set(xlabel="predicted", ylabel="known")
    ax.grid(visible=False)


def _reliability(ax: "Axes", check: LabelCheck) -> None:
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1)
    area = 15 + 150 * check.bin_cells / check.bin_cells.max()
    ax.plot(check.bin_confidence, check.bin_accuracy, color=TRAIN, linewidth=1)
    ax.scatter(check.bin_confidence, check.bin_accuracy, s=area, color=TRAIN, alpha=0.7)
    ax.set_xlim(0, 1.02)
    ax.set_ylim(0, 1.05)
    ax.set(xlabel="confidence", ylabel="share that is right")


def _abstention(ax: "Axes", check: LabelCheck) -> None:
    ax.plot(100 * check.answered, check.answered_accuracy, color=THIRD)
    low = float(check.answered_accuracy.min())
    ax.set_ylim(max(0.0, low - 0.05), 1.01)
    ax.set(xlabel="cells answered, the most certain first, %", ylabel="accuracy")


def _against(
    name: str,
    title: str,
    caption: str,
    observed: NDArray[np.float64],
    drawn: NDArray[np.float64],
    what: str,
    *,
    log: bool = False,
) -> Panel:
    def points(ax: "Axes") -> None:
        known = ~np.isnan(drawn) & ((observed > 0) & (drawn > 0) if log else True)
        x, y = observed[known], drawn[known]
        ax.scatter(
            x,
            y,
            s=float(np.clip(6_000 / max(1, len(x)), 1.5, 8)),
            color=TRAIN,
            alpha=0.4,
            linewidths=0,
            rasterized=True,
        )
        if len(x):
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            ax.plot(ends, ends, color=VALIDATION, linewidth=1)
        if log:
            ax.set_xscale("log")
            ax.set_yscale("log")
        ax.set(xlabel=f"observed {what}", ylabel=f"drawn {what}")

    return draw_panel(name, title, caption, points)


def _groups(groups: pd.DataFrame, of: str) -> Panel:
    shown = groups.sort_values("n_cells", ascending=False).head(_SHOWN)[::-1]

    def bars(ax: "Axes") -> None:
        place = np.arange(len(shown))
        for offset, (column, label, color) in enumerate(
            (
                ("gene_f1", "F1 of top genes", TRAIN),
                ("pr_auc", "AUPRC", THIRD),
                ("lfc_pearson", "fold changes", VALIDATION),
            )
        ):
            ax.plot(
                shown[column].clip(lower=0), place + 0.2 * (offset - 1), "o", color=color, label=label, markersize=5
            )
        ax.set_yticks(place, [str(name)[:22] for name in shown["group"]])
        ax.set_xlim(-0.02, 1.02)
        ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=3, columnspacing=0.8, handletextpad=0.1)

    return draw_panel(
        "differential_expression",
        "Differential expression in drawn counts",
        f"{of} Each label against all others by Wilcoxon's test, in drawn as in observed counts. Points near 1 are "
        "good: the "
        "same genes, with the same fold changes.",
        bars,
        size=(4.2, max(2.2, 1.2 + 0.26 * len(shown))),
    )
