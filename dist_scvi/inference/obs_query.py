"""pandas query expressions over the obs of an AnnData or the obs columns of a store.

Shape letters in this file
    n   cells
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.loaders.arrays.obs_columns import Categorical
from dist_scvi.loaders.cell_store import CellStore, open_column
from dist_scvi.loaders.read_limits import PAGE_ROWS


def queried(cells: pd.DataFrame | CellStore, text: str) -> NDArray[np.bool_]:
    """Return a mask of the cells for which `text` is true, shape (n,).

    Parameters
    ----------
    cells
        obs, or a store. From a store, only columns whose names occur in `text` are read, in pages.
    text
        An expression of ``pandas.DataFrame.query``, such as ``"cell_type == 'B' and n_genes > 500"``.

    Raises
    ------
    ValueError
        If `text` cannot be parsed, names a missing column, or does not result in a boolean for each cell.
    """
    obs = cells if isinstance(cells, pd.DataFrame) else _named_columns(cells, text)
    try:
        chosen_n = np.asarray(obs.eval(text))
    except Exception as error:
        columns = map(str, cells.columns) if isinstance(cells, pd.DataFrame) else cells.obs_columns()
        raise ValueError(
            f"{text!r} cannot be answered ({error}): a condition over obs is needed, whose columns are "
            f"{', '.join(columns)}"
        ) from error
    if chosen_n.dtype != bool or chosen_n.shape != (len(obs),):
        raise ValueError(
            f"{text!r} is no condition, it gives {chosen_n.dtype}: one such as \"cell_type == 'B'\" is needed"
        )
    return chosen_n


def _named_columns(store: CellStore, text: str) -> pd.DataFrame:
    """Read the columns whose names occur in `text`."""
    # A substring search may read a column that is not used, but never misses one, and needs no parser of the language.
    columns = {key: _column(store, key) for key in store.obs_columns() if key in text}
    index = store.obs_names(0, store.n_cells) if "index" in text else range(store.n_cells)
    return pd.DataFrame(columns, index=pd.Index(index))


def _column(store: CellStore, key: str) -> Any:
    column = open_column(store, key)
    if isinstance(column, Categorical):
        return _categories(column, store.n_cells)
    stored = column.stored
    pages = range(0, store.n_cells, PAGE_ROWS)
    return np.concatenate([np.asarray(stored[at : min(at + PAGE_ROWS, store.n_cells)]) for at in pages])


def _categories(column: Categorical, n_cells: int) -> Any:
    """Read a column in the smallest type for its codes; categories ``True`` and ``False`` become booleans."""
    code_n: NDArray[np.signedinteger[Any]] = np.empty(n_cells, dtype=np.min_scalar_type(-len(column.vocabulary) - 1))
    for start in range(0, n_cells, PAGE_ROWS):
        stop = min(start + PAGE_ROWS, n_cells)
        code_n[start:stop] = column.codes(start, stop)
    if set(column.vocabulary) <= {"True", "False"} and (code_n >= 0).all():
        return np.array([name == "True" for name in column.vocabulary])[code_n]
    return pd.Categorical.from_codes(code_n, pd.Index(column.vocabulary))
