"""A model together with the cells it is asked about: which cells, on which worker; what it is; saved and loaded.

`SCVI`, `SCANVI` and `LinearSCVI` are built in steps: `OpenedModel` (this file), `LatentModel` (what the encoder says),
`ExpressionModel` (what the decoder says), and the three models themselves.

Shape letters in this file
    n   cells
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import read_h5ad
from numpy.typing import NDArray

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.minify import minify
from dist_scvi.atlas.store.names import MANIFEST as ATLAS
from dist_scvi.config.schema import ModelConfig
from dist_scvi.inference.cell_selection import Cells, Selection, select
from dist_scvi.inference.encode_decode import LatentCells, latent_cells
from dist_scvi.loaders.data import CellData
from dist_scvi.loaders.order.plan import Plan, Split, split_rows
from dist_scvi.network.fit_data import fit_to_spec, open_for
from dist_scvi.network.model_files import load_history, load_model, save_model
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.scvi_tools.model_folder import is_scvi_tools, read_scvi_tools, write_scvi_tools
from dist_scvi.storage.folder_manifest import MANIFEST
from dist_scvi.transfer.scarches import freeze
from dist_scvi.world import World, choose_device, worker_device

if TYPE_CHECKING:
    from anndata import AnnData


class OpenedModel:
    """What the models have in common: cells, network, place among workers, files."""

    model_name: ClassVar[Literal["SCVI", "SCANVI", "LinearSCVI"]]

    def __init__(
        self,
        data: CellData,
        module: VAE,
        spec: ModelSpec,
        *,
        adata: "AnnData | None" = None,
        world: World | None = None,
        history: dict[str, pd.DataFrame] | None = None,
        is_trained: bool = False,
    ) -> None:
        self.world = world or World(device=worker_device(0))
        self.data, self.spec, self.adata = data, spec, adata
        self.module = module.to(self.world.device).eval()
        self.is_trained = is_trained
        self.history = history or {}
        """Metrics under the names of scvi-tools: ``elbo_train``, ``elbo_validation`` and so on."""
        self._plan: Plan | None = None

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.module.device

    def to_device(self, device: str | torch.device) -> None:
        """Move the network to `device`."""
        self.module.to(device)

    @property
    def train_indices(self) -> NDArray[np.int64]:
        """Rows of the cells that were trained on, rising."""
        return self._split("train")

    @property
    def validation_indices(self) -> NDArray[np.int64]:
        """Rows of the cells that were validated on, rising."""
        return self._split("validation")

    @property
    def test_indices(self) -> NDArray[np.int64]:
        """Rows of the cells that were left out, rising."""
        return self._split("test")

    def _split(self, split: Split) -> NDArray[np.int64]:
        if self._plan is None:
            raise ValueError("this model was not trained in this session: its split is that of its run's config.yaml")
        return np.sort(split_rows(self._plan, split, 0, self._plan.split_cells(split)))

    @property
    def summary_string(self) -> str:
        """What the model is, in a line."""
        default = ModelConfig(model_name=self.model_name)
        shown = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood")
        changed = [key for key in ModelConfig.model_fields if getattr(self.spec.model, key) != getattr(default, key)]
        options = ", ".join(f"{key}: {getattr(self.spec.model, key)}" for key in dict.fromkeys([*shown, *changed]))
        return f"{self.model_name} model with {options}; trained: {self.is_trained}"

    def __repr__(self) -> str:
        cells = f"{self.data.n_cells} cells of {self.data.store.uri}"
        return f"{self.summary_string}\n{len(self.spec.var_names)} genes, {cells}"

    @property
    def summary_stats(self) -> dict[str, int]:
        """Sizes, under the names of scvi-tools."""
        return {
            "n_batch": self.spec.n_batch,
            "n_cells": self.data.n_cells,
            "n_extra_categorical_covs": len(self.spec.categorical_covariates),
            "n_extra_continuous_covs": len(self.spec.continuous_covariates),
            "n_labels": self.spec.n_labels + (self.spec.unlabeled_category is not None),
            "n_vars": len(self.spec.var_names),
        }

    @property
    def registry(self) -> dict[str, Any]:
        """What the model knows of its data, as plain values."""
        return self.spec.model_dump(mode="json", exclude={"model"})

    def view_anndata_setup(self) -> pd.DataFrame:
        """Show which obs columns the model uses, and their categories."""
        named = {"batch": self.spec.batch, "labels": self.spec.label}
        rows = [(name, covariate) for name, covariate in named.items() if covariate]
        rows += [("categorical covariate", covariate) for covariate in self.spec.categorical_covariates]
        records = [
            (name, covariate.key, code, category)
            for name, covariate in rows
            for code, category in enumerate(covariate.categories)
        ]
        records += [("continuous covariate", key, -1, "") for key in self.spec.continuous_covariates]
        if self.spec.size_factor_key:
            records.append(("size factor", self.spec.size_factor_key, -1, ""))
        return pd.DataFrame(records, columns=["role", "obs column", "code", "category"])

    @classmethod
    def view_setup_args(cls, dir_path: str | Path) -> dict[str, Any]:
        """Show the arguments of ``setup_anndata`` of the model in the folder `dir_path`."""
        return _setup_args(cls.load_registry(dir_path))

    @classmethod
    def view_registry(cls, dir_path: str | Path) -> None:
        """Print what the model in the folder `dir_path` knows of its data."""
        for key, value in cls.load_registry(dir_path).items():
            print(f"{key}: {value}")  # noqa: T201

    @classmethod
    def load_registry(cls, dir_path: str | Path) -> dict[str, Any]:
        """Read what the model in the folder `dir_path` knows of its data, as plain values."""
        _, spec, _, _ = read_model(Path(dir_path).expanduser().resolve(), prefix="")
        return spec.model_dump(mode="json", exclude={"model"})

    def select(self, adata: Any = None, indices: Cells | None = None) -> Selection:
        """Choose cells of this model's data, or of other data of the same genes.

        Parameters
        ----------
        adata
            An AnnData, a store, or data from ``dist_scvi.open``; by default those of the model.
        indices
            Rows in the order wanted, a mask, or values of obs columns as in ``{"cell_type": "B"}``.

        Raises
        ------
        ValueError
            If the data does not fit the model, or no cell is chosen.
        """
        return select(self._data_of(adata), indices)

    def _data_of(self, adata: Any) -> CellData:
        if adata is None or adata is self.data or (self.adata is not None and adata is self.adata):
            return self.data
        return fit_to_spec(adata, self.spec) if isinstance(adata, CellData) else open_for(adata, self.spec)

    def latent_cells(self, selection: Selection) -> Iterator[LatentCells]:
        """Encode this worker's share of some cells."""
        return (latent_cells(self.module, minibatch) for minibatch in selection.minibatches(self.world))

    def minify(self, path: str | Path, *, obs_columns: Sequence[str] = (), overwrite: bool = False) -> Atlas:
        """Write the minified atlas `path` and open it."""
        target = Path(path).expanduser().resolve()
        minify(
            self.module, self.spec, self.data, target, obs_columns=obs_columns, overwrite=overwrite, world=self.world
        )
        return open_atlas(target, device=self.device)

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,  # noqa: FBT001, FBT002 - the place that scvi-tools gives it
        save_anndata: bool = False,  # noqa: FBT001, FBT002
        *,
        format: Literal["dist_scvi", "scvi-tools"] = "dist_scvi",
    ) -> None:
        """Write the model to the folder `dir_path`, whole or not at all.

        Parameters
        ----------
        prefix
            Prefix of the files' names, for ``format="scvi-tools"``.
        save_anndata
            Write the AnnData beside it, as ``adata.h5ad``.
        format
            ``"dist_scvi"``: safetensors and JSON; or the ``model.pt`` that scvi-tools 1.4.2 loads.

        Raises
        ------
        ValueError
            If the folder exists and `overwrite` is not set, it holds something else, or there is no AnnData to write.
        """
        target = Path(dir_path).expanduser().resolve()
        if format not in ("dist_scvi", "scvi-tools"):
            raise ValueError(f"format={format!r}: 'dist_scvi' or 'scvi-tools' is needed")
        if prefix and Path(prefix).name != prefix:
            raise ValueError(f"prefix={prefix!r} leads out of the folder: the beginning of a file's name is needed")
        if target.exists() and not overwrite:
            raise ValueError(f"{target} exists: give another path, or overwrite=True")
        known = (target / MANIFEST).is_file() or is_scvi_tools(target, prefix or "")
        if target.exists() and any(target.iterdir()) and not known:
            raise ValueError(f"{target} is no model folder and is not replaced: give another path")
        if save_anndata and self.adata is None:
            raise ValueError("save_anndata=True: the model was made for a store, not for an AnnData; leave it out")
        if prefix and format == "dist_scvi":
            raise ValueError(f"prefix={prefix!r} is for format='scvi-tools': leave it out")
        if self.world.rank == 0:
            if format == "dist_scvi":
                plain = {name: json.loads(frame.to_json(orient="split")) for name, frame in self.history.items()}
                save_model(target, self.module, self.spec, history=plain, is_trained=self.is_trained)
            else:
                write_scvi_tools(
                    target,
                    self.module,
                    self.spec,
                    history=self.history,
                    obs=None if self.adata is None else self.adata.obs,
                    is_trained=self.is_trained,
                    prefix=prefix or "",
                    overwrite=overwrite,
                )
            if save_anndata and self.adata is not None:
                partial = target.with_name(f".partial-{target.name}-adata")
                self.adata.write_h5ad(partial)
                partial.replace(target / f"{prefix or ''}adata.h5ad")
        self.world.wait()

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: Any = None,
        accelerator: Literal["auto", "cpu", "gpu", "cuda"] = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        *,
        world: World | None = None,
    ) -> Self:
        """Read a model that `save`, a run or scvi-tools wrote, for use on `adata`.

        Parameters
        ----------
        adata
            An AnnData, a store, or data from ``dist_scvi.open``; by default the AnnData that lies in the folder.
        accelerator, device
            ``"auto"``, ``"cpu"`` or ``"gpu"``, and the number of the GPU.
        prefix
            What the names of the files of scvi-tools begin with.

        Raises
        ------
        ValueError
            If the folder is damaged or of another model, or `adata` lacks genes, or has categories the model was not
            trained on. No code in the files is executed.
        """
        folder = Path(dir_path).expanduser().resolve()
        module, spec, history, is_trained = read_model(folder, prefix=prefix or "")
        if spec.model.model_name != cls.model_name:
            raise ValueError(f"{folder} holds {spec.model.model_name}: load it with {spec.model.model_name}.load")
        beside = folder / f"{prefix or ''}adata.h5ad"
        if adata is None and not beside.exists():
            raise ValueError(f"adata is needed: {folder} holds none")
        source = read_h5ad(beside) if adata is None else adata
        data = fit_to_spec(source, spec) if isinstance(source, CellData) else open_for(source, spec)
        world = world or World(device=choose_device(accelerator, device))
        return cls._made(
            data, module, spec, adata=held_anndata(source), world=world, history=history, is_trained=is_trained
        )

    @classmethod
    def _made(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a model from its parts rather than from the arguments of a user."""
        model = cls.__new__(cls)
        OpenedModel.__init__(model, *args, **kwargs)
        return model


def read_model(folder: Path, *, prefix: str = "") -> tuple[VAE, ModelSpec, dict[str, pd.DataFrame], bool]:
    """Read network, specification and history, and whether the model is trained, of this package or of scvi-tools.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it holds no model, or a damaged one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: the folder of a model is needed")
    if is_scvi_tools(folder, prefix):
        found = read_scvi_tools(folder, prefix=prefix)
        if found.minified:
            raise ValueError(
                f"{folder} holds minified cells, without counts: make an atlas of it with dist_scvi.import_minified"
            )
        history = {name: pd.DataFrame({name: values}).rename_axis("epoch") for name, values in found.history.items()}
        return found.build(), found.spec, history, found.is_trained
    if not (folder / MANIFEST).is_file():
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        hint = "; it is an atlas: use dist_scvi.open_atlas" if (folder / ATLAS).is_file() else ""
        raise ValueError(f"{folder} holds no model{hint}, but {names}; name what precedes model.pt as prefix")
    module, spec = load_model(folder)
    freeze(module, spec)
    plain, is_trained = load_history(folder)
    history = {
        name: pd.DataFrame(table["data"], pd.Index(table["index"], name="epoch"), table["columns"])
        for name, table in plain.items()
    }
    return module, spec, history, is_trained


def held_anndata(adata: Any) -> "AnnData | None":
    """Give `adata` if it is an AnnData in memory."""
    return adata if hasattr(adata, "obs_names") and hasattr(adata, "X") else None


def _setup_args(registry: dict[str, Any]) -> dict[str, Any]:
    return {
        "layer": registry["layer"],
        "batch_key": registry["batch"] and registry["batch"]["key"],
        "labels_key": registry["label"] and registry["label"]["key"],
        "unlabeled_category": registry["unlabeled_category"],
        "size_factor_key": registry["size_factor_key"],
        "categorical_covariate_keys": [covariate["key"] for covariate in registry["categorical_covariates"]],
        "continuous_covariate_keys": registry["continuous_covariates"],
    }
