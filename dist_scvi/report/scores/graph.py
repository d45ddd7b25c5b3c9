"""Scores of the graph of nearest neighbours of a sample: connectivity of labels, and kBET.

Shape letters in this file
    n   cells
    j   neighbours of a cell
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from scipy.stats import chi2

from dist_scvi.report.scores.neighbours import Neighbours, nearest_within

_SMALLEST_LABEL = 10
_COMPONENTS = 100
_SMALLEST_SCALE, _BISECTIONS, _BANDWIDTH_TOLERANCE = 1e-3, 64, 1e-5
"""Of umap-learn."""


def in_largest_component(neighbours: Neighbours, label_n: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return whether each cell is in the largest strongly connected component of the graph of its label, shape (n,).

    Notes
    -----
    Luecken et al. 2022, doi:10.1038/s41592-021-01336-8; scib-metrics 0.5.10, metrics/_graph_connectivity.py.
    """
    n, j = neighbours.index_nj.shape
    pointers = np.arange(0, n * j + 1, j)
    graph = sparse.csr_matrix((np.ones(n * j), neighbours.index_nj.ravel(), pointers), shape=(n, n))
    inside_n = np.zeros(n, dtype=bool)
    for label in np.unique(label_n):
        rows = np.flatnonzero(label_n == label)
        _, component = connected_components(graph[rows][:, rows], connection="strong")
        inside_n[rows] = component == np.bincount(component).argmax()
    return inside_n


def batch_acceptance(
    neighbours: Neighbours, batch_n: NDArray[np.integer], label_n: NDArray[np.integer], *, alpha: float = 0.05
) -> NDArray[np.float64]:
    """Test for each cell whether its neighbours within its label have the batches of that label (kBET).

    Returns
    -------
    numpy.ndarray
        1 where a chi-square test accepts that, 0 where it does not or the label is in too many pieces, NaN where the
        label has one batch or fewer than 10 cells, shape (n,).

    Notes
    -----
    Büttner et al. 2019, doi:10.1038/s41592-018-0254-1; scib-metrics 0.5.10, metrics/_kbet.py: kbet_per_label. Distances
    within a label are those of a diffusion map of the graph. Neighbours in that map are exact here.
    """
    graph = _connectivities(neighbours)
    accepted_n = np.full(len(batch_n), np.nan)
    for label in np.unique(label_n):
        rows = np.flatnonzero(label_n == label)
        _, batch_r = np.unique(batch_n[rows], return_inverse=True)
        sizes = np.bincount(batch_r)
        if len(rows) < _SMALLEST_LABEL or len(sizes) == 1:
            continue
        width = int(min(70, max(10, sizes.mean() // 4)))
        part = graph[rows][:, rows]
        _, component = connected_components(part, connection="strong")
        kept = np.flatnonzero(np.isin(component, np.flatnonzero(np.bincount(component) >= 3 * width)))
        if component.max() == 0:
            kept = np.arange(len(rows))
        accepted_n[rows] = 0
        if len(kept) >= 0.75 * len(rows):
            accepted_n[rows] = np.nan  # cells of small components are left out of the mean
            accepted_n[rows[kept]] = _accepted(part[kept][:, kept], batch_r[kept], width, alpha)
    return accepted_n


def _accepted(graph: Any, batch_n: NDArray[np.integer], width: int, alpha: float) -> NDArray[np.float64] | float:
    """Compare the batches of the neighbours of each cell with those of all cells by a chi-square test."""
    _, code_n = np.unique(batch_n, return_inverse=True)
    share_b = np.bincount(code_n) / len(code_n)
    try:
        position_nk = _diffusion_map(graph)
    except (ValueError, ArithmeticError):  # scib-metrics scores labels whose map fails as rejected
        return 0.0
    found = nearest_within(position_nk, width + 1)
    j = found.index_nj.shape[1]
    count_nb = np.stack([(code_n[found.index_nj] == batch).sum(axis=1) for batch in range(len(share_b))], axis=1)
    statistic_n = ((count_nb - j * share_b) ** 2 / (j * share_b)).sum(axis=1)
    return np.asarray(chi2.sf(statistic_n, len(share_b) - 1) >= alpha, dtype=np.float64)


def _connectivities(neighbours: Neighbours) -> Any:
    """Return the weights that UMAP gives to edges, as scanpy does, as a symmetric sparse matrix.

    Notes
    -----
    McInnes et al. 2018, arXiv:1802.03426; umap-learn 0.5.12, umap_.py: fuzzy_simplicial_set. Not called from there, as
    it is compiled in every process, which takes 20 seconds.
    """
    n, j = neighbours.index_nj.shape
    distance_nj = neighbours.distance_nj
    nearest_n = np.min(np.where(distance_nj > 0, distance_nj, np.inf), axis=1)
    nearest_n = np.where(np.isinf(nearest_n), 0, nearest_n)
    beyond_nj = np.maximum(distance_nj - nearest_n[:, None], 0)
    scale_n = _bandwidths(beyond_nj[:, 1:], np.log2(j))
    floor_n = np.where(nearest_n > 0, distance_nj.mean(axis=1), distance_nj.mean()) * _SMALLEST_SCALE
    scale_n = np.maximum(scale_n, floor_n)
    weight_nj = np.where(beyond_nj > 0, np.exp(-beyond_nj / np.where(scale_n > 0, scale_n, 1)[:, None]), 1.0)
    weight_nj[neighbours.is_self_nj] = 0
    pointers = np.arange(0, n * j + 1, j)
    graph = sparse.csr_matrix((weight_nj.ravel(), neighbours.index_nj.ravel(), pointers), shape=(n, n))
    graph.eliminate_zeros()
    both = graph + graph.T - graph.multiply(graph.T)
    return sparse.csr_matrix(both)


def _bandwidths(beyond_nj: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """Find the scale of each cell at which the sum of the weights of its neighbours is `target`, by bisection."""
    low_n, high_n = np.zeros(len(beyond_nj)), np.full(len(beyond_nj), np.inf)
    scale_n = np.ones(len(beyond_nj))
    for _ in range(_BISECTIONS):
        excess_n = np.exp(-beyond_nj / scale_n[:, None]).sum(axis=1) - target
        open_n = np.abs(excess_n) >= _BANDWIDTH_TOLERANCE
        if not open_n.any():
            break
        high_n, low_n = np.where(excess_n > 0, scale_n, high_n), np.where(excess_n > 0, low_n, scale_n)
        next_n = np.where(np.isinf(high_n), 2 * scale_n, (low_n + np.where(np.isinf(high_n), low_n, high_n)) / 2)
        scale_n = np.where(open_n, next_n, scale_n)
    return scale_n


def _diffusion_map(graph: Any) -> NDArray[np.float64]:
    """Return positions whose distances are diffusion distances (scib-metrics 0.5.10, utils/_diffusion_nn.py)."""
    n = graph.shape[0]
    density = sparse.diags(1 / np.asarray(graph.sum(axis=0)).ravel())
    kernel = density @ graph @ density
    norm = sparse.diags(1 / np.sqrt(np.asarray(kernel.sum(axis=0)).ravel()))
    transitions = (norm @ kernel @ norm).astype(np.float64)
    n_components = min(_COMPONENTS, n - 1)
    start_n = np.full(n, n**-0.5)  # a fixed start makes the answer reproducible
    value_k, vector_nk = eigsh(transitions, k=n_components, which="LM", v0=start_n)
    # As in scib-metrics in float32: the first eigenvalue, of a vector that separates no cells, is then 1 exactly. In
    # float64 it is 1 up to rounding, and its scale 1 / (1 - value) would drown all others.
    value_k = value_k[::-1].astype(np.float32)
    scaled_k = np.where(value_k == 1, value_k, value_k / np.where(value_k == 1, 1, 1 - value_k))
    return np.asarray(vector_nk[:, ::-1] * scaled_k, dtype=np.float64)
