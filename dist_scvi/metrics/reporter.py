"""Show the metrics of a run in a readable form."""

from typing import TextIO

from dist_scvi.metrics.metrics_file import Row
from dist_scvi.progress_reporter import StatusLine, duration


class MetricsReporter:
    """Show the metrics of a run: a status line on a terminal, elsewhere lines of epochs, validations and minutes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._line = StatusLine(stream)

    def __call__(self, row: Row) -> None:
        """Show one line of metrics, but no line of a whole epoch, which repeats earlier ones."""
        if row["kind"] != "epoch":
            self._line.show(describe(row), keep=row["kind"] != "train" or row["step"] % row["steps_per_epoch"] == 0)

    def close(self) -> None:
        """Clear the status line."""
        self._line.close()


def describe(row: Row) -> str:
    """Format a line of metrics, the most important values first: a narrow terminal cuts the rest."""
    done, total = row["step"], row["steps_per_epoch"] * row["max_epochs"]
    head = f"epoch {row['epoch'] + 1}/{row['max_epochs']}  step {done}/{total}"
    terms = f"reconstruction {row['reconstruction']:.2f} + kl {row['kl']:.2f}"
    if "accuracy" in row:
        terms += f"  accuracy {row['accuracy']:.3f}"
    if row["kind"] == "validation":
        ends = "; no longer improving: training stops" if row.get("ends") else ""
        return f"{head}  validation elbo {row['elbo']:.2f} = {terms}{ends}"
    left = (total - done) / max(row["steps_per_s"], 1e-9)
    return (
        f"{head}  elbo {row['elbo']:.2f}  {row['cells_per_s']:,.0f} cells/s  {duration(left)} left  {terms}  "
        f"data wait {100 * row['wait_share']:.0f}%  {row['memory_mib']:,.0f} MiB"
    )
