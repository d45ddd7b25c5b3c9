"""Figures of the latent space: maps of cells, scores, and the probe for leaks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.report.batch_probe import LabelLeak
from dist_scvi.report.drawing.panel import BAD, GOOD, THIRD, TRAIN, WEAK, Panel, draw_panel
from dist_scvi.report.measure import ColoredColumn
from dist_scvi.report.scores.scores import INTEGRATION, Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {
    "ilisi_knn": "iLISI",
    "clisi_knn": "cLISI",
    "kbet_per_label": "kBET",
    "graph_connectivity": "graph connectivity",
    "bras": "BRAS",
    "isolated_labels": "isolated labels",
    "nmi_ari_cluster_labels_kmeans_nmi": "NMI (k-means)",
    "nmi_ari_cluster_labels_kmeans_ari": "ARI (k-means)",
    "silhouette_label": "silhouette of labels",
    "integration": "integration",
    "conservation": "conservation",
}
_LEGEND, _SHOWN_LABELS = 12, 20
_MAP = (4.2, 4.0)


def draw_maps(
    xy_m2: NDArray[np.float32], columns: Sequence[ColoredColumn], of: str, roles: Mapping[str, str]
) -> Iterator[Panel]:
    """Draw the map coloured by each column, and the density of the cells."""
    good = {
        "batch": "Colours are mixed everywhere: cells of one kind lie together whatever their batch.",
        "label": "Each colour is an island or a part of one, and related labels are neighbours.",
    }
    for place, column in enumerate(columns):
        caption = good.get(roles.get(column.name, ""), "Technical columns are mixed, biological ones form regions.")
        yield draw_panel(
            f"map_{place}_{_plain(column.name)}",
            f"UMAP by {column.name}",
            f"{of} {caption}",
            lambda ax, column=column: _map(ax, xy_m2, column),  # type: ignore[misc]
            size=_MAP,
        )
    yield draw_panel(
        "map_density",
        "UMAP, density of cells",
        f"{of} Dark places hold many cells. Islands of few cells may be rare types, doublets or damaged cells.",
        lambda ax: _density(ax, xy_m2),
        size=_MAP,
    )


def draw_scores(scores: Mapping[str, Score], of: str) -> Panel:
    """Draw the scores with their intervals."""

    def bars(ax: "Axes") -> None:
        names = list(scores)[::-1]
        for place, name in enumerate(names):
            score = scores[name]
            mean = name in ("integration", "conservation")
            color = TRAIN if name in INTEGRATION or name == "integration" else THIRD
            ax.barh(place, score.value, color=color, alpha=1 if mean else 0.55, height=0.7)
            ax.plot([score.low, score.high], [place, place], color="#1f2933", linewidth=1.2)
            ax.annotate(f"{score.value:.2f}", (1.02, place), va="center", fontsize=8, annotation_clip=False)
        ax.set_yticks(range(len(names)), [_NAMES[name] for name in names])
        ax.set_xlim(0, 1)
        ax.grid(visible=False, axis="y")

    return draw_panel(
        "scores",
        "Integration (blue) and conservation (violet)",
        f"{of} Names and definitions of scib-metrics; 1 is best, lines are 95 % bootstrap intervals. Integration above "
        "0.6 and conservation above 0.6 are usual for good models; compare models on the same data only.",
        bars,
        size=(4.2, 3.6),
    )


def draw_leaks(leaks: Sequence[LabelLeak]) -> Panel:
    """Draw how well batches are predicted within each label, the worst first."""
    shown = sorted(leaks, key=lambda one: -one.leak)[:_SHOWN_LABELS][::-1]

    def bars(ax: "Axes") -> None:
        for place, leak in enumerate(shown):
            color = GOOD if leak.leak < 0.25 else WEAK if leak.leak < 0.5 else BAD
            ax.barh(place, leak.leak, color=color, height=0.7)
        ax.set_yticks(range(len(shown)), [_short(leak.label) for leak in shown])
        ax.set_xlim(0, 1)
        ax.set_xlabel("batch predicted: 0 by chance, 1 with certainty")
        ax.grid(visible=False, axis="y")

    more = f" The worst {len(shown)} of {len(leaks)} labels." if len(leaks) > len(shown) else ""
    return draw_panel(
        "batch_leak",
        "Batch told from the latent space, by label",
        "Balanced accuracy above chance of a linear model and of the nearest cells, the larger one. Bars are short: "
        "the "
        f"latent space does not know the batch.{more}",
        bars,
        size=(4.2, max(1.8, 0.9 + 0.22 * len(shown))),
    )


def _map(ax: "Axes", xy_m2: NDArray[np.float32], column: ColoredColumn) -> None:
    _frame(ax)
    size = float(np.clip(12_000 / len(xy_m2), 1.0, 12.0))
    if column.categories is None:
        order = np.argsort(column.values_m)
        dots = ax.scatter(
            xy_m2[order, 0],
            xy_m2[order, 1],
            c=column.values_m[order],
            s=size,
            cmap="viridis",
            linewidths=0,
            rasterized=True,
        )
        ax.figure.colorbar(dots, ax=ax, shrink=0.6)
        return
    codes = column.values_m.astype(np.int64)
    present = [code for code, _ in _by_size(codes)]
    colors = _colors(len(present))
    color_of = np.full((len(column.categories) + 1, 4), (0.85, 0.85, 0.85, 1.0))
    for code, color in zip(present, colors, strict=True):
        color_of[code] = color
    # Drawn in a random order: with one category after another the last would hide the others.
    order = np.random.default_rng(0).permutation(len(codes))
    ax.scatter(xy_m2[order, 0], xy_m2[order, 1], c=color_of[codes[order]], s=size, linewidths=0, rasterized=True)
    named = present[:_LEGEND]
    for code in named:
        ax.scatter([], [], color=color_of[code], s=24, label=_short(column.categories[code]))
    if len(present) > len(named):
        ax.scatter([], [], color="none", label=f"and {len(present) - len(named)} more")
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=2 if len(named) > 3 else 3,
        handletextpad=0.2,
        columnspacing=0.8,
    )


def _density(ax: "Axes", xy_m2: NDArray[np.float32]) -> None:
    _frame(ax)
    ax.hexbin(*xy_m2.T, gridsize=60, bins="log", cmap="Blues", mincnt=1, linewidths=0.1, rasterized=True)


def _frame(ax: "Axes") -> None:
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _by_size(codes: NDArray[np.int64]) -> list[tuple[int, int]]:
    values, sizes = np.unique(codes[codes >= 0], return_counts=True)
    return sorted(zip(values.tolist(), sizes.tolist(), strict=True), key=lambda pair: -pair[1])


def _colors(n: int) -> Any:
    from matplotlib import colormaps

    if n <= 10:
        return [colormaps["tab10"](place) for place in range(n)]
    if n <= 20:
        return [colormaps["tab20"](place) for place in range(n)]
    return [colormaps["hsv"](place / n) for place in range(n)]


def _short(text: str, length: int = 22) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _plain(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text)[:40]
