"""Map the cells of a new donor onto an atlas by surgery (scArches), in one call.

Shape letters in this file
    n   cells of the query
    k   latent dimensions
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dist_scvi.atlas.minify import minify
from dist_scvi.atlas.store.atlas_store import AtlasStore
from dist_scvi.config.load import parse_section
from dist_scvi.config.schema import DataConfig, RunConfig, TrainConfig
from dist_scvi.inference.cell_selection import select
from dist_scvi.inference.posterior import posterior_moments
from dist_scvi.loaders import CellData, CellStore
from dist_scvi.loaders.read_limits import PAGE_ROWS
from dist_scvi.metrics.history import history_of
from dist_scvi.metrics.metrics_file import Row
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.model_files import save_model
from dist_scvi.network.model_spec import Covariate, ModelSpec
from dist_scvi.network.vae import VAE
from dist_scvi.session_settings import settings
from dist_scvi.transfer.query_data import prepare_query_data
from dist_scvi.transfer.scarches import load_query, query_spec
from dist_scvi.world import World

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, slots=True, eq=False)
class MappedQuery:
    """A query in the latent space of an atlas, and the model that was extended to it."""

    qzm_nk: NDArray[np.float32]
    """Mean of the posterior of each cell, in the order of the query, comparable with the latent means of the atlas."""
    qzv_nk: NDArray[np.float32]
    """Its variance."""
    module: VAE
    spec: ModelSpec
    """The model, with the batches and categories of atlas and query."""
    data: CellData
    """The query, with the genes of the atlas."""
    history: Mapping[str, pd.DataFrame]
    """Metrics of the training, under the names of scvi-tools; empty if the query has no new batch or category."""
    reference: str
    """Digest of the atlas."""

    def minify(self, path: str | Path, *, obs_columns: Sequence[str] = (), overwrite: bool = False) -> None:
        """Write the query as a minified atlas of its own, which answers all queries; see `dist_scvi.atlas.minify`."""
        minify(
            self.module,
            self.spec,
            self.data,
            path,
            obs_columns=obs_columns,
            overwrite=overwrite,
            lineage={"mapped_to": self.reference},
        )

    def save(self, folder: str | Path) -> None:
        """Write the model to a new folder, for ``SCVI.load(folder, query)`` or ``SCANVI.load``.

        Raises
        ------
        ValueError
            If the folder exists.
        """
        target = Path(folder).expanduser().resolve()
        if target.exists():
            raise ValueError(f"{target} exists: give another path")
        save_model(target, self.module, self.spec)


def map_query(
    atlas: AtlasStore,
    query: "str | Path | AnnData | Sequence[str | Path | AnnData] | CellStore | CellData",
    *,
    max_epochs: int | None = None,
    plan_kwargs: Mapping[str, Any] | None = None,
    min_overlap: float = 0.5,
    seed: int = 0,
) -> MappedQuery:
    """Map new cells, with raw counts, onto the atlas: extend its model to their batches and train only what is new.

    Parameters
    ----------
    query
        AnnData or store with the obs columns that the model of the atlas was trained with. Its genes may be in any
        order; those that are absent count as 0.
    max_epochs
        Passes over the query, by default ``min(400, 400 * 20000 / cells)``. Without new batches or categories nothing
        is trained.
    plan_kwargs
        Other keys of the section ``train`` of a configuration (`TrainConfig`), such as ``lr``.
    min_overlap
        Smallest share of the genes of the atlas that the query must have.
    seed
        Seed of the added weights and of the training.

    Returns
    -------
    MappedQuery
        Latent posterior and model of the query.

    Warns
    -----
    UserWarning
        If the atlas is unfit as a reference (``encode_covariates=False``), or few genes match.

    Raises
    ------
    ValueError
        If the query lacks genes or columns, its counts are not raw, or its labels are not known to SCANVI.

    Notes
    -----
    Lotfollahi et al. 2022, doi:10.1038/s41587-021-01001-7; see `dist_scvi.transfer.scarches.load_query`.
    """
    from dist_scvi.training.train import train  # which other queries do not wait for

    data = prepare_query_data(query, atlas.spec, min_overlap=min_overlap)
    if data.store.fractional and atlas.spec.model.gene_likelihood != "normal":
        raise ValueError(
            f"{data.store.uri} holds values that are not whole: the model was trained on raw counts; if X "
            "is normalised, open the layer that has them: dist_scvi.open_data(..., layer='counts')"
        )
    rows: list[Row] = []
    extended = query_spec(atlas.spec, data, seed=seed)
    if _covariates(extended) == _covariates(atlas.spec):
        module, spec, data = atlas.module, atlas.spec, fit_to_spec(data, atlas.spec)
    else:
        module, spec, data = load_query(atlas.module, atlas.spec, data, seed=seed)
        given: dict[str, Any] = {"batch_size": settings.batch_size, "lanes": 1, **(plan_kwargs or {})}
        if max_epochs is not None:
            given["max_epochs"] = max_epochs
        config = RunConfig(
            seed=seed,
            data=DataConfig(uri=data.store.uri),
            model=spec.model,
            train=parse_section(TrainConfig, "train", given),
        )
        world = World(device=module.device)
        module = train(config, data=data, world=world, on_metrics=rows.append, start=(module, spec)).module.eval()
    moments = posterior_moments(module, select(data), chunk_cells=PAGE_ROWS)
    qzm_nk, qzv_nk = (moment_nk.cpu().numpy() for moment_nk in moments)
    return MappedQuery(qzm_nk, qzv_nk, module, spec, data, history_of(rows), atlas.digest)


def _covariates(spec: ModelSpec) -> tuple[Covariate | None, ...]:
    return (spec.batch, spec.label, *spec.categorical_covariates)
