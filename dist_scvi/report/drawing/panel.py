"""A figure of the report: what it shows, what good looks like, and its drawing as SVG and PNG."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
TRAIN, VALIDATION, THIRD = "#0b6e99", "#d9480f", "#6b46c1"
GOOD, WEAK, BAD = "#2b8a3e", "#b7791f", "#c92a2a"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "path",  # fonts of the reader's machine would change widths
    "svg.hashsalt": "dist_scvi",
}
_PNG_DPI = 160


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure."""

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes


def draw_panel(
    name: str,
    title: str,
    caption: str,
    draw: Callable[["Axes"], None],
    *,
    size: tuple[float, float] = (4.2, 2.9),
) -> Panel:
    """Draw a figure of `size` inches, small enough that its text can be read on a phone.

    Raises
    ------
    ValueError
        If matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"a report needs matplotlib: pip install 'dist-scvi[report]' ({error})") from error
    with rc_context(cast("Any", _STYLE)):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None}, dpi=_PNG_DPI)
        figure.savefig(png, format="png", dpi=_PNG_DPI)
    return Panel(name, title, caption, svg.getvalue(), png.getvalue())
