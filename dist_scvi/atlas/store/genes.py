"""Genes of an atlas, by the names in the model or by a column of var, such as their symbols.

Shape letters in this file
    g   genes
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.loaders.name_lookup import nearest_names


class GeneNames:
    """Finds genes by name.

    Parameters
    ----------
    var
        Columns of the genes; the index has the names in the model.
    where
        The atlas, for messages.
    """

    def __init__(self, var: pd.DataFrame, where: str) -> None:
        self._var, self._where = var, where
        self._place = {str(name): at for at, name in enumerate(var.index)}
        self._others: dict[str, set[int]] | None = None

    def index(self, genes: Sequence[str]) -> NDArray[np.int64]:
        """Return the index of each gene, shape (g,).

        Raises
        ------
        ValueError
            If one is not known, and then the nearest names are listed; or if a symbol is that of several genes.
        """
        if isinstance(genes, str):
            raise ValueError(f"genes={genes!r} is one text: a list of genes is needed")  # noqa: TRY004
        return np.array([self._find(str(gene)) for gene in genes], dtype=np.int64)

    def has(self, gene: str) -> bool:
        """Return whether `gene` is a name of a gene, or its text in a column."""
        return gene in self._place or gene in self._by_column()

    def _find(self, gene: str) -> int:
        if gene in self._place:
            return self._place[gene]
        found = sorted(self._by_column().get(gene, ()))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(self._var.index[at]) for at in found[:5])
            raise ValueError(f"{gene!r} names {len(found)} genes of {self._where} ({names}): name one of these")
        raise ValueError(f"{self._where} has no gene {gene!r}{self._hint(gene)}")

    def _by_column(self) -> dict[str, set[int]]:
        """Return the genes of each text in the columns of var."""
        if self._others is None:
            others: dict[str, set[int]] = {}
            for key in self._var.columns:
                if self._var[key].dtype.kind in "iufb":
                    continue
                for at, value in enumerate(self._var[key]):
                    if isinstance(value, str) and value:
                        others.setdefault(value, set()).add(at)
            self._others = others  # at last: another thread may ask meanwhile
        return self._others

    def _hint(self, gene: str) -> str:
        texts = [key for key in self._var.columns if self._var[key].dtype.kind not in "iufb"]
        near = nearest_names(gene, list(self._place), {str(key): list(map(str, self._var[key])) for key in texts})
        if near:
            return f": did you mean {', '.join(near)}?"
        columns = ", ".join(map(str, self._var.columns))
        named = f"the names in var ({columns}) and " if columns else ""
        return f": {named}its {len(self._place)} genes begin {', '.join(list(self._place)[:3])}"
