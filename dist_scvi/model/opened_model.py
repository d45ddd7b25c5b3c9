"""A model together with its cells: selection of cells, description, saving and loading.

`SCVI`, `SCANVI` and `LinearSCVI` are built in steps: `OpenedModel` (this file), `LatentModel` and `LikelihoodModel`
(the encoder), `PredictiveModel` and `ExpressionModel` (the decoder), `TrainableModel`, and the three models themselves.

Shape letters in this file
    n   cells
"""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, read_h5ad
from numpy.typing import NDArray

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.minify import minify
from dist_scvi.inference.cell_selection import Cells, Selection, select
from dist_scvi.inference.encode_decode import LatentCells, latent_cells
from dist_scvi.loaders.arrays.printable import html_table
from dist_scvi.loaders.data import CellData, check_counts
from dist_scvi.loaders.order.plan import Plan, Split, split_rows
from dist_scvi.model.cell_source import CellSource, anndata_of, open_fitting
from dist_scvi.model.description import (
    SummaryStats,
    describe_data,
    describe_options,
    setup_table,
    summary_stats,
)
from dist_scvi.model.model_folder import CELLS, SavedModel, check_target, read_model, write_model
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.scvi_tools.registry_writer import init_params_of, registry_of
from dist_scvi.world import World, choose_device, worker_device

_UNTRAINED = "Trying to query inferred values from an untrained model. Please train the model first."
"""Messages of scvi-tools: scripts filter on them."""
_ROWS_AT_ONCE = 1 << 20


class OpenedModel:
    """Common parts of all models: cells, network, rank among workers, files."""

    model_name: ClassVar[Literal["SCVI", "SCANVI", "LinearSCVI"]]

    def __init__(
        self,
        data: CellData,
        module: VAE,
        spec: ModelSpec,
        *,
        adata: AnnData | None = None,
        world: World | None = None,
        history: dict[str, pd.DataFrame] | None = None,
        is_trained: bool = False,
        split: dict[str, NDArray[np.bool_]] | None = None,
    ) -> None:
        self.world = world or World(device=worker_device(0))
        self.data, self.spec, self._adata = data, spec, adata
        self.module = module.to(self.world.device).eval()
        self.is_trained = is_trained
        self.history = history or {}
        """Metrics under the names of scvi-tools: ``elbo_train``, ``elbo_validation`` and so on."""
        self._plan: Plan | None = None
        self._masks = split or {}

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.module.device

    def to_device(self, device: str | torch.device) -> None:
        """Move the network to `device`."""
        self.module.to(device)

    @property
    def adata(self) -> AnnData | None:
        """The AnnData that methods use by default; None if the model was made for a store.

        Other cells with the same genes and categories may be set: methods then use these.
        """
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData) -> None:
        if anndata_of(adata) is None:
            raise ValueError(f"adata = {type(adata).__name__}: an AnnData is needed; for a store load the model again")
        self.data, self._adata = open_fitting(adata, self.spec), adata

    @property
    def train_indices(self) -> NDArray[np.int64]:
        """Rows of the training cells, ascending. They do not apply to other cells set as `adata`."""
        return np.flatnonzero(self._mask("train"))

    @property
    def validation_indices(self) -> NDArray[np.int64]:
        """Rows of the validation cells, ascending."""
        return np.flatnonzero(self._mask("validation"))

    @property
    def test_indices(self) -> NDArray[np.int64]:
        """Rows of the test cells, ascending."""
        return np.flatnonzero(self._mask("test"))

    def _mask(self, split: Split) -> NDArray[np.bool_]:
        if self._plan is None and split not in self._masks:
            raise ValueError(
                "the split of this model is not known: it was not trained here, and its folder does not hold it; that "
                "of a run follows from its config.yaml"
            )
        if split not in self._masks:
            assert self._plan is not None
            mask_n = np.zeros(self._plan.n_cells, dtype=bool)
            for low in range(0, self._plan.split_cells(split), _ROWS_AT_ONCE):
                high = min(low + _ROWS_AT_ONCE, self._plan.split_cells(split))
                mask_n[split_rows(self._plan, split, low, high)] = True
            self._masks[split] = mask_n
        return self._masks[split]

    def _set_plan(self, plan: Plan) -> None:
        self._plan, self._masks = plan, {}

    @property
    def is_trained_(self) -> bool:
        """The same as `is_trained`."""
        return self.is_trained

    @is_trained_.setter
    def is_trained_(self, is_trained: bool) -> None:
        self.is_trained = is_trained

    @property
    def history_(self) -> dict[str, pd.DataFrame]:
        """The same as `history`."""
        return self.history

    @property
    def n_latent(self) -> int:
        """Dimensions of the latent space."""
        return self.spec.model.n_latent

    @property
    def init_params_(self) -> dict[str, Any]:
        """Arguments of the class, laid out as in scvi-tools: ``["non_kwargs"]["n_latent"]``."""
        return init_params_of(self.spec.model)

    @property
    def summary_string(self) -> str:
        """Description of the model in one line."""
        return describe_options(self.spec, is_trained=self.is_trained)

    def __repr__(self) -> str:
        rows = describe_data(self.spec, self.data)
        return "\n".join([self.summary_string, *(f"{name}: {value}" for name, value in rows.items())])

    def _repr_html_(self) -> str:
        return html_table(self.summary_string, describe_data(self.spec, self.data))

    @property
    def summary_stats(self) -> SummaryStats:
        """Sizes, under the names of scvi-tools."""
        return summary_stats(self.spec, self.data)

    @property
    def registry(self) -> dict[str, Any]:
        """Record of the data of the model, arranged as in scvi-tools: ``setup_args``, ``field_registries`` ..."""
        obs = None if self._adata is None else self._adata.obs
        return registry_of(self.spec, obs=obs, n_cells=self.data.n_cells)

    def get_setup_arg(self, setup_arg: str) -> Any:
        """Return an argument of ``setup_anndata``, such as ``"batch_key"``.

        Raises
        ------
        ValueError
            If there is none of this name.
        """
        arguments = self.registry["setup_args"]
        if setup_arg not in arguments:
            raise ValueError(f"setup_anndata of {self.model_name} has no {setup_arg!r}: it has {', '.join(arguments)}")
        return arguments[setup_arg]

    def get_var_names(self) -> NDArray[np.object_]:
        """Return the names of the genes, in the order of the model."""
        return np.array(self.spec.var_names, dtype=object)

    def view_anndata_setup(
        self,
        adata: CellSource | None = None,
        hide_state_registries: bool = False,  # noqa: FBT001, FBT002 - the position it has in scvi-tools
    ) -> pd.DataFrame:
        """Return which obs columns the model uses, and their categories.

        Parameters
        ----------
        adata
            Other cells, which are checked to fit the model.
        hide_state_registries
            Leave out the categories.
        """
        self.data_of(adata)
        return setup_table(self.spec, hide_state_registries=hide_state_registries)

    @classmethod
    def view_setup_args(cls, dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
        """Return the arguments of ``setup_anndata`` of the model in the folder `dir_path`."""
        return dict(cls.load_registry(dir_path, prefix)["setup_args"])

    @classmethod
    def view_registry(cls, dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the registry of the model in the folder `dir_path`."""
        for key, value in cls.load_registry(dir_path, prefix).items():
            print(f"{key}: {value}")  # noqa: T201

    @classmethod
    def load_registry(cls, dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
        """Return the registry of the model in the folder `dir_path`; see `registry`."""
        return registry_of(read_model(Path(dir_path).expanduser().resolve(), prefix=prefix or "").spec)

    def select(self, adata: CellSource | None = None, indices: Cells | None = None) -> Selection:
        """Choose cells of this model's data, or of other data of the same genes.

        Parameters
        ----------
        adata
            An AnnData, a store, or data from ``dist_scvi.open_data``; by default those of the model.
        indices
            Rows in the order wanted, a mask, or values of obs columns as in ``{"cell_type": "B"}``.

        Raises
        ------
        ValueError
            If the data does not fit the model, or no cell is chosen.

        Warns
        -----
        UserWarning
            If the model is not trained: scvi-tools warns or refuses likewise.
        """
        self._warn_if_untrained()
        return select(self.data_of(adata), indices)

    def data_of(self, adata: CellSource | None) -> CellData:
        """Open cells as the model needs them; None means its own."""
        own = adata is None or adata is self.data or adata is self._adata
        return self.data if own else open_fitting(adata, self.spec)

    def _warn_if_untrained(self) -> None:
        if not self.is_trained:
            warnings.warn(_UNTRAINED, stacklevel=4)

    def latent_cells(self, selection: Selection) -> Iterator[LatentCells]:
        """Encode this worker's share of some cells."""
        return (latent_cells(self.module, minibatch) for minibatch in selection.minibatches(self.world))

    def minify(self, path: str | Path, *, obs_columns: Sequence[str] = (), overwrite: bool = False) -> Atlas:
        """Write the minified atlas `path` and open it."""
        check_counts(self.data, "an atlas")
        self._warn_if_untrained()
        target = Path(path).expanduser().resolve()
        minify(
            self.module, self.spec, self.data, target, obs_columns=obs_columns, overwrite=overwrite, world=self.world
        )
        return open_atlas(target, device=self.device)

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,  # noqa: FBT001, FBT002 - the position it has in scvi-tools
        save_anndata: bool = False,  # noqa: FBT001, FBT002
        *,
        format: Literal["dist_scvi", "scvi-tools"] = "dist_scvi",
        **anndata_write_kwargs: Any,
    ) -> None:
        """Write the model to the folder `dir_path`, whole or not at all; other files in it stay.

        Parameters
        ----------
        prefix
            Begins the names of all files, so that several models share a folder.
        overwrite
            Write into a folder that exists, in place of a model that `save` wrote there with this prefix.
        save_anndata
            Write the AnnData as ``adata.h5ad`` too.
        format
            ``"dist_scvi"``: safetensors and JSON; or the ``model.pt`` that scvi-tools 1.4.2 loads.
        anndata_write_kwargs
            Arguments of ``AnnData.write_h5ad``, such as ``compression="gzip"``; with `save_anndata`.

        Raises
        ------
        ValueError
            If the folder exists and `overwrite` is not set, a file of others would be replaced, or there is no AnnData
            to write.
        """
        target, prefix = Path(dir_path).expanduser().resolve(), prefix or ""
        check_target(target, prefix, format, overwrite=overwrite)
        self._check_write_kwargs(anndata_write_kwargs, save_anndata=save_anndata)
        if self.world.rank == 0:
            known = self._plan is not None or len(self._masks) == 3
            split = {name: self._mask(name) for name in ("train", "validation", "test")} if known else {}
            saved = SavedModel(self.module, self.spec, self.history, self.is_trained, split)
            obs = None if self._adata is None else self._adata.obs
            minified = self.data.posterior is not None
            write_model(target, saved, prefix=prefix, format=format, obs=obs, minified=minified)
            if save_anndata and self._adata is not None:
                partial = target / f".partial-{prefix}{CELLS}"
                self._adata.write_h5ad(partial, **anndata_write_kwargs)
                partial.replace(target / f"{prefix}{CELLS}")
        self.world.wait()

    def _check_write_kwargs(self, given: dict[str, Any], *, save_anndata: bool) -> None:
        """Refuse arguments that would fail or have no effect after the model is written."""
        if save_anndata and self._adata is None:
            raise ValueError("save_anndata=True: the model was made for a store, not for an AnnData; leave it out")
        known = [name for name in inspect.signature(AnnData.write_h5ad).parameters if name not in ("self", "filename")]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(
                f"save has no argument {', '.join(unknown)}: with save_anndata=True it has {', '.join(known)}"
            )
        if given and not save_anndata:
            raise ValueError(f"{', '.join(given)} is for the AnnData: give save_anndata=True with it, or leave it out")

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: CellSource | None = None,
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
            An AnnData, a store, or data from ``dist_scvi.open_data``; by default the AnnData in the folder.
        accelerator, device
            ``"auto"``, ``"cpu"`` or ``"gpu"``, and the number of the GPU.
        prefix
            Prefix of the names of the model's files.

        Raises
        ------
        ValueError
            If the folder is damaged or of another model, or `adata` lacks genes, or has categories the model was not
            trained on. No code in the files is executed.
        """
        folder, prefix = Path(dir_path).expanduser().resolve(), prefix or ""
        saved = read_model(folder, prefix=prefix)
        if saved.spec.model.model_name != cls.model_name:
            raise ValueError(
                f"{folder} holds {saved.spec.model.model_name}: load it with {saved.spec.model.model_name}.load"
            )
        cells = folder / f"{prefix}{CELLS}"
        if adata is None and not cells.is_file():
            raise ValueError(f"adata is needed: {folder} holds none")
        source = read_h5ad(cells) if adata is None else adata
        return cls._made(
            open_fitting(source, saved.spec),
            saved.module,
            saved.spec,
            adata=anndata_of(source),
            world=world or World(device=choose_device(accelerator, device)),
            history=saved.history,
            is_trained=saved.is_trained,
            split=saved.split,
        )

    @classmethod
    def _made(cls, *args: Any, **kwargs: Any) -> Self:
        """Create a model from its parts instead of from the arguments of a user."""
        model = cls.__new__(cls)
        OpenedModel.__init__(model, *args, **kwargs)
        return model
