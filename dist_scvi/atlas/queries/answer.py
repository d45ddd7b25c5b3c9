"""The answer to a query, with the information needed to check and to repeat it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes

_PLOTS = {"expression": "dots", "differential_expression": "volcano", "markers": "dots", "cells": "violin"}
_WRITERS = (".csv", ".json", ".parquet")
_PROVENANCE, _INDEX = b"dist_scvi", b"dist_scvi_index"
"""Keys of the metadata of an Arrow schema: the provenance, and the names of the columns of the index."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A table and its provenance. The same query of the same atlas returns the same bits."""

    kind: str
    """Name of the query: ``"expression"``, ``"differential_expression"``, ``"markers"`` and so on."""
    table: pd.DataFrame
    """Estimates, with columns of standard errors (`se` or `..._se`) or of interval ends if these are estimated."""
    engine: str
    """Engine that computed the table."""
    batch: str
    """Batch with which cells were decoded: ``"own"``, a name, or ``"average"``; ``""`` if nothing was decoded."""
    n_cells: Mapping[str, int]
    """Cells of each group."""
    atlas: str
    """Path or URL of the atlas."""
    digest: str
    """SHA-256 of the manifest of the atlas, which covers every byte of it."""
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments of the query, as plain values."""
    notes: tuple[str, ...] = ()
    """Limitations of the numbers: groups smaller than the sample, effects of composition."""

    @property
    def provenance(self) -> dict[str, Any]:
        """All fields except the table, as plain values."""
        return {
            "query": self.kind,
            "engine": self.engine,
            "batch": self.batch,
            "n_cells": dict(self.n_cells),
            "atlas": self.atlas,
            "digest": self.digest,
            "seed": self.seed,
            "parameters": dict(self.parameters),
            "notes": list(self.notes),
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return the table; its ``attrs`` hold the provenance."""
        table = self.table.copy()
        table.attrs.update(self.provenance)
        return table

    def to_arrow(self) -> "pa.Table":
        """Return the table as Arrow; the metadata of its schema hold the provenance as JSON under ``dist_scvi``."""
        import pyarrow as pa

        table = pa.Table.from_pandas(flat_table(self.table), preserve_index=False)
        index = [] if isinstance(self.table.index, pd.RangeIndex) else list(self.table.index.names)
        described = {
            _PROVENANCE: json.dumps(self.provenance, default=str).encode(),
            _INDEX: json.dumps(index, default=str).encode(),
        }
        return table.replace_schema_metadata({**(table.schema.metadata or {}), **described})

    @classmethod
    def from_arrow(cls, table: "pa.Table") -> "Answer":
        """Return the answer that `to_arrow` wrote.

        Raises
        ------
        ValueError
            If the table was written by something else.
        """
        try:
            found = json.loads(table.schema.metadata[_PROVENANCE])
            index = json.loads(table.schema.metadata[_INDEX])
            frame = table.to_pandas()
            if index:
                frame = frame.set_index([name or "index" for name in index]).rename_axis(index)
            keys = ("engine", "batch", "n_cells", "atlas", "digest", "seed", "parameters")
            given = {key: found[key] for key in keys}
            return cls(kind=found["query"], table=frame, notes=tuple(found["notes"]), **given)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"the table is no answer of an atlas: {error!r}") from error

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the table as CSV, JSON (a list of records) or parquet, by the ending of `path`.

        Raises
        ------
        ValueError
            If the ending is another one, or the file exists and `overwrite` is not set.
        """
        target = Path(path)
        if target.suffix not in _WRITERS:
            raise ValueError(f"{target} ends with {target.suffix!r}: {', '.join(_WRITERS)} can be written")
        if target.exists() and not overwrite:
            raise ValueError(f"{target} exists: give another path, or overwrite")
        if target.suffix == ".parquet":
            from pyarrow import parquet

            parquet.write_table(self.to_arrow(), target)
        elif target.suffix == ".json":
            flat_table(self.table).to_json(target, orient="records", indent=1)
        else:
            flat_table(self.table).to_csv(target, index=False)

    def plot(self, kind: str | None = None, *, n_genes: int = 20, ax: "Axes | None" = None) -> "Axes":
        """Draw the answer with matplotlib.

        Parameters
        ----------
        kind
            ``"dots"`` for expression or markers by group, ``"volcano"`` for differential expression, ``"violin"`` for
            expression of single cells; by default what fits.
        n_genes
            Genes to show, or to name in a volcano plot.
        ax
            Axes to draw on; by default those of a new figure.

        Raises
        ------
        ValueError
            If the answer cannot be drawn in this way.
        ImportError
            If matplotlib is not installed: ``pip install 'dist-scvi[plot]'``.
        """
        from dist_scvi.atlas.queries.plots import draw

        chosen = kind or _PLOTS.get(self.kind)
        if chosen is None:
            raise ValueError(f"an answer to {self.kind!r} has no plot: use to_pandas()")
        return draw(self.table, chosen, n_genes=n_genes, ax=ax)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"{self._headline()}\n{self.table.head(10).to_string()}"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(self._headline())}</p>{self.table.head(10).to_html()}"

    def _headline(self) -> str:
        groups = ", ".join(f"{name}: {n:,}" for name, n in list(self.n_cells.items())[:4])
        more = f", ... ({len(self.n_cells)} groups)" if len(self.n_cells) > 4 else ""
        batch = f", batch {self.batch}" if self.batch else ""
        notes = "".join(f"\n  note: {note}" for note in self.notes)
        return f"{self.kind} of {len(self.table):,} rows by {self.engine}{batch}; cells {groups}{more}{notes}"


def flat_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its index as columns; a plain range of numbers is removed."""
    if isinstance(table.index, pd.RangeIndex):
        return table
    names = [name or "index" for name in table.index.names]
    return table.rename_axis(names).reset_index()
