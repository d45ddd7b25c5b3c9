"""Progress is told after each minibatch, by one worker."""

from dist_scvi.inference.cell_selection import select
from dist_scvi.inference.progress import with_progress
from dist_scvi.loaders import CellData
from dist_scvi.world import World


def test_the_first_worker_tells_how_many_cells_of_its_share_are_done(data: CellData) -> None:
    selection, heard = select(data, range(25)), []
    for rank in (0, 1):
        world = World(rank, 2)
        on_progress = lambda done, share: heard.append((done, share))  # noqa: E731
        compute = with_progress(lambda cells: cells.n_cells, selection, on_progress, world=world, chunk_cells=6)
        done = [compute(cells) for cells in selection.minibatches(world, chunk_cells=6)]
        assert done == [[6, 6, 1], [6, 6]][rank]
    assert heard == [(6, 13), (12, 13), (13, 13)]
