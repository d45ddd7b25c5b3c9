"""The latent posterior and obs columns of an atlas, added to a TileDB-SOMA experiment of the same cells.

Shape letters in this file
    n   cells
    k   latent dimensions
"""

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.store.atlas_store import AtlasStore
from dist_scvi.atlas.store.names import OWN_COLUMNS, QZM, QZV
from dist_scvi.loaders.stores.soma_tables import CELL_NAMES

_JOINID = "soma_joinid"
_CELLS_AT_ONCE = 1 << 18


def write_soma(
    atlas: AtlasStore,
    uri: str,
    *,
    measurement: str = "RNA",
    obs_names_column: str | None = None,
    columns: Sequence[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Add ``obsm/scvi_latent_qzm``, ``obsm/scvi_latent_qzv`` and obs columns to an experiment.

    Cells are matched by name. The arrays are sparse, as the embeddings of the CELLxGENE Census: a cell of the
    experiment that is not in the atlas has no entries, and missing values in the columns. All of obs
    is in memory.

    Parameters
    ----------
    uri
        The experiment.
    measurement
        Its measurement that receives the arrays.
    obs_names_column
        Column of its obs with the names of cells; by default ``obs_id`` or another usual one, else the soma_joinid.
    columns
        obs columns of the atlas to add; by default those that the experiment lacks.
    overwrite
        Replace arrays and columns that exist.

    Raises
    ------
    ValueError
        If tiledbsoma is not installed, `uri` is no experiment, a name does not exist there, a cell of the atlas is not
        in it, or an array or column exists.
    """
    try:
        import tiledbsoma
        from tiledbsoma import io as soma_io
    except ImportError as error:
        raise ValueError("TileDB-SOMA needs another package: pip install dist-scvi[soma]") from error
    try:
        with tiledbsoma.open(uri) as experiment:
            joinid_n, obs = _match(atlas, experiment, uri, obs_names_column)
            added = _columns(atlas, obs, columns, uri, overwrite=overwrite)
            _check_arrays(experiment, measurement, uri, overwrite=overwrite)
    except (tiledbsoma.DoesNotExistError, tiledbsoma.SOMAError) as error:
        raise ValueError(f"{uri} cannot be opened as a TileDB-SOMA experiment: {error}") from error
    # obs is replaced as a whole by tiledbsoma, which refuses what it cannot store before it changes anything.
    if added:
        place_n = pd.Index(joinid_n).get_indexer(pd.Index(obs[_JOINID]))
        values = atlas.obs.to_pandas(added, index=False)
        for key in added:
            taken = values[key].take(np.maximum(place_n, 0)).reset_index(drop=True)
            obs[key] = taken.where(pd.Series(place_n >= 0))
        with tiledbsoma.Experiment.open(uri, "w") as experiment:
            soma_io.update_obs(experiment, obs)
    with tiledbsoma.Experiment.open(uri, "d") as experiment:
        obsm = experiment.ms[measurement].obsm if "obsm" in experiment.ms[measurement] else {}
        for key in {QZM, QZV} & set(obsm):
            del obsm[key]
    with tiledbsoma.Experiment.open(uri, "w") as experiment:
        _write_arrays(atlas, experiment.ms[measurement], joinid_n, int(obs[_JOINID].max()) + 1)


def _match(
    atlas: AtlasStore, experiment: Any, uri: str, obs_names_column: str | None
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Return the soma_joinid of each cell of the atlas, and obs of the experiment."""
    if experiment.soma_type != "SOMAExperiment":
        raise ValueError(f"{uri} is a {experiment.soma_type}: an experiment is needed")
    obs: pd.DataFrame = experiment.obs.read().concat().to_pandas()
    usual = next((name for name in CELL_NAMES if name in obs), _JOINID)
    column = usual if obs_names_column is None else obs_names_column
    if column not in obs:
        raise ValueError(f"obs of {uri} has no column '{column}': it has {', '.join(map(str, obs.columns))}")
    names = pd.Index(obs[column].astype(str))
    if not names.is_unique:
        raise ValueError(f"obs column '{column}' of {uri} names several cells {names[names.duplicated()][0]!r}")
    place_n = names.get_indexer(pd.Index(atlas.obs_names()))
    missing = np.flatnonzero(place_n < 0)
    if len(missing):
        first = ", ".join(map(str, atlas.obs_names(missing[:3])))
        raise ValueError(
            f"{len(missing)} of {atlas.n_cells} cells of the atlas are not in {uri} by obs column '{column}', such as "
            f"{first}: name the column with their names (obs_names_column)"
        )
    return obs[_JOINID].to_numpy()[place_n], obs


def _columns(
    atlas: AtlasStore, obs: pd.DataFrame, columns: Sequence[str] | None, uri: str, *, overwrite: bool
) -> list[str]:
    """Return the columns to add."""
    if columns is None:
        return [key for key in atlas.obs.columns() if key not in obs and key not in OWN_COLUMNS]
    for key in columns:
        atlas.obs.kind(key)
    present = [key for key in columns if key in obs]
    if present and not overwrite:
        raise ValueError(f"obs of {uri} has {', '.join(present)} already: leave them out, or overwrite")
    return list(columns)


def _check_arrays(experiment: Any, measurement: str, uri: str, *, overwrite: bool) -> None:
    if measurement not in experiment.ms:
        raise ValueError(f"{uri} has no measurement '{measurement}': it has {', '.join(sorted(experiment.ms.keys()))}")
    found = experiment.ms[measurement]
    present = [key for key in (QZM, QZV) if "obsm" in found and key in found.obsm]
    if present and not overwrite:
        raise ValueError(f"{uri} has obsm/{', '.join(present)} already: overwrite to replace them")


def _write_arrays(atlas: AtlasStore, measurement: Any, joinid_n: NDArray[np.int64], n_obs: int) -> None:
    """Write latent mean and variance, some cells at a time."""
    import pyarrow as pa

    obsm = measurement.obsm if "obsm" in measurement else measurement.add_new_collection("obsm")
    arrays = []
    for key in (QZM, QZV):
        # An own place for each: the files of a replaced array stay, and TileDB creates none in their place.
        place = f"{key}-{secrets.token_hex(4)}"
        arrays.append(obsm.add_new_sparse_ndarray(key, uri=place, type=pa.float32(), shape=(n_obs, atlas.n_latent)))
    for rows in atlas.chunks(_CELLS_AT_ONCE):
        order_n = np.argsort(joinid_n[rows], kind="stable")
        row_e = np.repeat(joinid_n[rows][order_n], atlas.n_latent)
        column_e = np.tile(np.arange(atlas.n_latent), len(order_n))
        for array, value_nk in zip(arrays, atlas.read_latent(rows), strict=True):
            parts = {"soma_dim_0": row_e, "soma_dim_1": column_e, "soma_data": value_nk[order_n].ravel()}
            array.write(pa.Table.from_pydict(parts))
    for array in arrays:
        array.close()
