"""Computing over the cells of a selection, and telling how many are done."""

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
    """Return `compute`, telling after each minibatch the cells that this worker has done, and its share of them.

    Parameters
    ----------
    on_progress
        Is told, on rank 0; None for nobody.
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
