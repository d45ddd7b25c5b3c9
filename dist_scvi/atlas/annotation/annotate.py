"""Label new cells by an atlas, or by the classifier of a model alone.

Shape letters in this file
    n   cells of a chunk
    l   labels
"""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.annotation.calibration import annotator, choose_method, open_labels
from dist_scvi.atlas.annotation.conformal import F8
from dist_scvi.atlas.annotation.label_scores import classified
from dist_scvi.atlas.queries.answer import Answer
from dist_scvi.atlas.queries.new_cells import LOW_OVERLAP, NewCells, encode_new_cells, open_new_cells
from dist_scvi.atlas.queries.query_plan import READ_BYTES_PER_S, QueryPlan
from dist_scvi.atlas.queries.reader import AtlasReader
from dist_scvi.atlas.queries.where import Cells, choose_cells
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.network.vae import VAE

SEPARATOR = " | "
"""Between the labels of a prediction set."""
_ENCODE_S_PER_VALUE = 5e-9
_SEARCH_S = 3e-4
_CALIBRATION_CELLS = 2048


def annotate(
    atlas: AtlasReader,
    new_counts: Any,
    label: str | None = None,
    *,
    method: Literal["classifier", "neighbors"] | None = None,
    coverage: float = 0.9,
    where: Cells = None,
    k: int = 30,
    replicate: str | None = None,
    layer: str | None = None,
    min_overlap: float = 0.5,
    seed: int = 0,
) -> Answer:
    """Label new cells by their counts.

    Cells are read and encoded in chunks, so that memory grows by a few numbers for each cell. The temperature of the
    probabilities, the prediction sets and the outlier score are fitted on 2,048 labelled cells of the atlas, each as if
    its donor were not in the atlas.

    Parameters
    ----------
    new_counts
        Raw counts: an AnnData, an open store, or the path or URL of a store.
    label
        obs column of the atlas; by default the labels of the model.
    method
        ``"classifier"``, that of a SCANVI model, or ``"neighbors"``, votes of the nearest labelled cells; by default
        the classifier if there is one of these labels.
    coverage
        Probability, between 0 and 1, that a prediction set has the true label.
    where
        Labelled cells of the atlas to use; all by default.
    k
        Neighbours, for votes and the outlier score.
    replicate
        obs column of independent samples such as donors, which are held out for calibration; by default the batches of
        the model.
    layer
        Layer of the raw counts; that of the model by default.
    min_overlap
        Least share of the genes of the model that the new cells must have.
    seed
        Seed of the choice of calibration cells.

    Returns
    -------
    Answer
        A row for each new cell with `label`, its calibrated `probability`, `second_label` and `second_probability`,
        `prediction_set` (labels with ``" | "`` between them; none if no label fits as well as it should), `set_size`,
        and `ood_score`: the share of calibration cells of this label whose neighbours are nearer, above 0.99 for
        outliers. ``parameters`` holds the gene overlap and the calibration.

    Raises
    ------
    ValueError
        If too few genes match, the counts are normalised, a column does not exist or cannot be used, or a number is out
        of range.
    """
    _check_coverage(coverage)
    made = annotator(atlas, label, method, where=where, k=k, replicate=replicate, seed=seed)
    cells = open_new_cells(new_counts, atlas.spec, atlas.var, layer=layer, min_overlap=min_overlap)
    threshold, tables, library = made.threshold(coverage), [], []
    for part in encode_new_cells(atlas.module, cells):
        log_nl, distance_n = made.scores(atlas, part.mean_nd)
        best_n = log_nl.argmax(axis=1)
        sets = prediction_sets(log_nl, threshold, made.labels.names)
        tables.append(top_labels(log_nl, made.labels.names).assign(**sets, ood_score=made.outlier(best_n, distance_n)))
        library.append(part.library_n)
    table = pd.concat(tables, ignore_index=True)
    parameters = {
        "label": made.labels.key,
        "method": made.method,
        "coverage": coverage,
        "where": made.cells.text,
        "k": k,
        "calibration": dict(made.report),
        "gene_overlap": cells.overlap.to_dict(),
        "median_library": float(np.median(np.concatenate(library))),
    }
    notes = [*made.notes, *_overlap_notes(cells)]
    if outliers := int((table["ood_score"] > 0.99).sum()):
        notes.append(f"{outliers:,} of {len(table):,} cells are farther from the atlas than 99 % of its own")
    sizes = {"new": cells.n_cells, "labelled": made.cells.n_cells}
    table.index = pd.Index(cells.obs_names(), name="cell")
    uri, digest = atlas.uri, atlas.digest
    return Answer("annotate", table, made.method, "", sizes, uri, digest, seed, parameters, tuple(notes))


def annotate_by_model(
    module: VAE,
    spec: ModelSpec,
    uri: str,
    new_counts: Any,
    *,
    layer: str | None = None,
    min_overlap: float = 0.5,
) -> Answer:
    """Label new cells by the classifier of a model without an atlas: the probabilities are not calibrated.

    Raises
    ------
    ValueError
        As `annotate`, or if the model is not SCANVI.
    """
    if not isinstance(module, SCANVAE) or spec.label is None:
        raise ValueError(
            f"{uri} is a model of {spec.model.model_name}, without a classifier: give an atlas, which "
            "'dist-scvi minify RUN' makes"
        )
    cells = open_new_cells(
        new_counts, spec, pd.DataFrame(index=list(spec.var_names)), layer=layer, min_overlap=min_overlap
    )
    names = spec.label.categories
    tables = [top_labels(classified(module, part.mean_nd), names) for part in encode_new_cells(module, cells)]
    table = pd.concat(tables, ignore_index=True)
    table.index = pd.Index(cells.obs_names(), name="cell")
    parameters = {"label": spec.label.key, "method": "classifier", "gene_overlap": cells.overlap.to_dict()}
    notes = ("probabilities are not calibrated, and there are no sets: a model has no cells; give its atlas",)
    sizes = {"new": cells.n_cells}
    return Answer("annotate", table, "classifier", "", sizes, uri, "", 0, parameters, (*notes, *_overlap_notes(cells)))


def plan_annotate(atlas: AtlasReader, given: dict[str, Any]) -> QueryPlan:
    """Estimate the cost of `annotate`."""
    _check_coverage(given["coverage"])
    labels = open_labels(atlas, given["label"])
    method = choose_method(atlas, labels.key, given["method"])
    cells = choose_cells(atlas, given["where"])
    options = {"layer": given["layer"], "min_overlap": given["min_overlap"]}
    data = open_new_cells(given["new_counts"], atlas.spec, atlas.var, **options).data
    n_bytes = 8 * data.store.n_entries + 2 * atlas.n_cells * atlas.spec.model.n_latent
    seconds = n_bytes / READ_BYTES_PER_S + (data.n_cells + _CALIBRATION_CELLS) * _SEARCH_S
    hidden = atlas.spec.model.n_hidden
    seconds += _ENCODE_S_PER_VALUE * data.n_cells * len(atlas.var_names) * hidden / 128
    return QueryPlan("annotate", method, cells.n_cells, data.n_cells, n_bytes, seconds)


def top_labels(log_nl: F8, names: tuple[str, ...]) -> pd.DataFrame:
    """Return the best and second best label of each cell, and their probabilities."""
    name_l = np.array(names, dtype=object)
    place_n, masked_nl = np.arange(len(log_nl)), log_nl.copy()
    best_n = log_nl.argmax(axis=1)
    columns = {"label": name_l[best_n], "probability": np.exp(log_nl[place_n, best_n])}
    if len(names) > 1:
        masked_nl[place_n, best_n] = -np.inf
        second_n = masked_nl.argmax(axis=1)
        columns |= {"second_label": name_l[second_n], "second_probability": np.exp(log_nl[place_n, second_n])}
    return pd.DataFrame(columns)


def prediction_sets(log_nl: F8, threshold: float, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Return the labels at least as probable as the threshold, as text, and their number."""
    inside_nl = log_nl >= threshold
    # Few sets differ, so each text is made once.
    unique_ul, of_n = np.unique(np.packbits(inside_nl, axis=1), axis=0, return_inverse=True)
    bits_ul = np.unpackbits(unique_ul, axis=1, count=len(names)).astype(bool)
    texts = [SEPARATOR.join(itertools.compress(names, bits)) for bits in bits_ul.tolist()]
    return {
        "prediction_set": np.array(texts, dtype=object)[of_n.ravel()],
        "set_size": inside_nl.sum(axis=1),
    }


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage={coverage}: a probability between 0 and 1 is needed, such as 0.9")


def _overlap_notes(cells: NewCells) -> Iterator[str]:
    low = " (below 80 %: labels may be poor)" if cells.overlap.share < LOW_OVERLAP else ""
    yield f"{cells.overlap}{low}"
