"""UMAP of a seeded sample of cells.

Shape letters in this file
    m   landmarks
    k   latent dimensions
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from dist_scvi.atlas.queries.sample import sample_cells
from dist_scvi.atlas.queries.where import every_cell
from dist_scvi.atlas.store.atlas_store import AtlasStore

FEWEST_CELLS = 4
_FEWEST_SPECTRAL = 64
"""Of fewer landmarks the eigenvectors of the spectral start are not determined."""


@dataclass(frozen=True, slots=True)
class MapOptions:
    """Arguments of UMAP, with the defaults of umap-learn, and the sample that it is fitted to."""

    n_landmarks: int = 50_000
    n_neighbors: int = 15
    min_dist: float = 0.1
    n_epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("n_landmarks", self.n_landmarks, FEWEST_CELLS),
            ("n_neighbors", self.n_neighbors, 2),
            ("n_epochs", 1 if self.n_epochs is None else self.n_epochs, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: at least {least} is needed")
        if not 0 <= self.min_dist <= 1:
            raise ValueError(f"min_dist={self.min_dist}: a number from 0 to 1 is needed")


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """Cells whose coordinates UMAP found."""

    row_m: NDArray[np.int64]
    """Rows of the atlas, ascending."""
    qzm_mk: NDArray[np.float32]
    xy_m2: NDArray[np.float32]


def fit_landmarks(atlas: AtlasStore, options: MapOptions) -> Landmarks:
    """Choose landmarks by a hash of their identity and compute their coordinates.

    Raises
    ------
    ValueError
        If the atlas has fewer than 4 cells.
    ImportError
        If umap-learn is not installed.
    """
    if atlas.n_cells < FEWEST_CELLS:
        raise ValueError(f"{atlas.uri} has {atlas.n_cells} cells: a map needs at least {FEWEST_CELLS}")
    row_m = np.sort(sample_cells(atlas, every_cell(atlas), options.n_landmarks, seed=options.seed))
    qzm_mk = atlas.read_latent(row_m)[0]
    return Landmarks(row_m, qzm_mk, umap_coordinates(qzm_mk, options))


def umap_coordinates(qzm_mk: NDArray[np.float32], options: MapOptions) -> NDArray[np.float32]:
    """Return the coordinates of cells by UMAP of their latent means, shape (m, 2).

    Notes
    -----
    McInnes et al. 2018, arXiv:1802.03426, by umap-learn on one thread: on several it is not repeatable.

    Raises
    ------
    ImportError
        If umap-learn is not installed.
    """
    try:
        with warnings.catch_warnings():  # umap-learn warns of each import without TensorFlow
            warnings.simplefilter("ignore", ImportWarning)
            from umap import UMAP
    except ImportError as error:
        raise ImportError("a map needs umap-learn: pip install 'dist-scvi[map]'") from error
    n_neighbors = min(options.n_neighbors, len(qzm_mk) - 1)
    # The approximate search of umap-learn is compiled for a minute in every process; this one is exact.
    found = NearestNeighbors(n_neighbors=n_neighbors, n_jobs=-1).fit(qzm_mk)
    distance_mn, index_mn = found.kneighbors(qzm_mk)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="precomputed_knn")  # new cells are placed by `place_cells`
        model = UMAP(
            n_neighbors=n_neighbors,
            min_dist=options.min_dist,
            n_epochs=options.n_epochs,
            init="spectral" if len(qzm_mk) >= _FEWEST_SPECTRAL else "random",
            random_state=options.seed,
            n_jobs=1,
            precomputed_knn=(index_mn, distance_mn.astype(np.float32)),
        )
        return np.asarray(model.fit_transform(qzm_mk), dtype=np.float32)
