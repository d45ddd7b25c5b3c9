"""Model folders of scvi-tools: reading without executing code from them, and writing for scvi-tools to load."""

import io
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dist_scvi.loaders.arrays.printable import printable
from dist_scvi.network.model_files import differing_names
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.scvi_tools.registry import spec_of_attributes
from dist_scvi.scvi_tools.registry_values import scalars_at, shorten, table_at
from dist_scvi.scvi_tools.registry_writer import attributes_of
from dist_scvi.scvi_tools.safe_unpickle import Foreign, read_pickle, read_torch
from dist_scvi.storage.atomic_files import write_file

_MODEL = "model.pt"
_LEGACY = ("model_params.pt", "attr.pkl", "var_names.csv")
_CELLS = "adata.h5ad"
SPLITS = ("train", "validation", "test")
_SPARSE = 100


@dataclass(frozen=True, slots=True)
class ScviModel:
    """A model that scvi-tools saved."""

    spec: ModelSpec
    weights: dict[str, Tensor]
    history: dict[str, list[float]]
    """Metrics by name, with one value for each epoch or step."""
    is_trained: bool
    scvi_version: str | None
    minified: bool
    """Whether its cells were minified; `minified_h5ad.open_minified_h5ad` reads them."""
    cells: Path | None
    """The ``adata.h5ad`` that was saved with the model."""
    split: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Masks of the cells in train, validation and test, up to the last row of any; empty if not in the file."""

    def build(self) -> VAE:
        """Build the network with these weights, for inference."""
        module = self.spec.build()
        module.load_state_dict(self.weights)
        module.eval()
        return module


def is_scvi_tools(path: Path, prefix: str = "") -> bool:
    """Return whether the folder `path` has the model files of scvi-tools."""
    return any((path / f"{prefix}{name}").is_file() for name in (_MODEL, _LEGACY[0]))


def read_scvi_tools(path: Path, *, prefix: str = "") -> ScviModel:
    """Read a folder saved by SCVI, SCANVI or LinearSCVI of scvi-tools 0.8 to 1.5. Nothing in it is executed.

    Parameters
    ----------
    path
        The folder, with ``model.pt``, or before 0.15 ``model_params.pt``, ``attr.pkl`` and ``var_names.csv``.
    prefix
        Prefix of the names of its files.

    Raises
    ------
    FileNotFoundError
        If there is no model.
    ValueError
        If a file is damaged or refers to code, the model is of another class or has options that are not supported, or
        its weights do not fit its options.
    """
    attributes, var_names, stored = _read_parts(path, prefix)
    weights = {name: value for name, value in stored.items() if name != "pyro_param_store"}
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"the model in {path} cannot be read: its weights are not all tensors")
    try:
        spec = spec_of_attributes(attributes, var_names, weights)
        minified = "minify_type" in table_at(table_at(attributes, "registry_"), "field_registries")
        split = _read_split(attributes)
    except ValueError as error:
        raise ValueError(f"the model in {path} cannot be read: {error}") from error
    _check_weights(path, spec, weights)
    cells = path / f"{prefix}{_CELLS}"
    return ScviModel(
        spec,
        weights,
        _history(attributes.get("history_")),
        bool(attributes.get("is_trained_", True)),
        spec.lineage["scvi_tools"],
        minified,
        cells if cells.is_file() else None,
        split,
    )


def write_scvi_tools(
    path: Path,
    module: VAE,
    spec: ModelSpec,
    *,
    history: Mapping[str, ArrayLike | pd.DataFrame] | None = None,
    obs: pd.DataFrame | None = None,
    is_trained: bool = True,
    split: Mapping[str, NDArray[np.bool_]] | None = None,
    minified: bool = False,
    prefix: str = "",
    overwrite: bool = False,
) -> None:
    """Write a file that scvi-tools 1.4.2 loads with ``load(path, adata=...)``; a failure leaves no partial file.

    Parameters
    ----------
    history
        Metrics under the names of scvi-tools: a value for each epoch or step, saved as a list.
    obs
        Table of the cells that the model will be loaded with; needed if a covariate is a column of numbers or booleans.
    is_trained
        Whether the model is trained; scvi-tools warns if an untrained model is queried.
    split
        Cells in ``train``, ``validation`` and ``test``, as masks over all cells.
    minified
        Whether the cells that the model will be loaded with are minified.
    prefix
        Prefix of the file name.
    overwrite
        Write into an existing folder and replace a model in it; other files are kept.

    Raises
    ------
    ValueError
        If scvi-tools has no such model, or `path` exists.

    Notes
    -----
    Not saved is what scvi-tools has no field for: the seed; `objective`, which only training uses; and the layer
    ``raw/X``, whose counts must be in ``X`` for scvi-tools. It needs every label present, and missing labels filled in.
    """
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another path, or allow it to be replaced with overwrite=True")
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    attributes = attributes_of(spec, is_trained=is_trained, obs=obs, minified=minified) | {
        "history_": {name: np.ravel(np.asarray(values, float)).tolist() for name, values in (history or {}).items()},
        **{f"{name}_indices_": np.flatnonzero(mask_n) for name, mask_n in (split or {}).items()},
    }
    content = {
        "model_state_dict": OrderedDict(state),
        "var_names": np.array(spec.var_names, dtype=object),
        "attr_dict": attributes,
    }
    packed = io.BytesIO()
    torch.save(content, packed)
    write_file(path / f"{prefix}{_MODEL}", packed.getvalue())


def _read_parts(path: Path, prefix: str) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Read attributes, names of genes, and weights."""
    legacy = [path / f"{prefix}{name}" for name in _LEGACY]
    if (path / f"{prefix}{_MODEL}").exists() or not legacy[0].exists():
        found = read_torch(path / f"{prefix}{_MODEL}")
        keys = ("attr_dict", "var_names", "model_state_dict")
        attributes, var_names, weights = map(found.get, keys) if isinstance(found, dict) else (None, None, None)
    else:
        weights, attributes = read_torch(legacy[0]), read_pickle(legacy[1])
        if not legacy[2].is_file():
            raise ValueError(f"{legacy[2]} is missing or no regular file: the names of the model's genes are needed")
        var_names = legacy[2].read_text(encoding="utf-8").splitlines()
    if not isinstance(attributes, dict) or not isinstance(weights, dict):
        raise ValueError(f"{path} holds no model of scvi-tools: a table of attributes and one of weights are needed")  # noqa: TRY004
    if not isinstance(var_names, list | np.ndarray):
        raise ValueError(f"the model in {path} has genes by modality or none at all: one list of genes is needed")  # noqa: TRY004
    try:
        return attributes, [str(name) for name in scalars_at({"var_names": var_names}, "var_names")], weights
    except ValueError as error:
        raise ValueError(f"the model in {path} cannot be read: {error}") from error


def _check_weights(path: Path, spec: ModelSpec, weights: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):  # allocates nothing: a small file may describe a network larger than memory
        module = spec.build()
    differ = differing_names(module, weights)
    if differ:
        needed = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        shapes = [
            f"{printable(name, 80)} {tuple(weights[name].shape) if name in weights else 'absent'} "
            f"for {needed.get(name, 'none')}"
            for name in differ[:4]
        ]
        raise ValueError(f"the weights in {path} do not fit its options and registry: {', '.join(shapes)}")


def _read_split(attributes: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    """Read the rows of training, validation and test; empty if the model has none."""
    rows: dict[str, NDArray[np.int64]] = {}
    for name in SPLITS:
        key = f"{name}_indices_"
        row_n = np.asarray(scalars_at(attributes, key))
        if len(row_n) and (row_n.dtype.kind not in "iu" or row_n.min() < 0):
            raise ValueError(f"its {key} hold {shorten(row_n[:3].tolist())}: numbers of rows are needed")
        if attributes.get(key) is not None:
            rows[name] = row_n.astype(np.int64)
    n_cells = max((int(row_n.max(initial=-1)) + 1 for row_n in rows.values()), default=0)
    if n_cells > _SPARSE * sum(map(len, rows.values())):  # one large row number must not allocate a terabyte
        raise ValueError(f"its split names row {n_cells - 1} and few others: it is damaged")
    split = {name: np.zeros(n_cells, dtype=bool) for name in rows}
    for name, row_n in rows.items():
        split[name][row_n] = True
    return split


def _history(stored: Any) -> dict[str, list[float]]:
    """Read the metrics; those that pandas stored in an unknown layout are left out."""
    read: dict[str, list[float]] = {}
    for name, column in stored.items() if isinstance(stored, dict) else ():
        values = _numbers(_frame_values(column) if isinstance(column, Foreign) else column)
        if values is not None:
            read[str(name)] = values
    return read


def _numbers(column: Any) -> list[float] | None:
    """Return the numbers of a list, or of a list or array with one row, as floats; None for anything else."""
    values = column.ravel().tolist() if isinstance(column, np.ndarray) else column
    while isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        return None
    return [float(value) for value in values]


def _frame_values(frame: Foreign) -> Any:
    """Return the values of a pickled frame with one column; None for another layout.

    The state is read directly: to let pandas rebuild the frame would execute code that the file names.
    """
    match frame.state:
        case {"_mgr": Foreign() as blocks} | {"_data": Foreign() as blocks}:
            pass
        case _:
            return None
    match blocks.arguments, blocks.state:
        case [[Foreign(arguments=[values, *_]), *_], *_], _:
            return values
        case _, [_, [values, *_], *_]:  # pandas before 1.3
            return values
    return None
