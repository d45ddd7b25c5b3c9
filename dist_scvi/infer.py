"""What a model says of cells, given their counts or a minified atlas: latent posterior and expected expression.

Shape letters in this file
    n   cells
    g   genes asked for
    k   latent dimensions
    s   samples
    b   batches averaged over
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .noise import row_normal
from .spec import ModelSpec
from .vae import VAE

Indices = Sequence[int] | NDArray[np.int64]
"""Cells by row, in the order wanted."""


@dataclass(frozen=True, slots=True)
class LatentCells:
    """Some cells in the latent space, with all that decoding needs."""

    row_n: NDArray[np.int64]
    """Identity of each cell, which keys its noise."""
    qzm_nk: NDArray[np.float32]
    qzv_nk: NDArray[np.float32]
    library_n: NDArray[np.float32]
    """Observed total count."""
    batch_n: NDArray[np.int32]
    categorical_nc: NDArray[np.int32]
    continuous_nc: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ExpressionQuery:
    """How normalized expression is to be computed; the arguments of scvi-tools."""

    gene_index: NDArray[np.int64]
    """Columns of the genes asked for."""
    transform_batch: tuple[int | None, ...] = (None,)
    """Batch codes to decode with and average over; None is each cell's own."""
    library_size: float | str = 1.0
    """Factor of the shares, or ``"latent"`` for each cell's observed total."""
    n_samples: int | None = None
    """Draws of z to average over; None decodes the mean of q, which is deterministic."""
    seed: int = 0


def rows_asked(indices: Indices, n_cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the rows asked for, each once and rising, and the place of each of `indices` among them.

    As in scvi-tools, `indices` may be a mask: a bool for each cell.

    Raises
    ------
    ValueError
        If one is out of range or no whole number, or a mask has another length.
    """
    if hasattr(indices, "obs_names"):
        raise ValueError(
            "indices is an AnnData: rows are needed; the cells are those the model or atlas was opened with"
        )
    asked = np.asarray(indices)
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
    transform_batch: str | Sequence[str] | None,
    library_size: float | str,
    n_samples: int | None,
    seed: int,
) -> ExpressionQuery:
    """Check the arguments of a query against the model.

    Raises
    ------
    ValueError
        If a gene or batch is not known, or a number is out of range.
    """
    place = {name: index for index, name in enumerate(spec.var_names)}
    genes = list(spec.var_names if gene_list is None else gene_list)
    unknown = [gene for gene in genes if gene not in place]
    if unknown:
        raise ValueError(
            f"the model has no gene {', '.join(unknown[:3])}: its {len(place)} genes begin {spec.var_names[:3]}"
        )
    if isinstance(library_size, str) and library_size != "latent":
        raise ValueError(f"library_size={library_size!r}: a number is needed, or 'latent' for each cell's own total")
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples={n_samples}: at least 1 is needed, or None for the mean of the posterior")
    if transform_batch is None:
        transform_batch = ()
    several = isinstance(transform_batch, Iterable) and not isinstance(transform_batch, str)
    batches = [str(name) for name in (transform_batch if several else [transform_batch])]  # categories are names here
    categories = spec.batch.categories if spec.batch else ()
    missing = [name for name in batches if name not in categories]
    if missing:
        raise ValueError(f"the model knows no batch {missing[0]!r}: its batches are {', '.join(categories) or 'none'}")
    codes: tuple[int | None, ...] = tuple(categories.index(name) for name in batches) or (None,)
    return ExpressionQuery(
        np.array([place[gene] for gene in genes], dtype=np.int64), codes, library_size, n_samples, seed
    )


@torch.no_grad()
def normalized_expression(module: VAE, cells: LatentCells, query: ExpressionQuery) -> NDArray[np.float32]:
    """Compute normalized expression, shape (n, g), averaged over samples and batches.

    Notes
    -----
    scvi-tools 1.4.2, model/base/_rnamixin.py: get_normalized_expression. There z is drawn even for one sample, so that
    two calls differ; here the mean of q is decoded unless samples are asked for, and these are keyed by the cell.
    """
    device = module.px_r.device
    gene_g = torch.from_numpy(query.gene_index).to(device)
    qzm_nk, qzv_nk = _send(cells.qzm_nk, device), _send(cells.qzv_nk, device)
    categorical_nc, continuous_nc = _send(cells.categorical_nc, device).long(), _send(cells.continuous_nc, device)
    total_ng = torch.zeros(len(cells.row_n), len(query.gene_index), dtype=torch.float64, device=device)
    for draw in range(query.n_samples or 1):
        z_nk = qzm_nk
        if query.n_samples is not None:
            normal = row_normal(query.seed, cells.row_n, draw, qzm_nk.shape[1])
            z_nk = qzm_nk + qzv_nk.sqrt() * _send(normal, device)
        for batch in query.transform_batch:
            own = _send(cells.batch_n, device).long()
            batch_n = own if batch is None else torch.full_like(own, batch)
            hidden_nh = module.hidden(z_nk, batch_n, categorical_nc, continuous_nc)
            total_ng += _scale(module, hidden_nh, gene_g)
    mean_ng = total_ng / ((query.n_samples or 1) * len(query.transform_batch))
    if query.library_size == "latent":
        mean_ng *= _send(cells.library_n, device)[:, None]
    else:
        mean_ng *= float(query.library_size)
    return mean_ng.float().cpu().numpy()


def _scale(module: VAE, hidden_nh: Tensor, gene_g: Tensor) -> Tensor:
    """Share of the chosen genes in each cell; only the normaliser needs the others."""
    logits = module.decoder.px_scale_decoder(hidden_nh)
    return torch.exp(logits[:, gene_g] - torch.logsumexp(logits, dim=-1, keepdim=True))


def _send(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
