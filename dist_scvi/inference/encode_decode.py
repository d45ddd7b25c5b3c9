"""Latent posterior and expected expression of cells, from their counts or from a minified atlas.

Shape letters in this file
    n   cells
    g   requested genes
    k   latent dimensions
    s   samples
    b   batches averaged over
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_scvi.loaders.cell_store import CellStore, describe_missing_genes
from dist_scvi.loaders.minibatch import Covariates, MiniBatch
from dist_scvi.loaders.name_lookup import check_list, describe_missing
from dist_scvi.network.model_spec import ModelSpec
from dist_scvi.network.noise import RowNoise
from dist_scvi.network.vae import VAE, Expression

Indices = Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]
"""Cells by row, in the requested order."""
Batches = str | Sequence[str | None] | None
"""A batch that all cells are decoded with, or several to average over; None is the cell's own batch."""


@dataclass(frozen=True, slots=True)
class LatentCells:
    """Some cells in the latent space, with everything that decoding needs."""

    row_n: NDArray[np.int64]
    """Row of each cell in the store, which keys its noise."""
    qzm_nk: NDArray[np.float32]
    qzv_nk: NDArray[np.float32]
    library_n: NDArray[np.float32]
    """Factor of the shares: total count, size factor, or the exponential of the latent library's mean."""
    batch_n: NDArray[np.int32]
    label_n: NDArray[np.int32]
    """-1 where it is missing."""
    categorical_nc: NDArray[np.int32]
    continuous_nc: NDArray[np.float32]
    log_library_variance_n: NDArray[np.float32] | None = None
    """Variance of the logarithm of a latent library size; None where the size is known, or only its mean."""

    def take(self, index_n: NDArray[np.int64]) -> "LatentCells":
        """Return the cells at the positions `index_n`."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {name: None if values is None else values[index_n] for name, values in held.items()}
        return LatentCells(**chosen)


@dataclass(frozen=True, slots=True)
class ExpressionQuery:
    """How normalized expression is computed; the arguments of scvi-tools."""

    gene_index: NDArray[np.int64]
    """Columns of the requested genes."""
    transform_batch: tuple[int | None, ...] = (None,)
    """Batch codes to decode with and average over; None is the cell's own batch."""
    library_size: float | str = 1.0
    """Factor of the shares, or ``"latent"`` for the library size of each cell."""
    n_samples: int | None = None
    """Draws of z to average over; None decodes the mean of q, which is deterministic."""
    seed: int = 0


def rows_asked(indices: Indices, n_cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the requested rows, each once and sorted, and the position of each of `indices` in them.

    As in scvi-tools, `indices` may be a mask: a bool for each cell.

    Raises
    ------
    ValueError
        If a row is out of range or not a whole number, or a mask has another length.
    """
    if hasattr(indices, "obs_names"):
        raise ValueError(
            "indices is an AnnData: rows are needed; the cells are those the model or atlas was opened with"
        )
    asked = np.asarray(indices)
    if asked.ndim != 1 and asked.dtype != bool:
        raise ValueError(f"indices has shape {asked.shape}: a list of rows is needed")
    if asked.dtype == bool:
        if asked.shape != (n_cells,):
            raise ValueError(f"indices is a mask of shape {asked.shape}: a bool for each of {n_cells} cells is needed")
        asked = np.flatnonzero(asked)
    elif asked.size and not np.issubdtype(asked.dtype, np.integer):
        raise ValueError(f"indices holds {asked.ravel()[0]!r}: row numbers are needed, from 0 to {n_cells - 1}")
    unique_n, order = np.unique(asked.astype(np.int64), return_inverse=True)
    if len(unique_n) and not 0 <= unique_n[0] <= unique_n[-1] < n_cells:
        raise ValueError(f"indices run from {unique_n[0]} to {unique_n[-1]}: there are cells 0 to {n_cells - 1}")
    return unique_n, order


def expression_query(
    spec: ModelSpec,
    *,
    gene_list: Sequence[str] | None,
    transform_batch: Batches,
    library_size: float | str,
    n_samples: int | None,
    seed: int,
    store: CellStore | None = None,
) -> ExpressionQuery:
    """Check the arguments of a query against the model.

    Parameters
    ----------
    store
        The cells, whose columns of var suggest names for genes that are not known.

    Raises
    ------
    ValueError
        If a gene or batch is unknown, or a number is out of range.
    """
    check_list("gene_list", gene_list)
    place = {name: index for index, name in enumerate(spec.var_names)}
    genes = list(spec.var_names if gene_list is None else gene_list)
    unknown = [gene for gene in genes if gene not in place]
    if unknown:
        named = describe_missing_genes(unknown, [store]) if store else describe_missing(unknown, spec.var_names)
        raise ValueError(f"the model has no gene {named}: its {len(place)} genes begin {', '.join(spec.var_names[:3])}")
    if isinstance(library_size, str) and library_size != "latent":
        raise ValueError(f"library_size={library_size!r}: a number is needed, or 'latent' for each cell's own total")
    if not isinstance(library_size, str) and not (math.isfinite(library_size) and library_size > 0):
        raise ValueError(f"library_size={library_size}: a number above 0 is needed, or 'latent'")
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples={n_samples}: at least 1 is needed, or None for the mean of the posterior")
    codes = batch_codes(spec, transform_batch)
    return ExpressionQuery(
        np.array([place[gene] for gene in genes], dtype=np.int64), codes, library_size, n_samples, seed
    )


def batch_codes(spec: ModelSpec, transform_batch: Batches) -> tuple[int | None, ...]:
    """Return the codes of the batches to decode with; None is the cell's own batch.

    Raises
    ------
    ValueError
        If the model does not know one of them.
    """
    several = isinstance(transform_batch, Iterable) and not isinstance(transform_batch, str)
    asked: list[object] = list(transform_batch) if several else [transform_batch]  # type: ignore[arg-type]
    names = [None if name is None else str(name) for name in asked]  # categories are text in a specification
    categories = spec.batch.categories if spec.batch else ()
    missing = [name for name in names if name is not None and name not in categories]
    if missing:
        raise ValueError(f"the model knows no batch {missing[0]!r}: its batches are {', '.join(categories) or 'none'}")
    return tuple(None if name is None else categories.index(name) for name in names) or (None,)


def normalized_expression(module: VAE, cells: LatentCells, query: ExpressionQuery) -> NDArray[np.float32]:
    """Compute normalized expression, shape (n, g), averaged over samples and batches.

    Notes
    -----
    scvi-tools 1.4.2, model/base/_rnamixin.py: get_normalized_expression. There two calls draw differently; here the
    draws are keyed by the cell. Without `n_samples` the mean of q is decoded.
    """
    total_ng = np.zeros((len(cells.row_n), len(query.gene_index)))
    for draw in draws_of(query.n_samples):
        total_ng += expression_at(module, cells, query, draw)
    return (total_ng / (query.n_samples or 1)).astype(np.float32)


def expression_samples(module: VAE, cells: LatentCells, query: ExpressionQuery) -> NDArray[np.float32]:
    """Compute normalized expression at each draw, shape (n, s, g), averaged over batches."""
    drawn = [expression_at(module, cells, query, draw) for draw in draws_of(query.n_samples)]
    return np.stack(drawn, axis=1)


@torch.no_grad()
def expression_at(
    module: VAE, cells: LatentCells, query: ExpressionQuery, draw: int | NDArray[np.int64] | None
) -> NDArray[np.float32]:
    """Compute normalized expression at one draw of `draw_latent`, shape (n, g), averaged over batches."""
    gene_g = torch.from_numpy(query.gene_index).to(module.device)
    covariates = covariates_of(cells, module.device)
    z_nk, library_n = draw_latent(module, cells, query.seed, draw)  # one draw for all batches
    total_ng = torch.zeros(len(cells.row_n), len(query.gene_index), dtype=torch.float64, device=module.device)
    for batch in query.transform_batch:
        total_ng += module.shares(z_nk, decoded_with(covariates, batch), gene_g)
    factor = library_n[:, None] if query.library_size == "latent" else float(query.library_size)
    expression_ng: NDArray[np.float32] = (total_ng * factor / len(query.transform_batch)).float().cpu().numpy()
    return expression_ng


def draws_of(n_samples: int | None) -> Sequence[int | None]:
    """Return the numbers of the draws from the posterior; without `n_samples` only None, which is its mean."""
    return [None] if n_samples is None else range(n_samples)


@torch.no_grad()
def draw_latent(
    module: VAE, cells: LatentCells, seed: int, draw: int | NDArray[np.int64] | None
) -> tuple[Tensor, Tensor]:
    """Draw cells from their posterior: latent representation, shape (n, k), and library size, shape (n,).

    Parameters
    ----------
    draw
        Number of the draw, or one number for each cell; None is the mean of the posterior.
    """
    z_nk, library_n = draw_posterior(module, cells, seed, draw)
    return module.latent(z_nk), library_n


def draw_posterior(
    module: VAE, cells: LatentCells, seed: int, draw: int | NDArray[np.int64] | None
) -> tuple[Tensor, Tensor]:
    """Draw as `draw_latent` does, but before the softmax of a logistic normal."""
    device = module.device
    qzm_nk, library_n = _send(cells.qzm_nk, device), _send(cells.library_n, device)
    if draw is None:
        return qzm_nk, library_n
    noise = RowNoise(seed, cells.row_n, draw)
    z_nk = qzm_nk + _send(cells.qzv_nk, device).sqrt() * noise.normal(qzm_nk)
    if cells.log_library_variance_n is None:
        return z_nk, library_n
    noise_n = noise.normal(library_n[:, None])[:, 0]
    return z_nk, library_n * torch.exp(_send(cells.log_library_variance_n, device).sqrt() * noise_n)


@torch.no_grad()
def decode_draw(
    module: VAE,
    cells: LatentCells,
    *,
    seed: int,
    draw: int | NDArray[np.int64] | None,
    batch: int | None = None,
    gene_g: Tensor | None = None,
) -> Expression:
    """Return the distribution of the counts of cells at a draw of `draw_latent`, decoded with `batch` or their own."""
    z_nk, library_n = draw_latent(module, cells, seed, draw)
    covariates = decoded_with(covariates_of(cells, module.device), batch)
    return module.decode(z_nk, library_n, covariates, gene_g=gene_g)


def decoded_with(covariates: Covariates, batch: int | None) -> Covariates:
    """Replace the batch of all cells by `batch`; None keeps their own."""
    return covariates if batch is None else replace(covariates, batch_n=torch.full_like(covariates.batch_n, batch))


def covariates_of(cells: LatentCells, device: torch.device) -> Covariates:
    """Send the covariates of `cells` to the device of a model."""
    return Covariates(
        _send(cells.batch_n, device).long(),
        _send(cells.label_n, device).long(),
        _send(cells.categorical_nc, device).long(),
        _send(cells.continuous_nc, device),
    )


@torch.no_grad()
def latent_cells(module: VAE, minibatch: MiniBatch) -> LatentCells:
    """Encode the cells of a minibatch."""
    cells = minibatch.to(module.device)
    qzm_nk, qzv_nk = module.encode(cells)
    library_n, variance_n = cells.library_n, None
    if module.latent_library:
        mean_n1, variance_n1 = module.encode_library(cells)
        library_n, variance_n = mean_n1[:, 0].exp(), variance_n1[:, 0].cpu().numpy()
    return LatentCells(
        minibatch.row_n,
        qzm_nk.cpu().numpy(),
        qzv_nk.cpu().numpy(),
        library_n.cpu().numpy(),
        minibatch.batch_n,
        minibatch.label_n,
        minibatch.categorical_nc,
        minibatch.continuous_nc,
        variance_n,
    )


def _send(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
