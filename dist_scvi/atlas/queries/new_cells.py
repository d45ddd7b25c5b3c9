"""New cells in the latent space of an atlas: their genes are matched with those of the model, their counts encoded.

Shape letters in this file
    n   cells of a chunk
    d   latent dimensions
    g   genes of the model
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dist_scvi.inference.cell_selection import Selection
from dist_scvi.loaders.cell_store import CellStore
from dist_scvi.loaders.data import CellData, open_data
from dist_scvi.loaders.name_lookup import describe_missing
from dist_scvi.loaders.stores.collection import Collection
from dist_scvi.loaders.stores.open import open_store
from dist_scvi.network.fit_data import recode
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.vae import VAE

if TYPE_CHECKING:
    pass

CHUNK_CELLS = 4096
"""Cells that are read and encoded at a time."""
LOW_OVERLAP = 0.8
"""Share of genes below which scvi-tools warns, too."""
_NAMED = 10


@dataclass(frozen=True, slots=True)
class GeneOverlap:
    """How the genes of new cells match those of a model."""

    n_genes: int
    n_matched: int
    matched_by: str
    """Which names of the atlas and of the new cells were compared."""
    lacking: tuple[str, ...]
    """The first of the genes of the model that the new cells lack; they count as 0."""
    n_left_out: int
    """Genes of the new cells that the model does not have."""

    @property
    def share(self) -> float:
        """Share of the genes of the model that the new cells have."""
        return self.n_matched / self.n_genes

    def __str__(self) -> str:
        more = f": {', '.join(self.lacking)}{', ...' * (self.n_genes - self.n_matched > len(self.lacking))}"
        lacking = f"; {self.n_genes - self.n_matched} are lacking and count as 0{more}" if self.lacking else ""
        matched = f"{self.n_matched} of {self.n_genes} genes match by {self.matched_by}"
        return f"{matched}{lacking}; {self.n_left_out} others are left out"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "n_genes": self.n_genes,
            "n_matched": self.n_matched,
            "share": self.share,
            "matched_by": self.matched_by,
            "lacking": list(self.lacking),
            "n_left_out": self.n_left_out,
        }


@dataclass(frozen=True, slots=True, eq=False)
class NewCells:
    """New cells with the genes of a model in its order."""

    data: CellData
    overlap: GeneOverlap

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.data.n_cells

    def obs_names(self) -> NDArray[np.object_]:
        """Return the names of the cells."""
        return self.data.store.obs_names(0, self.n_cells)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedCells:
    """A chunk of new cells in the latent space."""

    start: int
    """Place of the first cell."""
    mean_nd: NDArray[np.float32]
    """Mean of the posterior, before any softmax."""
    variance_nd: NDArray[np.float32]
    library_n: NDArray[np.float32]
    """Total count."""


def open_new_cells(
    source: Any,
    spec: ModelSpec,
    var: pd.DataFrame,
    *,
    layer: str | None = None,
    min_overlap: float = 0.5,
    storage_options: Mapping[str, str] | None = None,
) -> NewCells:
    """Open new cells for a model. Nothing but names is read.

    Parameters
    ----------
    source
        A source for `open_store`, an open store, or open data.
    var
        Columns of the genes of the model; genes are matched by the names or columns of both sides that match best.
    layer
        Layer of the raw counts; that of the model by default.
    min_overlap
        Least share of the genes of the model, from 0 to 1.
    storage_options
        Options of a URL.

    Raises
    ------
    FileNotFoundError
        If `source` does not exist.
    ValueError
        If too few genes match, the counts are known not to be raw, or the encoder needs an obs column that is missing
        or has unknown categories.
    """
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap={min_overlap}: a share of the genes of the model from 0 to 1 is needed")
    store, opened = source, isinstance(source, CellStore | CellData)
    if isinstance(source, CellData):
        store = source.store
    elif not opened:
        store = open_store(source, layer=layer or spec.layer, storage_options=storage_options)
    if store.fractional and not opened:
        _refuse_fractions(store)
    names, overlap = _match(store, spec, var)
    if overlap.share < min_overlap or not overlap.n_matched:
        lacking = [name for name, found in zip(spec.var_names, names, strict=True) if found is None]
        near = describe_missing(lacking, [str(name) for name in store.var_names], _text_columns(store.read_var()))
        raise ValueError(
            f"{store.uri} has {overlap.n_matched} of the {overlap.n_genes} genes of the model ({overlap.share:.0%}), "
            f"min_overlap={min_overlap} needs more: it lacks {near}; name genes as the model does, or add the names as "
            "a column of var"
        )
    taken = {str(name) for name in store.var_names}
    pairs = zip(names, spec.var_names, strict=True)
    aligned = [_unused(f"{gene} (lacking)", taken) if name is None else name for name, gene in pairs]
    genes = Collection([store], aligned, source_key=None, uri=store.uri)
    return NewCells(_with_covariates(genes, spec), overlap)


def encode_new_cells(module: VAE, cells: NewCells, chunk_cells: int = CHUNK_CELLS) -> Iterator[EncodedCells]:
    """Read and encode new cells chunk by chunk, in their order.

    Raises
    ------
    ValueError
        If counts are not raw counts, or the latent representation of a cell is not finite.
    """
    chosen = Selection(cells.data, None, slice(None))
    for minibatch in chosen.minibatches(chunk_cells=chunk_cells):
        tensors = minibatch.to(module.device)
        with torch.no_grad():
            mean_nd, variance_nd = (values.cpu().numpy() for values in module.encode(tensors))
        if not np.isfinite(mean_nd).all():
            row = minibatch.step + int(np.flatnonzero(~np.isfinite(mean_nd).all(axis=1))[0])
            raise ValueError(f"{cells.data.store.uri}: the latent representation of row {row} is not finite")
        yield EncodedCells(minibatch.step, mean_nd, variance_nd, tensors.library_n.cpu().numpy())


def _refuse_fractions(store: CellStore) -> None:
    others = [name for name in store.layers() if name != store.layer]
    also = f" (its layers: {', '.join(others)})" if others else ""
    raise ValueError(
        f"{store.uri} holds counts that are not whole in {store.layer or 'X'}, as after normalisation: name the layer "
        f"with raw counts{also}, or give open_store(..., allow_fractional=True) if the model was trained on such"
    )


def _match(store: CellStore, spec: ModelSpec, var: pd.DataFrame) -> tuple[list[str | None], GeneOverlap]:
    """Return for each gene of the model its name in the store, by the pair of names that matches best."""
    ours = {"var_names": list(spec.var_names), **_text_columns(var)}
    found = [str(name) for name in store.var_names]
    theirs = {"var_names": found}
    best = _places(ours["var_names"], found)
    matched_by = "var_names"
    if len(best) < len(spec.var_names):
        theirs |= _text_columns(store.read_var())
        for own, own_names in ours.items():
            for other, other_names in theirs.items():
                place = _places(own_names, other_names)
                if len(place) > len(best):
                    best = place
                    matched_by = f"{_named(own)} of the atlas and {_named(other)} of the new cells"
    names = [found[best[gene]] if gene in best else None for gene in range(len(spec.var_names))]
    lacking = [gene for gene, name in zip(spec.var_names, names, strict=True) if name is None]
    overlap = GeneOverlap(len(names), len(best), matched_by, tuple(lacking[:_NAMED]), len(found) - len(best))
    return names, overlap


def _places(own_names: Sequence[str], other_names: Sequence[str]) -> dict[int, int]:
    """Return for each gene of the model that has one the place of the gene of this name; ambiguous names match none."""
    own, other = _unique(own_names), _unique(other_names)
    return {place: other[name] for name, place in own.items() if name in other}


def _unique(names: Sequence[str]) -> dict[str, int]:
    """Return the places of names that occur once, without versions as in ``ENSG00000102145.13``."""
    series = pd.Series([_plain(name) for name in names])
    once = series[~series.duplicated(keep=False) & (series != "")]
    return {str(name): int(place) for place, name in once.items()}  # type: ignore[call-overload]


def _plain(name: str) -> str:
    head, _, version = name.rpartition(".")
    return head if name.startswith("ENS") and version.isdigit() else name


def _text_columns(var: pd.DataFrame) -> dict[str, list[str]]:
    """Return the columns of var that hold texts, which may be names of genes."""
    texts = [key for key in var.columns if not pd.api.types.is_numeric_dtype(var[key])]
    return {str(key): ["" if pd.isna(value) else str(value) for value in var[key]] for key in texts}


def _named(column: str) -> str:
    return column if column == "var_names" else f"var['{column}']"


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "'"
    taken.add(name)
    return name


def _with_covariates(store: Collection, spec: ModelSpec) -> CellData:
    """Open the obs columns that the encoder needs; most models encode the counts alone."""
    if not spec.model.encode_covariates:
        return CellData(store, None, None, (), ())
    wanted = [spec.batch, *spec.categorical_covariates]
    keys = [*(one.key for one in wanted if one), *spec.continuous_covariates]
    absent = [key for key in keys if key not in store.obs_columns()]
    if absent:
        raise ValueError(
            f"{store.uri} lacks the obs column {', '.join(map(repr, absent))}: this model encodes covariates with the "
            "counts (encode_covariates), so new cells need them"
        )
    data = open_data(
        store,
        batch_key=spec.batch.key if spec.batch else None,
        categorical_covariate_keys=[one.key for one in spec.categorical_covariates],
        continuous_covariate_keys=spec.continuous_covariates,
    )
    batch = recode(data.batch, spec.batch) if data.batch and spec.batch else None
    covariates = zip(data.categorical_covariates, spec.categorical_covariates, strict=True)
    recoded = tuple(recode(column, one) for column, one in covariates)
    return CellData(store, batch, None, recoded, data.continuous_covariates)
