"""Fill in the settings that depend on the data (sizes, epochs, plans), and check those that do not."""

from pathlib import Path

from dist_scvi.config.schema import DataConfig, RunConfig, TrainConfig
from dist_scvi.loaders import CellData, Plan, make_plan, open_store
from dist_scvi.loaders.data import COLUMN_KEYS, ColumnKeys, open_columns
from dist_scvi.loaders.labelled_stream import count_labelled, labelled_plan
from dist_scvi.loaders.order.column_sampling import open_sampling
from dist_scvi.loaders.order.plan import check_sizes
from dist_scvi.loaders.order.seeded_split import shares_of
from dist_scvi.loaders.stores.open import read_names
from dist_scvi.loaders.stores.soma_store import SomaOptions
from dist_scvi.metrics.forwarder import check_logger_options
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.storage.run_storage import open_run_storage
from dist_scvi.transfer.scanvi_from_scvi import FROM_SCVI

_WORTH_COMPILING = 10_000_000
"""Cells times genes from which the compiled loops save more time in a run of usual length than compiling them takes."""


def check_config(config: RunConfig) -> None:
    """Check all settings that can be checked before any file is opened.

    Raises
    ------
    ValueError
        If the run cannot be written to its URL, an option of the logger or of the storage is not known, sizes do not
        fit each other, or something depends on validations and there are none.
    """
    open_run_storage(config.run, storage_options=config.storage_options)
    check_logger_options(config)
    check_sizes(config.train.batch_size, config.train.lanes, config.train.micro_cells)
    if config.data.split_key is None:
        _, validation_size = shares_of(config.train.train_size, config.train.validation_size)
        check_validations(config, exist=validation_size > 0)


def check_validations(config: RunConfig, *, exist: bool) -> None:
    """Check that there are validations if a setting depends on them.

    Parameters
    ----------
    exist
        Whether there are cells of the validation split.

    Raises
    ------
    ValueError
        If there are none; the message names the key that depends on them.
    """
    train = config.train
    watching = [key for key in ("reduce_lr_on_plateau", "early_stopping", "load_best") if getattr(train, key)]
    if watching and not (exist and train.check_val_every_n_epoch):
        raise ValueError(
            f"train.{watching[0]} depends on validations, and there are none: set train.validation_size and "
            "train.check_val_every_n_epoch above 0"
        )


def resolve(config: RunConfig, data: CellData, spec: ModelSpec | None = None) -> tuple[RunConfig, Plan]:
    """Fill in the settings that depend on the data and on the model, for the record of the run.

    Returns
    -------
    RunConfig, Plan
        ``train.max_epochs`` by the rules of scvi-tools 1.4.2 (model/_utils.py: get_max_epochs_heuristic; of SCANVI that
        begins with SCVI, model/base/_training_mixin.py), the length of the KL warm-up, the validation share, the sizes
        of blocks and windows, how a step is computed, and the options of the network that `spec` has.

    Raises
    ------
    ValueError
        If sizes do not fit, or there is no validation that the learning rate or the end can depend on.
    """
    settings, plan = config.train, plan_of(config, data)
    shares = (None, None) if config.data.split_key else shares_of(settings.train_size, settings.validation_size)
    max_epochs = max(1, min(round(20_000 / data.n_cells * 400), 400))
    if spec is not None and FROM_SCVI in spec.lineage:
        max_epochs = min(10, max(2, round(max_epochs / 3)))
    max_epochs = settings.max_epochs or max_epochs
    warmup = settings.n_steps_kl_warmup
    if warmup is None and settings.n_epochs_kl_warmup is None:
        warmup = max(1, min(400, max_epochs // 2 or 1) * plan.steps_per_epoch)
    check_validations(config, exist=plan.split_cells("validation") > 0)
    return (
        config.model_copy(
            update={
                "model": config.model if spec is None else spec.model,
                # These sizes determine the order of cells, and depend on data.memory_mib, which may change on resume.
                # They are recorded so that a checkpoint can be compared with them.
                "data": config.data.model_copy(
                    update={"block_cells": plan.block_cells, "window_cells": plan.window_steps * plan.batch_size}
                ),
                "train": settings.model_copy(
                    update={
                        "max_epochs": max_epochs,
                        "n_steps_kl_warmup": warmup,
                        "kernels": _kernels(settings, data),
                        "train_size": shares[0],
                        "validation_size": shares[1],
                    }
                ),
            }
        ),
        plan,
    )


def _kernels(settings: TrainConfig, data: CellData) -> str:
    """Choose by the size of the data alone, so that a run with more epochs continues with the same kernels."""
    if settings.kernels != "auto":
        return settings.kernels
    return "compiled" if data.n_cells * data.n_genes >= _WORTH_COMPILING else "torch"


def plan_of(config: RunConfig, data: CellData) -> Plan:
    """Plan the run; read once the obs columns that decide which cells are drawn, and how often."""
    settings = config.train
    sampling = open_sampling(
        data.store,
        seed=config.seed,
        train_size=settings.train_size,
        validation_size=settings.validation_size,
        split_key=config.data.split_key,
        holdout_key=config.data.holdout_key,
        weight_key=config.data.weight_key,
        balance_key=config.data.balance_key,
    )
    return make_plan(
        n_cells=data.n_cells,
        n_entries=data.store.n_entries,
        n_genes=data.n_genes,
        batch_size=settings.batch_size,
        lanes=settings.lanes,
        micro_cells=settings.micro_cells,
        train_size=None if sampling else settings.train_size,
        validation_size=None if sampling else settings.validation_size,
        sampling=sampling,
        seed=config.seed,
        memory_bytes=config.data.memory_mib << 20,
        block_cells=config.data.block_cells,
        window_cells=config.data.window_cells,
        chunk_cells=data.store.chunk_cells,
        shuffled=data.store.shuffled,
    )


def open_from(config: DataConfig) -> CellData:
    """Open the cells that a configuration names.

    Raises
    ------
    FileNotFoundError, ValueError
        As `open_store` and `open_columns`, or if the file of genes does not exist.
    """
    soma = None if config.soma is None else SomaOptions(**config.soma.model_dump())
    genes = read_names(Path(config.genes)) if isinstance(config.genes, str) else config.genes
    store = open_store(
        config.uri,
        layer=config.layer,
        genes=genes,
        join=config.join,
        source_key=config.source_key,
        soma=soma,
        storage_options=config.storage_options,
        allow_fractional=config.allow_fractional,
        skip_missing=config.skip_missing,
    )
    return open_columns(store, ColumnKeys(*(getattr(config, key) for key in COLUMN_KEYS)))


def labelled_plan_of(config: RunConfig, spec: ModelSpec | None, data: CellData, plan: Plan) -> Plan | None:
    """Plan the passes over labelled cells, for SCANVI; a selection of them is kept for an epoch, as in scvi-tools.

    Return None for a query without labels.
    """
    if config.model.model_name != "SCANVI":
        return None
    if spec is not None and "reference" in spec.lineage and not count_labelled(data, plan):
        return None
    return labelled_plan(
        data, plan, n_samples_per_label=config.train.n_samples_per_label, redraw_steps=plan.steps_per_epoch
    )
