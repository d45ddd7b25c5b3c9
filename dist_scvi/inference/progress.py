"""Progress of a computation over the cells of a selection."""

from collections.abc import Callable
from typing import TypeVar

from dist_scvi.inference.cell_selection import Selection
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.world import World

T = TypeVar("T")


def with_progress(
    compute: Callable[[MiniBatch], T],
    selection: Selection,
    on_progress: Callable[[int, int], None] | None,
    *,
    world: World,
    chunk_cells: int,
) -> Callable[[MiniBatch], T]:
    """Wrap `compute` so that progress is reported after each minibatch.

    Parameters
    ----------
    on_progress
        Called on rank 0 with the number of cells that this worker has done and the number that it has to do; None for
        no reports.
    """
    if on_progress is None or world.rank:
        return compute
    done, starts = 0, range(0, selection.n_cells, world.size * chunk_cells)
    share = sum(min(chunk_cells, selection.n_cells - start) for start in starts)

    def computed(minibatch: MiniBatch) -> T:
        nonlocal done
        value = compute(minibatch)
        done += minibatch.n_cells
        on_progress(done, share)
        return value

    return computed
