"""Create, train and extend a model in a notebook: the arguments are those of scvi-tools, the training is a run."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pandas as pd
import torch

from dist_scvi.config.load import absolute, parse_section
from dist_scvi.config.schema import REFERENCE, DataConfig, ModelConfig, RunConfig, TrainConfig
from dist_scvi.loaders.data import CellData, check_counts
from dist_scvi.metrics.history import history_of
from dist_scvi.metrics.metrics_file import Row
from dist_scvi.metrics.reporter import MetricsReporter
from dist_scvi.model.cell_source import CellSource, anndata_of, open_new
from dist_scvi.model.expression_model import ExpressionModel
from dist_scvi.model.model_folder import read_model
from dist_scvi.model.trainer_arguments import device_number, trainer_options
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_spec import ModelSpec, spec_of
from dist_scvi.session_settings import settings
from dist_scvi.storage.run_storage import open_run_storage
from dist_scvi.training.initial_model import set_library_prior
from dist_scvi.training.train import train
from dist_scvi.transfer.query_data import prepare_query_anndata, prepare_query_data
from dist_scvi.transfer.scarches import load_query, reference_obstacle
from dist_scvi.world import World, choose_device

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

Accelerator = Literal["auto", "cpu", "gpu", "cuda"]
_OF_READING = (
    *("split_key", "holdout_key", "weight_key", "balance_key"),
    *("memory_mib", "block_cells", "window_cells", "timeout_s"),
)


class TrainableModel(ExpressionModel):
    """A model that can be created from data, trained, and extended to a query."""

    def _make(self, adata: CellSource | None, config: ModelConfig, *, seed: int | None, world: World | None) -> None:
        """Build the network for `adata`: an AnnData that was set up, a store, or data from ``dist_scvi.open``."""
        data, in_memory = open_new(adata, model_name=self.model_name)
        spec = spec_of(config, _seed(seed), data)
        data = fit_to_spec(data, spec)
        module = spec.build()
        super().__init__(data, module, spec, adata=in_memory, world=world)
        if module.latent_library:
            set_library_prior(module, data, self.world)

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: Accelerator = "auto",
        devices: int | str | Sequence[int] = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,  # noqa: FBT001, FBT002 - the position in scvi-tools
        load_sparse_tensor: bool = False,  # noqa: FBT001, FBT002
        batch_size: int | None = None,
        early_stopping: bool = False,  # noqa: FBT001, FBT002
        *,
        check_val_every_n_epoch: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        data_kwargs: Mapping[str, Any] | None = None,
        lanes: int = 1,
        run: str | Path | None = None,
        enable_progress_bar: bool = True,
        **trainer_kwargs: Any,
    ) -> None:
        """Continue training from the present weights, in this process or together with those of `world`.

        Parameters
        ----------
        max_epochs
            By default ``min(400, 400 * 20000 / cells)``, at least 1.
        accelerator
            ``"auto"``, ``"cpu"`` or ``"gpu"``.
        devices
            ``"auto"``, 1, -1 where there is one device, or the number of a GPU in a list. For several see `world`.
        shuffle_set_split
            True; for another split see `data_kwargs`.
        load_sparse_tensor
            Without effect: counts are sparse until they are on the device.
        train_size, validation_size
            Shares of the cells, 0.9 and the rest; what they leave is the test split.
        batch_size
            Cells of a step over all workers; ``dist_scvi.settings.batch_size`` by default.
        early_stopping
            End when ``elbo_validation`` has not improved for 45 epochs.
        check_val_every_n_epoch
            Epochs between validations.
        plan_kwargs
            Any key of the section ``train`` of a run's configuration (`TrainConfig`): ``lr``, ``weight_decay``,
            ``n_epochs_kl_warmup``, ``reduce_lr_on_plateau``, ``early_stopping_patience`` and so on.
        data_kwargs
            Keys of its section ``data`` for the training cells and how they are read: ``split_key``,
            ``holdout_key``, ``weight_key``, ``balance_key``, ``memory_mib``, ``block_cells``, ``window_cells``,
            ``timeout_s``.
        lanes
            Streams that share a minibatch. With 8, say, the run can be continued by 2, 4 or 8 workers.
        run
            Folder for checkpoints and metrics. An existing run is continued.
        enable_progress_bar
            Show progress.
        trainer_kwargs
            ``early_stopping_patience`` and its like, ``gradient_clip_val``, ``log_every_n_steps``, ``precision``
            (``"32-true"``, ``"bf16-mixed"``). Other arguments of Lightning's trainer are accepted at values that change
            nothing (`dist_scvi.model.trainer_arguments`).

        Raises
        ------
        ValueError
            If a setting is not known or out of range, or the cells are no raw counts.
        FloatingPointError
            If the loss is not finite. The weights are then those before the call; after an interruption they are those
            of the last step. With `run` the same call continues from the last checkpoint.
        """
        options: dict[str, Any] = {
            "max_epochs": max_epochs,
            "train_size": train_size,
            "validation_size": validation_size,
            "batch_size": settings.batch_size if batch_size is None else batch_size,
            "early_stopping": early_stopping or None,
            "check_val_every_n_epoch": check_val_every_n_epoch,
            "lanes": lanes,
        }
        given = {"shuffle_set_split": shuffle_set_split, "load_sparse_tensor": load_sparse_tensor, **trainer_kwargs}
        options |= trainer_options(given, has_run=run is not None)
        device = self._choose_device(accelerator, devices)
        self._train(options, plan_kwargs, data_kwargs, device=device, run=run, progress=enable_progress_bar)

    def _choose_device(self, accelerator: str, devices: object) -> torch.device:
        number = device_number(accelerator, devices, torch.cuda.device_count())
        return choose_device(accelerator, number, rank=self.world.rank)

    def _train(
        self,
        options: Mapping[str, Any],
        plan_kwargs: Mapping[str, Any] | None,
        data_kwargs: Mapping[str, Any] | None,
        *,
        device: torch.device,
        run: str | Path | None,
        progress: bool,
    ) -> None:
        """Continue training from the present weights."""
        given = {key: value for key, value in options.items() if value is not None}
        both = sorted(given.keys() & (plan_kwargs or {}).keys())
        if both:
            raise ValueError(f"{', '.join(both)} is given as an argument and in plan_kwargs: leave one out")
        section = parse_section(TrainConfig, "train", {**given, **(plan_kwargs or {})})
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            warnings.warn(
                "nothing of this query is trained: its reference knows all its batches and covariates; to train them, "
                "give load_query_data freeze_reference_categories=False or unfrozen=True",
                stacklevel=3,
            )
            self.is_trained = True
            return
        self.to_device(device)
        config = self.run_config(section, run=str(run or ""), data_kwargs=data_kwargs)
        shown, folder = MetricsReporter() if progress else None, open_run_storage(absolute(str(run))) if run else None
        self._log_obstacle()
        rows: list[Row] = []

        def log_row(row: Row) -> None:
            rows.append(row)
            if shown is not None:
                shown(row)

        # `train` changes the weights in place: after an error the model would be left with part of a training.
        before = {name: value.clone() for name, value in self.module.state_dict().items()}
        try:
            trained = train(
                config,
                data=replace(self.data, posterior=None),  # training encodes the counts
                world=World(self.world.rank, self.world.size, self.device),
                folder=folder,
                on_metrics=log_row,
                start=(self.module, self.spec),
            )
        except KeyboardInterrupt:  # an interrupted notebook keeps the model trained so far
            self.is_trained, self.history = self.is_trained or bool(rows), _joined(self.history, history_of(rows))
            raise
        except BaseException:
            self.module.load_state_dict(before)
            raise
        finally:
            self.module.eval()
            if shown is not None:
                shown.close()
        self.module, self.is_trained = trained.module, True
        history = history_of(self.world.from_first(trained.history))
        self.history = history if folder else _joined(self.history, history)  # that of a folder is complete
        self._set_plan(trained.plan)
        self.world.wait()

    def _log_obstacle(self) -> None:
        """Log that the model will be unfit as a reference, before the time for its training is spent."""
        obstacle = None if "reference" in self.spec.lineage else reference_obstacle(self.spec.model)
        if obstacle and self.spec.n_batch > 1 and self.world.rank == 0:
            options = ", ".join(f"{key}={value!r}" for key, value in REFERENCE.items())
            log.warning("later batches cannot be mapped onto this model: %s; a reference has %s", obstacle, options)

    def run_config(
        self, train_config: TrainConfig, *, run: str = "", data_kwargs: Mapping[str, Any] | None = None
    ) -> RunConfig:
        """Describe a run on this model's data.

        Raises
        ------
        ValueError
            If `data_kwargs` has keys other than those of sampling and reading, or the cells are minified.
        """
        check_counts(self.data, "training")
        spec, given = self.spec, dict(data_kwargs or {})
        strange = sorted(given.keys() - set(_OF_READING))
        if strange:
            raise ValueError(f"data_kwargs has {', '.join(strange)}: it can have {', '.join(_OF_READING)}")
        known = {
            "uri": self.data.store.uri,
            "layer": spec.layer,
            "allow_fractional": self.data.store.fractional,
            **asdict(replace(spec.keys, labels_key=self.data.keys.labels_key)),
        }
        data = parse_section(DataConfig, "data", {**known, **given})
        return RunConfig(run=run, seed=spec.seed, data=data, model=spec.model, train=train_config)

    @classmethod
    def load_query_data(  # noqa: PLR0913 - the arguments of scvi-tools
        cls,
        adata: CellSource,
        reference_model: "TrainableModel | str | Path",
        *,
        inplace_subset_query_vars: bool = False,
        accelerator: Accelerator = "auto",
        device: int | str = "auto",
        unfrozen: bool = False,
        freeze_dropout: bool = False,
        freeze_expression: bool = True,
        freeze_decoder_first_layer: bool = True,
        freeze_batchnorm_encoder: bool = True,
        freeze_batchnorm_decoder: bool = False,
        freeze_classifier: bool = True,
        freeze_reference_categories: bool = True,
        min_overlap: float = 0.5,
        seed: int | None = None,
        world: World | None = None,
    ) -> Self:
        """Extend a trained model to the batches and covariates of a query (scArches, doi:10.1038/s41587-021-01001-7).

        Parameters
        ----------
        adata
            The query: an AnnData or a store with the reference's obs columns. Its genes may be in any order; those that
            are absent count as 0.
        reference_model
            A model, or the folder of one, of this package or of scvi-tools.
        inplace_subset_query_vars
            Bring the AnnData itself to the genes of the reference, as `prepare_query_anndata` does.
        accelerator, device
            ``"auto"``, ``"cpu"`` or ``"gpu"``, and the number of the GPU.
        unfrozen
            Train everything.
        freeze_dropout
            Train without dropout.
        freeze_expression, freeze_decoder_first_layer
            Keep the weights of the first layers for the counts and for the latent space.
        freeze_batchnorm_encoder, freeze_batchnorm_decoder
            Keep running statistics, scale and shift of batch normalisation, and normalise by them in training too.
        freeze_classifier
            Keep the classifier of SCANVI.
        freeze_reference_categories
            Keep the weights of the batches and categories of the reference, some of which the query may have.
        min_overlap
            Smallest share of the reference's genes that the query must have.

        Raises
        ------
        ValueError
            If genes or columns are missing, or the reference is of another class.

        Notes
        -----
        scvi-tools 1.4.2, model/base/_archesmixin.py. There, frozen weights drift under weight decay; here they do
        not change.
        """
        reference = (
            reference_model
            if isinstance(reference_model, TrainableModel)
            else read_model(Path(reference_model).expanduser().resolve())
        )
        spec = reference.spec
        if spec.model.model_name != cls.model_name:
            raise ValueError(f"the reference is {spec.model.model_name}: use {spec.model.model_name}.load_query_data")
        if inplace_subset_query_vars:
            cls.prepare_query_anndata(adata, reference_model)
        query = prepare_query_data(adata, spec, min_overlap=min_overlap)
        module, extended, data = load_query(
            reference.module,
            spec,
            query,
            seed=_seed(seed),
            unfrozen=unfrozen,
            freeze_dropout=freeze_dropout,
            freeze_expression=freeze_expression,
            freeze_decoder_first_layer=freeze_decoder_first_layer,
            freeze_batchnorm_encoder=freeze_batchnorm_encoder,
            freeze_batchnorm_decoder=freeze_batchnorm_decoder,
            freeze_classifier=freeze_classifier,
            freeze_reference_categories=freeze_reference_categories,
        )
        return cls._made(
            data,
            module,
            extended,
            adata=anndata_of(adata),
            world=world or World(device=choose_device(accelerator, device)),
            is_trained=reference.is_trained and _same_categories(spec, extended),
        )

    @classmethod
    def prepare_query_data(
        cls, adata: CellSource, reference_model: "TrainableModel | str | Path", *, min_overlap: float = 0.5
    ) -> CellData:
        """Open a query, in memory or in a store, with the genes of a reference; see `query_data.prepare_query_data`."""
        return prepare_query_data(adata, _spec_of(reference_model), min_overlap=min_overlap)

    @classmethod
    def prepare_query_anndata(
        cls,
        adata: CellSource,
        reference_model: "TrainableModel | str | Path",
        *,
        return_reference_var_names: bool = False,
        inplace: bool = True,
    ) -> Any:
        """Bring an AnnData to the genes of a reference in its order; absent ones are 0. See `prepare_query_anndata`."""
        if anndata_of(adata) is None:
            raise ValueError(
                f"{type(adata).__name__}: an AnnData is needed; of a store the genes are chosen as it is read"
            )
        spec = _spec_of(reference_model)
        return prepare_query_anndata(
            adata, spec, return_reference_var_names=return_reference_var_names, inplace=inplace
        )


def _spec_of(reference: TrainableModel | str | Path) -> ModelSpec:
    if isinstance(reference, TrainableModel):
        return reference.spec
    return read_model(Path(reference).expanduser().resolve()).spec


def _same_categories(spec: ModelSpec, extended: ModelSpec) -> bool:
    """Return whether a query adds no weights, so that the reference's training is sufficient."""
    return (spec.batch, spec.label, spec.categorical_covariates) == (
        extended.batch,
        extended.label,
        extended.categorical_covariates,
    )


def _seed(seed: int | None) -> int:
    chosen = (settings.seed or 0) if seed is None else seed
    if not isinstance(chosen, int) or not 0 <= chosen < 1 << 63:
        raise ValueError(f"seed={chosen!r}: a whole number from 0 on is needed")
    return chosen


def _joined(earlier: dict[str, pd.DataFrame], later: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Append the history of one training to that of another, and continue its numbers of epochs and steps."""
    joined = dict(earlier)
    for name, table in later.items():
        known = earlier.get(name)
        if known is None or known.empty:
            joined[name] = table
            continue
        index = pd.Index(table.index + int(known.index[-1]) + 1 - int(table.index.min()), name=table.index.name)
        joined[name] = pd.concat([known, table.set_index(index)])
    return joined
