"""Figures of the training: losses, schedules, throughput, and the use of latent dimensions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dist_scvi.metrics.metrics_file import Row
from dist_scvi.report.drawing.panel import BAD, MUTED, THIRD, TRAIN, VALIDATION, Panel, draw_panel
from dist_scvi.report.latent_use import LatentUse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOSSES = {
    "elbo": (
        "elbo",
        "ELBO (loss)",
        (
            "Both curves fall and level off, the one of validation close above the other. A gap that widens means that "
            "training cells are learnt by heart; a curve that still falls, that training ended early."
        ),
    ),
    "reconstruction": (
        "reconstruction_loss",
        "Reconstruction",
        (
            "The cost of the counts given the latent space. It falls and levels off as the ELBO does: it is the larger "
            "part of it."
        ),
    ),
    "kl": (
        "kl_local",
        "KL divergence",
        (
            "What the latent space says of a cell, in nats. It moves early and settles well above 1; near 0 the latent "
            "space is empty."
        ),
    ),
}


def draw_training(history: Mapping[str, pd.DataFrame], rows: Sequence[Row], starts: int | None) -> Iterator[Panel]:
    """Draw the curves that are known."""
    for name, (metric, title, caption) in _LOSSES.items():
        curves = {split: history.get(f"{metric}_{split}") for split in ("train", "validation")}
        if any(curve is not None and len(curve) for curve in curves.values()):

            def losses(ax: "Axes", curves: Mapping[str, pd.DataFrame | None] = curves) -> None:
                for (split, curve), color in zip(curves.items(), (TRAIN, VALIDATION), strict=True):
                    if curve is not None and len(curve):
                        marker = "o" if len(curve) < 3 else None
                        ax.plot(curve.index + 1, curve.iloc[:, 0], label=split, color=color, marker=marker)
                _limit_to_tail(ax, [curve for curve in curves.values() if curve is not None])
                ax.set(xlabel="epoch", ylabel="nats per cell")
                ax.legend()

            yield draw_panel(f"curve_{name}", title, caption, losses)
    if "lr" in history or "kl_weight" in history:
        yield draw_panel(
            "schedule",
            "Learning rate and KL weight",
            "The KL weight rises to 1 in the first part of training and the learning rate never rises: after that, "
            "the loss is the true one.",
            lambda ax: _schedule(ax, history),
        )
    steps = [row for row in rows if row["kind"] == "train"]
    if steps:
        yield draw_panel(
            "throughput",
            "Throughput",
            "Cells per second over all workers. It is level; a slow start is compilation. Steps downwards mean that a "
            f"disk, the network or another process slows it. {_told_starts(starts)}",
            lambda ax: _throughput(ax, steps),
        )
        yield draw_panel(
            "data_wait",
            "Waiting for data",
            "Share of the time in which the slowest worker waited for cells. Below 10 % the loader keeps up; above, "
            "pack "
            "the store (dist-scvi pack) or raise data.memory_mib.",
            lambda ax: _wait(ax, steps),
        )


def draw_latent_use(use: LatentUse) -> Panel:
    """Draw the divergence by dimension, those that are not used in red."""

    def bars(ax: "Axes") -> None:
        order = np.argsort(-use.kl_k)
        colors = [BAD if k in use.collapsed else THIRD for k in order]
        ax.bar(range(len(order)), use.kl_k[order], color=colors)
        shown = range(len(order)) if len(order) <= 16 else range(0, len(order), len(order) // 12 + 1)
        ax.set_xticks(list(shown), [f"z{order[at]}" for at in shown], fontsize=8)
        ax.set(ylabel="KL, nats", xlabel="latent dimension")
        ax.grid(visible=False, axis="x")

    named = ", ".join(f"z{k}" for k in use.collapsed)
    told = f"Not used (red): {named}." if named else "None is unused."
    return draw_panel(
        "latent_use",
        "KL by latent dimension",
        f"What each dimension says of a cell. Several dimensions are well above 0; unused ones do no harm. {told}",
        bars,
    )


def _limit_to_tail(ax: "Axes", curves: Sequence[pd.DataFrame]) -> None:
    """Leave the first epochs out of the vertical range if they would flatten the rest."""
    values = [curve.iloc[:, 0].to_numpy(dtype=np.float64) for curve in curves]
    if min(map(len, values)) < 8:
        return
    later = np.concatenate([value[2:] for value in values])
    everything = np.concatenate(values)
    if np.ptp(everything) > 3 * np.ptp(later) > 0:
        margin = 0.08 * np.ptp(later)
        ax.set_ylim(later.min() - margin, later.max() + margin)
        ax.set_title("the first two epochs are out of range", fontsize=8, color=MUTED)


def _schedule(ax: "Axes", history: Mapping[str, pd.DataFrame]) -> None:
    lines = []
    if "lr" in history:
        curve = history["lr"]
        lines += ax.plot((np.arange(len(curve)) + 1) / len(curve), curve.iloc[:, 0], color=TRAIN, label="learning rate")
        ax.set_ylabel("learning rate")
        ax.set_ylim(bottom=0)
    if "kl_weight" in history:
        right = ax.twinx()
        curve = history["kl_weight"]
        place = (curve.index + 1) / (curve.index[-1] + 1)
        lines += right.plot(place, curve.iloc[:, 0], color=THIRD, label="KL weight")
        right.set_ylabel("KL weight")
        right.set_ylim(0, 1.05)
        right.grid(visible=False)
        right.spines["right"].set_visible(True)
    ax.set_xlabel("share of the training")
    ax.legend(handles=lines, loc="center right")


def _throughput(ax: "Axes", steps: Sequence[Row]) -> None:
    ax.plot([row["step"] for row in steps], [row["cells_per_s"] for row in steps], color=TRAIN)
    ax.set_ylim(bottom=0)
    ax.set(xlabel="step", ylabel="cells per second")


def _wait(ax: "Axes", steps: Sequence[Row]) -> None:
    known = [row for row in steps if "wait_share" in row]
    ax.plot([row["step"] for row in known], [100 * row["wait_share"] for row in known], color=VALIDATION)
    ax.set_ylim(0, 100)
    ax.set(xlabel="step", ylabel="waiting, % of time")


def _told_starts(starts: int | None) -> str:
    if starts is None:
        return ""
    return "The run was never restarted." if starts <= 1 else f"The run was started {starts} times."
