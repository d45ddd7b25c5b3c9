"""Fit the temperature, the prediction sets and the outlier score on cells of an atlas whose donors are held out.

Each calibration cell is labelled as if its donor were not in the atlas: the cells of the donor are no neighbours of it.
A held-out cell of the same donor would have neighbours that a new donor has not, and sets would be too small.

Shape letters in this file
    n   calibration cells
    l   labels
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_scvi.atlas.annotation.conformal import F8, calibration_error, conformal_threshold, fit_temperature, tempered
from dist_scvi.atlas.annotation.label_scores import Labels, classified, mean_square, voted
from dist_scvi.atlas.neighbors.search import Found, NeighborSearch, Points
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.sample import sample_cells
from dist_scvi.atlas.queries.where import Cells, CellSet, check_column, choose_cells, near_values
from dist_scvi.network.scanvae import SCANVAE

MAX_LABELS = 4096
"""Most labels of a column."""
_CELLS = 2048
"""Calibration cells: the coverage of a set of 90 % then has a standard error of 0.7 points."""
_MOST_KEPT = 8
"""Calibrations kept for an atlas."""
_FEWEST = 50
"""Calibration cells of a label for an outlier score of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Annotator:
    """What labels new cells: labelled cells of an atlas, and the calibration on held-out donors."""

    labels: Labels
    method: str
    cells: CellSet
    search: NeighborSearch
    k: int
    typical: float
    """Median of the mean squared distance of neighbours."""
    temperature: float
    calibration_nl: F8
    """Log probabilities of the calibration cells after the temperature."""
    label_n: NDArray[np.int64]
    distance_n: F8
    """Mean squared distance of their neighbours."""
    report: Mapping[str, Any]
    notes: tuple[str, ...]

    def threshold(self, coverage: float) -> float:
        """Return the smallest log probability of the labels of a prediction set."""
        return conformal_threshold(self.calibration_nl, self.label_n, coverage)

    def scores(self, atlas: AtlasReader, mean_nd: NDArray[np.float32]) -> tuple[F8, F8]:
        """Return the calibrated log probability of each label, and the mean squared distance of the neighbours."""
        found = self.search.find(Points(mean_nd, np.full(len(mean_nd), -1, np.int64)), self.k)
        log_nl = _raw(atlas, self.labels, self.method, mean_nd, found, self.typical)
        return tempered(log_nl, self.temperature), mean_square(found)

    def outlier(self, label_n: NDArray[np.int64], distance_n: F8) -> F8:
        """Return the share of calibration cells of the label whose neighbours are nearer than those of each cell."""
        score_n = np.zeros(len(label_n))
        for label in np.unique(label_n).tolist():
            own_n = self.distance_n[self.label_n == label]
            reference_n = np.sort(own_n if len(own_n) >= _FEWEST else self.distance_n)
            here_n = np.flatnonzero(label_n == label)
            score_n[here_n] = np.searchsorted(reference_n, distance_n[here_n]) / len(reference_n)
        return score_n


def annotator(
    atlas: AtlasReader,
    key: str | None,
    method: str | None,
    *,
    where: Cells = None,
    k: int,
    replicate: str | None,
    seed: int,
) -> Annotator:
    """Calibrate on held-out donors, once for each atlas and choice of arguments.

    Raises
    ------
    ValueError
        If a column is missing or not usable, the model has no classifier of the labels, or too few cells are labelled.
    """
    labels = open_labels(atlas, key)
    chosen_method = choose_method(atlas, labels.key, method)
    cells = _labelled(atlas, labels, where)
    if not 1 <= k < cells.n_cells:
        raise ValueError(f"k={k}: from 1 to {cells.n_cells - 1:,} neighbours, of the {cells.n_cells:,} labelled cells")
    found = (labels.key, chosen_method, cells.text, k, replicate, seed)
    # On the atlas itself, whose life they share: a calibration takes longer than the labels of a few cells.
    kept: dict[Any, Annotator] = vars(atlas).setdefault("_annotators", {})
    made = kept.get(found)
    if made is None:
        made = _calibrate(atlas, labels, chosen_method, cells, k, replicate, seed)
        if len(kept) >= _MOST_KEPT:
            kept.pop(next(iter(kept)), None)
        kept[found] = made
    return made


def open_labels(atlas: AtlasReader, key: str | None) -> Labels:
    """Open the obs column of labels; by default that of the model.

    Raises
    ------
    ValueError
        If there is none, or it holds numbers or too many values.
    """
    if key is None:
        if atlas.spec.label is None:
            raise ValueError(f"label is needed, an obs column: {', '.join(_categorical(atlas))}")
        key = atlas.spec.label.key
    check_column(atlas.obs, key, atlas.uri)
    if atlas.obs.kind(key) != "categorical":
        raise ValueError(f"obs column '{key}' holds numbers: label is a column of categories, as {_categorical(atlas)}")
    vocabulary = atlas.obs.categorical(key).vocabulary
    own = atlas.spec.label is not None and atlas.spec.label.key == key
    unlabeled = atlas.spec.unlabeled_category if own else None
    names = tuple(name for name in vocabulary if name != unlabeled)
    if len(names) > MAX_LABELS:
        raise ValueError(f"obs column '{key}' has {len(names):,} values: at most {MAX_LABELS:,} can be labels")
    if own and isinstance(atlas.module, SCANVAE) and atlas.spec.label is not None:
        names = atlas.spec.label.categories
    place = {name: label for label, name in enumerate(names)}
    return Labels(key, names, np.array([*(place.get(name, -1) for name in vocabulary), -1], dtype=np.int32))


def choose_method(atlas: AtlasReader, key: str, method: str | None) -> str:
    """Return the method; by default the classifier if the model has one of these labels.

    Raises
    ------
    ValueError
        If it has none, or there is no such method.
    """
    trained = isinstance(atlas.module, SCANVAE) and atlas.spec.label is not None and atlas.spec.label.key == key
    if method not in (None, "classifier", "neighbors"):
        raise ValueError(f"method={method!r}: {near_values(str(method), ['classifier', 'neighbors'])}")
    if method == "classifier" and not trained:
        raise ValueError(
            f"method='classifier': {atlas.uri} is of {atlas.spec.model.model_name}, whose model has no classifier of "
            f"'{key}': use method='neighbors'"
        )
    return method or ("classifier" if trained else "neighbors")


def _categorical(atlas: AtlasReader) -> list[str]:
    return [key for key in atlas.obs.columns() if atlas.obs.kind(key) == "categorical"]


def _labelled(atlas: AtlasReader, labels: Labels, where: Cells) -> CellSet:
    vocabulary = atlas.obs.categorical(labels.key).vocabulary
    present = [name for name, label in zip(vocabulary, labels.label_c[:-1], strict=True) if label >= 0]
    if not present:
        raise ValueError(f"no cell of {atlas.uri} has a label in obs column '{labels.key}': choose another column")
    within = None if where is None else choose_cells(atlas, where)
    return choose_cells(atlas, {labels.key: present}, within=within)


def _calibrate(
    atlas: AtlasReader, labels: Labels, method: str, cells: CellSet, k: int, replicate: str | None, seed: int
) -> Annotator:
    row_n = np.sort(sample_cells(atlas, cells, _CELLS, seed=seed))
    replicate, donor_n, notes = _donors(atlas, row_n, replicate)
    if donor_n is None:
        held_out, excluded_n, n_donors = NeighborSearch(atlas, cells), row_n, 0
    else:
        assert replicate is not None
        key = replicate
        row_n, excluded_n = row_n[donor_n >= 0], donor_n[donor_n >= 0].astype(np.int64)
        n_donors = len(np.unique(excluded_n))
        held_out = NeighborSearch(
            atlas, cells, codes=lambda rows: atlas.obs.categorical(key).codes(rows.start, rows.stop).astype(np.int64)
        )
    label_n, mean_nd = labels.of_rows(atlas, row_n), atlas.read_mean(row_n)
    found = held_out.find(Points(mean_nd, excluded_n), k)
    distance_n = mean_square(found)
    typical = float(np.median(distance_n)) or 1.0
    raw_nl = _raw(atlas, labels, method, mean_nd, found, typical)
    temperature = fit_temperature(raw_nl, label_n)
    log_nl = tempered(raw_nl, temperature)
    report = {
        "cells": len(row_n),
        "replicate": replicate,
        "replicates": n_donors,
        "temperature": temperature,
        "calibration_error_before": calibration_error(tempered(raw_nl, 1.0), label_n),
        "calibration_error": calibration_error(log_nl, label_n),
        "accuracy": float((log_nl.argmax(axis=1) == label_n).mean()),
    }
    if method == "classifier":
        notes = (*notes, "the classifier was trained with the labels of the calibration cells: sets may be too small")
    search = NeighborSearch(atlas, cells)
    return Annotator(labels, method, cells, search, k, typical, temperature, log_nl, label_n, distance_n, report, notes)


def _donors(
    atlas: AtlasReader, row_n: NDArray[np.int64], replicate: str | None
) -> tuple[str | None, NDArray[np.int32] | None, tuple[str, ...]]:
    """Return the column of donors and the donor of each cell; without one, each cell is held out alone."""
    key = replicate
    if key is None and atlas.spec.batch is not None and atlas.spec.batch.key in atlas.obs.columns():
        key = atlas.spec.batch.key
    if key is not None:
        check_column(atlas.obs, key, atlas.uri)
        if atlas.obs.kind(key) != "categorical":
            raise ValueError(f"replicate='{key}' holds numbers: an obs column of donors or batches is needed")
        donor_n = atlas.obs.codes(key, row_n)
        if len(np.unique(donor_n[donor_n >= 0])) > 1:
            return key, donor_n, ()
        if replicate is not None:
            raise ValueError(f"replicate='{key}' has one value among the labelled cells: two donors are needed")
    note = "each calibration cell is held out alone, as the model has no batches: name donors by replicate"
    return None, None, (note,)


def _raw(
    atlas: AtlasReader, labels: Labels, method: str, mean_nd: NDArray[np.float32], found: Found, typical: float
) -> F8:
    """Return log probabilities before calibration."""
    if method == "classifier":
        assert isinstance(atlas.module, SCANVAE)
        return classified(atlas.module, mean_nd)
    label_nk = np.full(found.row_qk.shape, -1, np.int64)
    present = found.row_qk >= 0
    label_nk[present] = labels.of_rows(atlas, found.row_qk[present])
    return voted(label_nk, found.square_qk, len(labels.names), typical)
