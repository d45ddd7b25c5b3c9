"""Folders of models: of this package, or of scvi-tools, written and read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.store.names import MANIFEST as ATLAS
from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.network.model_files import (
    check_no_foreign_model_files,
    has_model,
    load_history,
    load_model,
    load_split,
    save_model,
)
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.scvi_tools.model_folder import is_scvi_tools, read_scvi_tools, write_scvi_tools
from dist_scvi.storage.atomic_files import remove_written
from dist_scvi.transfer.scarches import freeze

CELLS = "adata.h5ad"


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A model without its cells."""

    module: VAE
    spec: ModelSpec
    history: dict[str, pd.DataFrame] = field(default_factory=dict)
    is_trained: bool = True
    split: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Masks of the cells in ``train``, ``validation`` and ``test``."""


def check_target(folder: Path, prefix: str, format: str, *, overwrite: bool) -> None:
    """Refuse a folder that a model cannot be written to without loss.

    Raises
    ------
    ValueError
        If it exists and `overwrite` is not set, or files that do not belong to a model would be replaced.
    """
    if format not in ("dist_scvi", "scvi-tools"):
        raise ValueError(f"format={format!r}: 'dist_scvi' or 'scvi-tools' is needed")
    if prefix and (Path(prefix).name != prefix or prefix.startswith(".")):
        raise ValueError(f"prefix={prefix!r} leads out of the folder: the beginning of a file's name is needed")
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists: give another path, or overwrite=True")
    if format == "scvi-tools" or not folder.exists():
        return
    if is_scvi_tools(folder, prefix):
        raise ValueError(
            f"{folder} holds {prefix}model.pt, a model of scvi-tools, which stays: give another path or prefix, or "
            "format='scvi-tools'"
        )
    try:
        check_no_foreign_model_files(folder, prefix)
    except FileExistsError as error:
        raise ValueError(str(error)) from error


def write_model(
    folder: Path,
    saved: SavedModel,
    *,
    prefix: str = "",
    format: str = "dist_scvi",
    obs: pd.DataFrame | None = None,
    minified: bool = False,
) -> None:
    """Write a model to a folder that `check_target` accepts; files that do not belong to a model stay.

    Parameters
    ----------
    obs
        Table of the cells, for ``format="scvi-tools"``.
    minified
        Whether they are minified.
    """
    if format == "dist_scvi":
        plain = {name: json.loads(frame.to_json(orient="split")) for name, frame in saved.history.items()}
        save_model(
            folder,
            saved.module,
            saved.spec,
            history=plain,
            is_trained=saved.is_trained,
            split=saved.split,
            prefix=prefix,
        )
        return
    write_scvi_tools(
        folder,
        saved.module,
        saved.spec,
        history=saved.history,
        obs=obs,
        is_trained=saved.is_trained,
        split=saved.split,
        minified=minified,
        prefix=prefix,
        overwrite=True,
    )
    remove_written(folder, prefix=prefix)  # else `read_model` would find two models


def read_model(folder: Path, *, prefix: str = "") -> SavedModel:
    """Read a model of this package or of scvi-tools. No code in the files is executed.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it contains no model, two models, or a damaged one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: the folder of a model is needed")
    own, foreign = has_model(folder, prefix), is_scvi_tools(folder, prefix)
    if own and foreign:
        raise ValueError(
            f"{folder} holds two models, {prefix}model.pt of scvi-tools and {prefix}spec.json: move one of them to "
            "another folder"
        )
    if foreign:
        return _read_scvi_tools(folder, prefix)
    if not own:
        names = printable(", ".join(sorted(path.name for path in folder.iterdir())[:10])) or "nothing"
        hint = "; it is an atlas: use dist_scvi.open_atlas" if (folder / ATLAS).is_file() else ""
        raise ValueError(f"{folder} holds no model{hint}, but {names}; name what precedes model.pt as prefix")
    module, spec = load_model(folder, prefix=prefix)
    freeze(module, spec)
    plain, is_trained = load_history(folder, prefix=prefix)
    split = load_split(folder, prefix=prefix)
    return SavedModel(module, spec, _read_history(plain, f"history.json of {folder}"), is_trained, split)


def _read_scvi_tools(folder: Path, prefix: str) -> SavedModel:
    found = read_scvi_tools(folder, prefix=prefix)
    history = {name: pd.DataFrame({name: values}).rename_axis("epoch") for name, values in found.history.items()}
    return SavedModel(found.build(), found.spec, history, found.is_trained, found.split)


def _read_history(plain: Mapping[str, Any], where: str) -> dict[str, pd.DataFrame]:
    history: dict[str, pd.DataFrame] = {}
    for name, table in plain.items():
        match table:
            case {"columns": list(columns), "index": list(index), "data": list(rows)}:
                pass
            case _:
                raise ValueError(f"{where} holds no table {printable(name)!r}: restore it from a copy")
        try:
            history[name] = pd.DataFrame(rows, pd.Index(index, name="epoch"), columns)
        except (ValueError, TypeError) as error:  # of pandas, for rows that do not fit the columns
            raise ValueError(f"{where} is damaged at {printable(name)!r}: {printable(error)}") from error
    return history
