"""Plots of answers: dots for expression by group, a volcano for differential expression, violins for cells.

Shape letters in this file
    g   genes
    q   groups
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 10


def draw(table: pd.DataFrame, kind: str, *, n_genes: int, ax: "Axes | None") -> "Axes":
    """Draw the table of an answer.

    Raises
    ------
    ValueError
        If there is no such plot, or the table lacks a column that it needs.
    ImportError
        If matplotlib is not installed.
    """
    plots: dict[str, Callable[[pd.DataFrame, int, Any], None]] = {"dots": _dots, "volcano": _volcano, "violin": _violin}
    if kind not in plots:
        raise ValueError(f"kind={kind!r}: {', '.join(map(repr, plots))} can be drawn")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'dist-scvi[plot]'") from error
    if ax is None:
        # Without pyplot, the figure is freed with the answer and needs no display; a notebook still shows it.
        ax = Figure(figsize=(6, 4), layout="constrained").add_subplot()
    plots[kind](table, n_genes, ax)
    return ax


def _dots(table: pd.DataFrame, n_genes: int, ax: "Axes") -> None:
    """Draw a dot for each gene and group: its colour is the mean, its size the fraction of cells."""
    if not {"group", "gene"} <= set(table.columns) or not {"mean", "scale1"} & set(table.columns):
        raise ValueError("dots need an answer with groups and genes: expression(by=...) or markers(by=...)")
    value = "mean" if "mean" in table.columns else "scale1"
    sizes = [name for name in ("fraction", "detected", "non_zeros_proportion1") if name in table.columns]
    genes = list(dict.fromkeys(table["gene"]))[:n_genes]
    shown = table[table["gene"].isin(genes)]
    groups = list(dict.fromkeys(shown["group"]))
    x, y = shown["gene"].map(genes.index), shown["group"].map(groups.index)
    area = 20 + 180 * shown[sizes[0]].fillna(0) if sizes else 100
    top = shown.groupby("gene")[value].transform("max")
    dots = ax.scatter(x, y, s=area, c=shown[value] / top.where(top > 0, 1), cmap="Reds", vmin=0, vmax=1)
    ax.set_xticks(range(len(genes)), genes, rotation=90)
    ax.set_yticks(range(len(groups)), groups)
    ax.figure.colorbar(dots, ax=ax, label=f"{value}, relative to the largest of the gene")
    if sizes:
        ax.set_title(f"size: {sizes[0].replace('_', ' ')}", fontsize="small")


def _volcano(table: pd.DataFrame, n_genes: int, ax: "Axes") -> None:
    """Draw effect against evidence for each gene, and label the strongest."""
    if not {"lfc_mean", "proba_de"} <= set(table.columns):
        raise ValueError("a volcano needs an answer of differential_expression(mode='change')")
    flags = [name for name in table.columns if name.startswith("is_de_fdr")]
    found = table[flags[0]].to_numpy(dtype=bool) if flags else np.zeros(len(table), dtype=bool)
    ax.scatter(table["lfc_mean"], table["proba_de"], s=6, c=np.where(found, "tab:red", "tab:gray"))
    for gene, row in table.head(min(n_genes, _NAMED)).iterrows():
        ax.annotate(str(gene), (row["lfc_mean"], row["proba_de"]), fontsize="x-small")
    ax.set_xlabel("mean log2 fold change")
    ax.set_ylabel("probability of differential expression")


def _violin(table: pd.DataFrame, n_genes: int, ax: "Axes") -> None:
    """Draw the distribution of each gene over the cells."""
    genes = list(table.select_dtypes("number").columns)[:n_genes]
    if not genes or len(table) < 2:
        raise ValueError("violins need an answer with single cells: expression(..., per_cell=True)")
    ax.violinplot([table[gene].to_numpy() for gene in genes], showmedians=True)
    ax.set_xticks(range(1, len(genes) + 1), genes, rotation=90)
    ax.set_ylabel("normalized expression")
