"""The estimated cost of a query."""

from dataclasses import dataclass

READ_BYTES_PER_S = 5e8
"""Speed of a disk or an object store, assumed low."""


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """The estimated cost of a query."""

    query: str
    engine: str
    cells: int
    """Cells that are chosen."""
    decoded: int
    """Cells that are decoded, each batch apart."""
    bytes: int
    """Bytes that are read."""
    seconds: float
    """On this machine."""

    def __str__(self) -> str:
        return (
            f"{self.query} by {self.engine}: {self.cells:,} cells, {self.decoded:,} decoded, "
            f"{self.bytes / 2**20:,.1f} MiB read, about {self.seconds:.2g} s"
        )
