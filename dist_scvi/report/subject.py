"""What a report is about: a run with its files, or a model in memory.

Shape letters in this file
    n   cells
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.atlas import Atlas, open_atlas
from dist_scvi.atlas.worker import ATLAS
from dist_scvi.loaders.data import CellData
from dist_scvi.loaders.order.plan import Plan, Split, split_rows
from dist_scvi.metrics.history import history_of
from dist_scvi.metrics.metrics_file import Row, read_metrics
from dist_scvi.metrics.run_record import MODEL, result_of, run_config
from dist_scvi.metrics.status import status_of
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_files import load_model
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.storage.run_storage import RunStorage
from dist_scvi.training.resolve import open_from, plan_of

_ROWS_AT_ONCE = 1 << 20

SampleSplit = Callable[[Split, int, int], NDArray[np.int64]]
"""Function of the split, the number of cells and a seed that returns ascending rows of the store."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A trained model and everything that is known about how it came to be."""

    title: str
    module: VAE
    spec: ModelSpec
    data: CellData | None
    """The cells with their counts; None where the store cannot be opened."""
    atlas: Atlas | None
    """The minified atlas; None if there is none."""
    sample_split: SampleSplit | None
    """None where the split is not known."""
    split_sizes: Mapping[str, int]
    history: Mapping[str, pd.DataFrame]
    rows: list[Row]
    """The lines of metrics; none for a model that was trained in memory."""
    config: Mapping[str, Any]
    facts: Mapping[str, str]
    """Further lines: state of the run, starts, lineage."""
    command: str
    """What to run to train the same model again."""
    notes: list[str] = field(default_factory=list)
    """What could not be used, and why."""


class TrainedModel(Protocol):
    """The parts of `dist_scvi.model.SCVI` that are read here."""

    data: CellData
    spec: ModelSpec
    module: VAE
    history: dict[str, pd.DataFrame]

    @property
    def train_indices(self) -> NDArray[np.int64]:
        """Rows of training cells; a ValueError where the split is not known."""

    @property
    def validation_indices(self) -> NDArray[np.int64]:
        """Rows of validation cells."""

    @property
    def test_indices(self) -> NDArray[np.int64]:
        """Rows of test cells."""


def subject_of_run(run: RunStorage) -> Subject:
    """Read a finished run.

    Raises
    ------
    FileNotFoundError
        If there is no run.
    ValueError
        If it has no finished model.
    """
    config = run_config(run)
    result = result_of(run)
    if result is None:
        raise ValueError(f"{run.uri} has no finished model yet: continue it with 'dist-scvi resume {run.uri}'")
    module, spec = load_model(run.subfolder(MODEL))
    notes: list[str] = []
    data, plan = None, None
    try:
        data = fit_to_spec(open_from(config.data), spec)
        plan = plan_of(config, data)
    except (OSError, ValueError) as error:
        notes.append(f"The store of the run cannot be opened, so nothing that needs counts was computed: {error}")
    atlas = _atlas_of(run, notes)
    if data is None and atlas is None:
        raise ValueError(f"{notes[0]}; {run.uri} has no atlas either: a report needs one of them")
    rows = read_metrics(run)
    status = status_of(run)
    facts = {
        "ended": f"after epoch {result['epoch']}, step {result['step']}: {result['ended_by']}",
        "starts": str(status.starts),
        "workers": str(status.workers),
    }
    lineage = {f"lineage: {key}": str(value) for key, value in spec.lineage.items()}
    return Subject(
        title=run.uri.rstrip("/").rpartition("/")[2],
        module=module,
        spec=spec,
        data=data,
        atlas=atlas,
        sample_split=None if plan is None else sampler_of_plan(plan),
        split_sizes={} if plan is None else {name: plan.split_cells(name) for name in ("train", "validation", "test")},
        history=history_of(rows),
        rows=rows,
        config=config.model_dump(mode="json"),
        facts={**facts, **lineage},
        command=f"dist-scvi train {run.uri}/config.yaml run=NEW_FOLDER --workers {status.workers or 1}",
        notes=notes,
    )


def subject_of_model(model: TrainedModel, config: Mapping[str, Any]) -> Subject:
    """Describe a model in memory.

    Parameters
    ----------
    config
        How it was made and trained.
    """
    name = model.spec.model.model_name
    try:
        rows: dict[str, NDArray[np.int64]] = {
            "train": model.train_indices,
            "validation": model.validation_indices,
            "test": model.test_indices,
        }
    except ValueError:
        rows = {}
    lineage = {f"lineage: {key}": str(value) for key, value in model.spec.lineage.items()}
    return Subject(
        title=name,
        module=model.module,
        spec=model.spec,
        data=model.data,
        atlas=None,
        sample_split=_sampler_of_rows(rows) if rows else None,
        split_sizes={split: len(row_n) for split, row_n in rows.items()},
        history=model.history,
        rows=[],
        config=config,
        facts=lineage,
        command=f"{name}(...) and train() with the configuration below",
    )


def sampler_of_plan(plan: Plan) -> SampleSplit:
    """Return a function that draws cells of a split of a run."""

    def sample(split: Split, size: int, seed: int) -> NDArray[np.int64]:
        n = plan.split_cells(split)
        place_m = _places(n, size, seed)
        parts = [np.zeros(0, dtype=np.int64)]
        for low in range(0, n, _ROWS_AT_ONCE):
            high = min(low + _ROWS_AT_ONCE, n)
            here_m = place_m[(place_m >= low) & (place_m < high)]
            if len(here_m):
                parts.append(split_rows(plan, split, low, high)[here_m - low])
        return np.unique(np.concatenate(parts))

    return sample


def _sampler_of_rows(rows: Mapping[str, NDArray[np.int64]]) -> SampleSplit:
    def sample(split: Split, size: int, seed: int) -> NDArray[np.int64]:
        return rows[split][_places(len(rows[split]), size, seed)]

    return sample


def _places(n: int, size: int, seed: int) -> NDArray[np.int64]:
    """Draw `size` of the numbers below `n` without replacement, ascending."""
    if size >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, size, replace=False))


def _atlas_of(run: RunStorage, notes: list[str]) -> Atlas | None:
    if ATLAS not in run.names():
        notes.append("There is no minified atlas yet: neighbours were searched among the sampled cells only.")
        return None
    path = f"{run.uri}/{ATLAS}"
    try:
        return open_atlas(path if "://" in path else Path(path))
    except (OSError, ValueError) as error:
        notes.append(f"The atlas was not used: {error}")
        return None
