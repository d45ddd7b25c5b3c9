"""Compute everything that a report shows, from samples of cells of stated sizes.

Shape letters in this file
    n   held-out cells
    m   sampled cells
    k   latent dimensions
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.cell_map.cell_map import open_map
from dist_scvi.atlas.cell_map.landmarks import MapOptions, umap_coordinates
from dist_scvi.criticism.check import CountCheck, check_counts
from dist_scvi.criticism.predictive_source import PredictiveSource
from dist_scvi.loaders.name_lookup import describe_missing
from dist_scvi.report.batch_probe import LabelLeak, probe_batches
from dist_scvi.report.cell_table import AtlasTable, CellTable, StoreTable
from dist_scvi.report.held_out import HeldOutCells, fit_baseline, predict_held_out
from dist_scvi.report.label_check import LabelCheck, check_labels, predict_labels
from dist_scvi.report.latent_use import LatentUse, latent_use
from dist_scvi.report.scores.atlas_neighbours import nearest_in_atlas
from dist_scvi.report.scores.neighbours import nearest_within
from dist_scvi.report.scores.scores import LISI_NEIGHBOURS, Score, ScoredCells, score_cells
from dist_scvi.report.stratified_sample import StratifiedSample, stratified_sample
from dist_scvi.report.subject import Subject

DONOR_NAMES = ("donor_id", "donor", "individual", "patient", "subject", "sample_id", "sample")
"""Names of obs columns that are taken for donors, the first that is there."""
_MOST_COLUMNS, _MOST_CATEGORIES, _LEAST_OF_DONOR = 6, 60, 5
_MIN_DIST = 0.3


@dataclass(frozen=True, slots=True)
class SampleSizes:
    """Numbers of cells on which a report is based; smaller data are used whole."""

    cells: int = 8_000
    """Cells of the scores, stratified by label and batch."""
    mapped: int = 4_000
    """Of these, the cells of the map. From 4,096 cells on umap-learn compiles another search, for half a minute."""
    held_out: int = 3_000
    """Cells of each of validation and training."""
    counted: int = 2_000
    """Cells whose counts are compared with drawn ones."""
    draws: int = 5
    """Draws of the counts of each."""
    bootstrap: int = 200
    fast: bool = False
    """Leave out kBET, isolated labels and differential expression."""


FAST = SampleSizes(cells=2_000, mapped=1_000, held_out=1_000, counted=500, draws=3, bootstrap=50, fast=True)
"""For continuous integration: seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class ColoredColumn:
    """An obs column of the cells of the map."""

    name: str
    values_m: NDArray[np.float64]
    """Codes, -1 where missing, or numbers."""
    categories: tuple[str, ...] | None
    """None for numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """The results of a report."""

    sample: StratifiedSample
    xy_m2: NDArray[np.float32]
    columns: list[ColoredColumn]
    use: LatentUse
    scores: dict[str, Score]
    leaks: list[LabelLeak]
    held_out: HeldOutCells | None
    trained_on: HeldOutCells | None
    """The same for training cells."""
    held_out_split: str
    labels: LabelCheck | None
    counts: CountCheck | None
    donor_key: str | None
    donors: list["DonorLoss"]
    """Losses of held-out cells by donor."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DonorLoss:
    """Losses of the held-out cells of a donor, in nats per cell."""

    donor: str
    n_cells: int
    elbo: float
    baseline: float

    @property
    def gain(self) -> float:
        """Share of the baseline's loss that the model saves."""
        return 1 - self.elbo / self.baseline


def measure(
    subject: Subject, sizes: SampleSizes = SampleSizes(), *, columns: Sequence[str] = (), seed: int = 0
) -> Measurements:
    """Measure a model.

    Parameters
    ----------
    columns
        obs columns that colour the map; by default batch, labels, covariates, and a column of donors.

    Raises
    ------
    ValueError
        If there is no such column.
    """
    notes = list(subject.notes)
    table = _table_of(subject)
    keys = [covariate.key for covariate in (subject.spec.label, subject.spec.batch) if covariate is not None]
    _check_columns(subject, columns)
    sample = stratified_sample(table, keys, sizes.cells, seed=seed)
    qzm_mk, qzv_mk = table.moments_of(sample.row_m)
    donor_key = _donor_key(subject)
    n_mapped = min(sizes.mapped, len(qzm_mk))
    mapped = np.sort(np.random.default_rng(seed).choice(len(qzm_mk), n_mapped, replace=False))
    scores, leaks = _scores_of(subject, sample, qzm_mk, sizes, seed, notes)
    held_out, trained_on, split = _held_out(subject, sizes, seed, notes)
    return Measurements(
        sample=sample,
        xy_m2=_coordinates(subject, sample.row_m[mapped], qzm_mk[mapped], seed),
        columns=_columns_of(table, columns or _default_columns(subject, table, donor_key), sample.row_m[mapped], notes),
        use=latent_use(qzm_mk, qzv_mk, sample.weight_m),
        scores=scores,
        leaks=leaks,
        held_out=held_out,
        trained_on=trained_on,
        held_out_split=split,
        labels=_labels_of(subject, held_out, trained_on),
        counts=_counts_of(subject, held_out, donor_key, sizes, seed),
        donor_key=donor_key,
        donors=_donors_of(subject, held_out, donor_key),
        notes=notes,
    )


def _coordinates(
    subject: Subject, row_m: NDArray[np.int64], qzm_mk: NDArray[np.float32], seed: int
) -> NDArray[np.float32]:
    """Return where cells are on the map of the atlas, or else on one of these cells alone."""
    if subject.atlas is not None:
        with suppress(FileNotFoundError):
            return open_map(subject.atlas).coordinates(row_m)
    return umap_coordinates(qzm_mk, MapOptions(min_dist=_MIN_DIST, seed=seed))


def _table_of(subject: Subject) -> CellTable:
    if subject.atlas is not None:
        return AtlasTable(subject.atlas)
    assert subject.data is not None
    return StoreTable(subject.data, subject.module)


def known_columns(subject: Subject) -> list[str]:
    """Return the obs columns that can colour the map."""
    source = subject.atlas.obs.columns() if subject.atlas is not None else None
    if source is None:
        assert subject.data is not None
        source = subject.data.store.obs_columns()
    return source


def _check_columns(subject: Subject, columns: Sequence[str]) -> None:
    known = known_columns(subject)
    missing = [name for name in columns if name not in known]
    if missing:
        raise ValueError(f"there is no obs column {describe_missing(missing, known)}: there are {', '.join(known)}")


def _donor_key(subject: Subject) -> str | None:
    """Return the obs column of donors, else the batch."""
    known = known_columns(subject) if subject.data is None else subject.data.store.obs_columns()
    found = [name for name in DONOR_NAMES if name in known]
    return found[0] if found else subject.spec.batch.key if subject.spec.batch else None


def _default_columns(subject: Subject, table: CellTable, donor_key: str | None) -> list[str]:
    spec = subject.spec
    named = [spec.label, spec.batch, *spec.categorical_covariates]
    keys = [covariate.key for covariate in named if covariate is not None]
    leaves = subject.atlas.leaves if subject.atlas is not None else None
    more = [donor_key] if donor_key else []
    known = known_columns(subject)
    keys = [key for key in dict.fromkeys([*keys, *more, *(leaves.columns if leaves else ())]) if key in known]
    return [key for key in keys if len(table.vocabulary(key)) <= _MOST_CATEGORIES or key in keys[:2]][:_MOST_COLUMNS]


def _columns_of(
    table: CellTable, keys: Sequence[str], row_m: NDArray[np.int64], notes: list[str]
) -> list[ColoredColumn]:
    found = []
    for key in keys:
        if table.is_categorical(key):
            code_m = table.codes_of(key, row_m).astype(np.float64)
            found.append(ColoredColumn(key, code_m, table.vocabulary(key)))
        else:
            try:
                found.append(ColoredColumn(key, table.numbers_of(key, row_m), None))
            except ValueError as error:
                notes.append(f"The map is not coloured by {key}: {error}")
    return found


def _scores_of(
    subject: Subject,
    sample: StratifiedSample,
    qzm_mk: NDArray[np.float32],
    sizes: SampleSizes,
    seed: int,
    notes: list[str],
) -> tuple[dict[str, Score], list[LabelLeak]]:
    """Score the cells that have a label and a batch."""
    spec = subject.spec
    if spec.label is None:
        notes.append("Integration and conservation need labels: set data.labels_key.")
        return {}, []
    label_m = sample.code_mc[:, 0].astype(np.int64)
    batch_m = sample.code_mc[:, 1].astype(np.int64) if spec.batch else np.zeros(len(label_m), np.int64)
    table = _table_of(subject)
    vocabulary = table.vocabulary(spec.label.key)
    unlabeled = vocabulary.index(spec.unlabeled_category) if spec.unlabeled_category in vocabulary else -1
    kept = np.flatnonzero((label_m >= 0) & (batch_m >= 0) & (label_m != unlabeled))
    if len(kept) < LISI_NEIGHBOURS:
        notes.append(f"Integration and conservation need {LISI_NEIGHBOURS} cells with a label: there are {len(kept)}.")
        return {}, []
    labels, label_m = np.unique(label_m[kept], return_inverse=True)
    batches, batch_m = np.unique(batch_m[kept], return_inverse=True)
    names = tuple(vocabulary[code] for code in labels)
    z_mk = qzm_mk[kept]
    whole = sample.is_everything or subject.atlas is None
    if whole:
        near = nearest_within(z_mk, LISI_NEIGHBOURS)
        batch_mj, label_mj = batch_m[near.index_nj], label_m[near.index_nj]
    else:
        assert subject.atlas is not None
        near = nearest_in_atlas(subject.atlas, sample.row_m[kept], z_mk, LISI_NEIGHBOURS)
        flat, where = np.unique(near.index_nj, return_inverse=True)
        label_mj = _recode(table.codes_of(spec.label.key, flat), labels)[where].reshape(near.index_nj.shape)
        batch_mj = np.zeros_like(label_mj)
        if spec.batch:
            batch_mj = _recode(table.codes_of(spec.batch.key, flat), batches)[where].reshape(near.index_nj.shape)
    cells = ScoredCells(z_mk, batch_m, label_m, sample.weight_m[kept], near, batch_mj, label_mj)
    scores = score_cells(cells, n_bootstrap=sizes.bootstrap, seed=seed, fast=sizes.fast)
    return scores, probe_batches(z_mk, batch_m, label_m, names, seed=seed)


def _recode(code_n: NDArray[np.integer], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each code among `known`, -1 for others."""
    place_n = np.searchsorted(known, code_n).clip(0, len(known) - 1)
    return np.where(known[place_n] == code_n, place_n, -1)


def _held_out(
    subject: Subject, sizes: SampleSizes, seed: int, notes: list[str]
) -> tuple[HeldOutCells | None, HeldOutCells | None, str]:
    """Compute the losses of held-out and of training cells."""
    data, sample_split = subject.data, subject.sample_split
    if data is None:
        return None, None, "validation"
    if sample_split is None:
        rng = np.random.default_rng(seed)
        train_row = np.sort(rng.choice(data.n_cells, min(sizes.held_out, data.n_cells), replace=False))
        validation_row, split = train_row[:0], "training"
    else:
        train_row = sample_split("train", sizes.held_out, seed)
        found = [(name, sample_split(name, sizes.held_out, seed)) for name in ("validation", "test")]
        split, validation_row = next(((name, rows) for name, rows in found if len(rows)), ("training", train_row[:0]))
    baseline = fit_baseline(subject.module, data, train_row, subject.spec.n_batch)
    trained = predict_held_out(subject.module, data, train_row, baseline, seed=seed)
    if not len(validation_row):
        notes.append("No cells were held out: the losses are those of training cells, which are lower.")
        return trained, trained, split
    return predict_held_out(subject.module, data, validation_row, baseline, seed=seed), trained, split


def _labels_of(subject: Subject, held_out: HeldOutCells | None, trained_on: HeldOutCells | None) -> LabelCheck | None:
    spec = subject.spec
    if spec.label is None or held_out is None or trained_on is None or held_out is trained_on:
        return None
    known_n, known_m = held_out.label_n >= 0, trained_on.label_n >= 0
    if len(spec.label.categories) < 2 or known_n.sum() < 2 or known_m.sum() < 2:
        return None
    probability_nl, method = predict_labels(
        subject.module,
        len(spec.label.categories),
        held_out.qzm_nk[known_n],
        trained_on.qzm_nk[known_m],
        trained_on.label_n[known_m],
    )
    return check_labels(probability_nl, held_out.label_n[known_n], spec.label.categories, method)


def _counts_of(
    subject: Subject, held_out: HeldOutCells | None, donor_key: str | None, sizes: SampleSizes, seed: int
) -> CountCheck | None:
    if held_out is None or subject.data is None:
        return None
    rows = held_out.row_n
    if len(rows) > sizes.counted:
        rows = np.sort(np.random.default_rng(seed).choice(rows, sizes.counted, replace=False))
    source = PredictiveSource(subject.data, subject.module)
    label_key = subject.spec.label.key if subject.spec.label and not sizes.fast else None
    return check_counts(source, rows, n_samples=sizes.draws, label_key=label_key, donor_key=donor_key, seed=seed)


def _donors_of(subject: Subject, held_out: HeldOutCells | None, donor_key: str | None) -> list[DonorLoss]:
    if held_out is None or donor_key is None or subject.data is None:
        return []
    column = subject.data.store.categorical(donor_key)
    code_n = column.codes_of([(int(row), int(row) + 1) for row in held_out.row_n])
    found = []
    for code in np.unique(code_n[code_n >= 0]).tolist():
        mine = code_n == code
        if mine.sum() >= _LEAST_OF_DONOR:
            loss, base = float(held_out.elbo_n[mine].mean()), float(held_out.baseline_n[mine].mean())
            found.append(DonorLoss(column.vocabulary[code], int(mine.sum()), loss, base))
    return found
