"""Draw what the cost model predicts for GPUs, and how it does on what was measured here."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

GPU, CELLS_EACH = "H100", 1024
_LINES = {400: ("tab:blue", 5), 100: ("tab:orange", 3), 25: ("tab:red", 1)}
"""Color and width, so that those below can be seen."""


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the figure as SVG: one panel for each number of genes, and one of predicted against measured."""
    rows = [row for row in result["model"]["predicted"] if (row["gpu"], row["cells_each"]) == (GPU, CELLS_EACH)]
    genes = sorted({row["genes"] for row in rows})
    mpl.rcParams["svg.hashsalt"] = "dist_scvi"  # the same numbers give the same file
    figure, panels = plt.subplots(1, len(genes) + 1, figsize=(3.2 * (len(genes) + 1), 3.2), layout="constrained")
    for panel, n_genes in zip(panels, genes, strict=False):
        _draw_predictions(panel, [row for row in rows if row["genes"] == n_genes])
        panel.set_title(f"{n_genes:,} genes")
    panels[0].set_ylabel(f"cells/s, {CELLS_EACH:,} cells on each {GPU}")
    panels[0].legend(title="between nodes of 8", fontsize="small")
    _draw_check(panels[-1], result["model"]["check"])
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_predictions(panel: Axes, rows: list[dict[str, Any]]) -> None:
    for network, (color, width) in _LINES.items():
        of_network = [row for row in rows if row["network_gbit"] == network]
        workers = [row["workers"] for row in of_network]
        rates = [row["cells_per_s"] for row in of_network]
        panel.plot(workers, rates, color=color, linewidth=width, label=f"{network} Gb/s")
    read = [row["workers"] * row["cells_each"] / (1e-3 * row["ms"]["reading"]) for row in of_network]
    panel.plot(workers, read, ":", color="gray", label="readers alone")
    panel.set(xscale="log", yscale="log", xticks=workers, xticklabels=workers, xlabel="GPUs")
    panel.minorticks_off()


def _draw_check(panel: Axes, rows: list[dict[str, Any]]) -> None:
    for fitted, marker, label in ((True, "o", "used in the fit"), (False, "x", "held out")):
        chosen = [row for row in rows if row["used_in_fit"] == fitted]
        x, y = ([row[f"{what}_cells_per_s"] for row in chosen] for what in ("measured", "predicted"))
        panel.plot(x, y, marker, label=label)
    top = max(row["measured_cells_per_s"] for row in rows)
    panel.plot([0, top], [0, top], color="gray", linewidth=0.8)
    panel.set(title="on this machine", xlabel="measured cells/s", ylabel="predicted cells/s")
    panel.legend(fontsize="small")
