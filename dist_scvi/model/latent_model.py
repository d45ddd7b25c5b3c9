"""Methods that use the encoder of a model: positions of cells in the latent space.

Shape letters in this file
    n   cells
    k   latent dimensions
    b   batches
    e   dimensions of the embedding of a batch
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from dist_scvi.inference.cell_selection import Cells, Selection, select
from dist_scvi.inference.output_identity import digest, model_fingerprint
from dist_scvi.inference.posterior import (
    AggregatedPosterior,
    logistic_normal_mean,
    posterior_moments,
    posterior_of,
    rows_by_category,
)
from dist_scvi.inference.progress import with_progress
from dist_scvi.inference.zarr_output import ComputeChunk, RowArrays, check_count, chunk_cells_of, compute_or_write
from dist_scvi.loaders.arrays.anndata_layout import QZM, QZV
from dist_scvi.loaders.data import check_counts
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.model.cell_source import CellSource, anndata_of
from dist_scvi.model.opened_model import OpenedModel
from dist_scvi.network.noise import RowNoise
from dist_scvi.progress_reporter import ProgressReporter
from dist_scvi.scvi_tools.minified_h5ad import WITH_COUNTS, WITHOUT_COUNTS, minified_adata


class LatentModel(OpenedModel):
    """Methods of the encoder.

    All methods share these arguments. `adata` is an AnnData, a store, or data from ``dist_scvi.open_data``; by default
    the cells of the model. `indices` are rows in the order wanted, a mask, or values of obs columns as in
    ``{"cell_type": "B"}``; by default all cells. `batch_size` cells are computed at a time, by default 1024, and `seed`
    keys the noise: beyond rounding an answer depends neither on `batch_size`, nor on the number of workers, nor on
    which other cells are requested. `out` is the path of a new Zarr folder to write the answer to, in memory that does
    not grow, as an AnnData whose rows are the cells by rising row; the method then returns it, open for reading.

    All raise a ValueError if the data does not fit the model, no cell is chosen, a number is out of range, or `out`
    exists or is given for cells in another order.

    Notes
    -----
    scvi-tools 1.4.2, model/base/_vaemixin.py, _rnamixin.py and _embedding_mixin.py.
    """

    @overload
    def get_latent_representation(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        give_mean: bool = True,  # noqa: FBT001, FBT002
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: Literal[False] = False,  # noqa: FBT002
        *,
        seed: int = 0,
        out: None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def get_latent_representation(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        give_mean: bool = True,  # noqa: FBT001, FBT002
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        *,
        return_dist: Literal[True],
        seed: int = 0,
        out: None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    @overload
    def get_latent_representation(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        give_mean: bool = True,  # noqa: FBT001, FBT002
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,  # noqa: FBT001, FBT002
        *,
        seed: int = 0,
        out: str | Path,
    ) -> zarr.Group: ...
    def get_latent_representation(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        give_mean: bool = True,  # noqa: FBT001, FBT002 - the position in scvi-tools
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,  # noqa: FBT001, FBT002
        *,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.float32]] | zarr.Group:
        """Return the latent representation of cells, shape (n, k).

        Parameters
        ----------
        give_mean
            Return the mean of the posterior; otherwise one draw of it.
        mc_samples
            Points over which a logistic normal is averaged, whose mean has no formula: evenly spread rather than drawn,
            and the same for all cells.
        return_dist
            Return mean and variance of the posterior instead, before the softmax of a logistic normal.
        out
            Holds ``obsm/X_latent``, or ``obsm/scvi_latent_qzm`` and ``obsm/scvi_latent_qzv``.
        """
        check_count("mc_samples", mc_samples)

        def answers(minibatch: MiniBatch) -> RowArrays:
            qzm_nk, qzv_nk = posterior_of(self.module, minibatch)
            if return_dist:
                return {f"obsm/{QZM}": _numpy(qzm_nk), f"obsm/{QZV}": _numpy(qzv_nk)}
            if not give_mean:
                drawn_nk = qzm_nk + qzv_nk.sqrt() * RowNoise(seed, minibatch.row_n).normal(qzm_nk)
                return {"obsm/X_latent": _numpy(self.module.latent(drawn_nk))}
            if self.spec.model.latent_distribution == "ln":
                return {"obsm/X_latent": _numpy(logistic_normal_mean(qzm_nk, qzv_nk, mc_samples, seed=seed))}
            return {"obsm/X_latent": _numpy(qzm_nk)}

        identity = ("get_latent_representation", give_mean, mc_samples, return_dist, seed)
        found = self._answer(self.select(adata, indices), answers, batch_size, out, identity=identity)
        if isinstance(found, zarr.Group):
            return found
        return (found[0], found[1]) if return_dist else found[0]

    def get_latent_library_size(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        give_mean: bool = True,  # noqa: FBT001, FBT002
        batch_size: int | None = None,
        *,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> NDArray[np.float32] | zarr.Group:
        """Return the library size of cells, shape (n, 1).

        Parameters
        ----------
        give_mean
            Return the mean of the latent library size, a log-normal. Else one draw of it, or the total count where that
            is used.
        out
            Holds ``obs/latent_library_size``.

        Raises
        ------
        ValueError
            If the mean is requested and the library size is observed.
        """
        module = self.module
        if give_mean and not module.latent_library:
            raise ValueError("this model uses the observed library size: give_mean=False gives it")

        def library(minibatch: MiniBatch) -> NDArray[Any]:
            if not module.latent_library:
                return minibatch.library_n.astype(np.float32)
            with torch.no_grad():
                mean_n1, var_n1 = module.encode_library(minibatch.to(module.device))
            if give_mean:
                return _numpy(torch.exp(mean_n1 + var_n1 / 2)[:, 0])
            noise = RowNoise(seed, minibatch.row_n)
            noise.normal(mean_n1.expand(-1, self.spec.model.n_latent))  # the draw of z to which this one belongs
            return _numpy(torch.exp(mean_n1 + var_n1.sqrt() * noise.normal(mean_n1))[:, 0])

        def answers(minibatch: MiniBatch) -> RowArrays:
            return {"obs/latent_library_size": library(minibatch)}

        identity = ("get_latent_library_size", give_mean, seed)
        found = self._answer(self.select(adata, indices), answers, batch_size, out, identity=identity)
        return found if isinstance(found, zarr.Group) else found[0][:, None]

    def get_batch_representation(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        batch_size: int | None = None,
        *,
        out: str | Path | None = None,
    ) -> NDArray[np.float32] | zarr.Group:
        """Return the embedding of the batch of each cell, shape (n, embedding_dim).

        Parameters
        ----------
        out
            Holds ``obsm/X_batch``.

        Raises
        ------
        ValueError
            If the model does not embed its batches.
        """
        if self.spec.model.batch_representation != "embedding":
            raise ValueError("this model does not embed its batches: make it with batch_representation='embedding'")
        weight_be = _numpy(self.module.state_dict()["_embeddings_dict.batch.weight"])

        def answers(minibatch: MiniBatch) -> RowArrays:
            return {"obsm/X_batch": weight_be[minibatch.batch_n]}

        identity, selection = ("get_batch_representation",), self.select(adata, indices)
        found = self._answer(selection, answers, batch_size, out, identity=identity)
        return found if isinstance(found, zarr.Group) else found[0]

    def get_aggregated_posterior(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
        *,
        variance_as_scale: bool = False,
    ) -> AggregatedPosterior:
        """Return the mixture of the posteriors of cells over the latent space, before any softmax.

        Parameters
        ----------
        dof
            Degrees of freedom of Student's t in place of each normal; None for normals.
        variance_as_scale
            Use the variance as the standard deviation, as scvi-tools 1.4.2 does.
        """
        selection, chunk_cells = self.select(adata, indices), chunk_cells_of(batch_size)
        moments = posterior_moments(self.module, selection, self.world, chunk_cells=chunk_cells)
        return AggregatedPosterior(*moments, dof, variance_as_scale=variance_as_scale)

    @property
    def minified_data_type(self) -> str | None:
        """Kind of the minified cells that the model has, under the names of scvi-tools; None if they are not."""
        stored = self.data.posterior
        return None if stored is None else WITH_COUNTS if stored.has_counts else WITHOUT_COUNTS

    def minify_adata(
        self,
        minified_data_type: str = WITHOUT_COUNTS,
        use_latent_qzm_key: str = "X_latent_qzm",
        use_latent_qzv_key: str = "X_latent_qzv",
    ) -> None:
        """Replace the AnnData of the model by a copy that keeps the latent posterior in place of the counts.

        Methods then use the stored posterior; those that need counts are refused. For cells beyond memory see `minify`.

        Parameters
        ----------
        minified_data_type
            ``"latent_posterior_parameters"``, or ``"..._with_counts"`` to keep the counts as well.
        use_latent_qzm_key, use_latent_qzv_key
            Keys of mean and variance of the posterior in ``obsm``. They are computed if the default ones are absent.

        Raises
        ------
        ValueError
            If the model has no AnnData or a latent library size, or the posterior does not fit.

        Notes
        -----
        scvi-tools 1.4.2, model/base/_base_model.py: minify_adata. There the posterior must be in ``obsm``.
        """
        if minified_data_type not in (WITHOUT_COUNTS, WITH_COUNTS):
            raise ValueError(
                f"minified_data_type={minified_data_type!r}: '{WITHOUT_COUNTS}' or '{WITH_COUNTS}' is needed"
            )
        if self._adata is None:
            raise ValueError("the model was made for a store, not for an AnnData: minify(PATH) writes an atlas of it")
        if self.module.latent_library:
            raise ValueError("a model with a latent library size is not minified: use_observed_lib_size=True is needed")
        check_counts(self.data, "minify_adata")
        keys = (use_latent_qzm_key, use_latent_qzv_key)
        missing = [key for key in keys if key not in self._adata.obsm]
        if missing == ["X_latent_qzm", "X_latent_qzv"]:
            posterior = self.get_latent_representation(return_dist=True)
        elif missing:
            raise ValueError(
                f"obsm of the AnnData has no {', '.join(missing)}: put mean and variance of the posterior there"
            )
        else:
            posterior = (self._adata.obsm[keys[0]], self._adata.obsm[keys[1]])
        library_n = np.concatenate([cells.library_n for cells in self.select().minibatches()])
        self.adata = minified_adata(
            self._adata, self.spec, posterior, library_n, keep_counts=minified_data_type == WITH_COUNTS
        )

    def differential_abundance(
        self,
        adata: CellSource | None = None,
        sample_key: str | None = None,
        batch_size: int | None = 128,
        num_cells_posterior: int | None = None,
        dof: float | None = None,
        *,
        variance_as_scale: bool = False,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> pd.DataFrame | zarr.Group:
        """Return the log-density of each cell under the aggregated posterior of each sample: cells by samples.

        That of an AnnData is also put into its ``obsm["da_log_probs"]``. Every worker holds the posteriors that are
        mixed, 8 bytes for each cell and latent dimension. Time grows with the cells times these posteriors.
        `num_cells_posterior` limits both.

        Parameters
        ----------
        sample_key
            obs column of the samples.
        num_cells_posterior
            Cells of a sample at most whose posteriors are mixed, chosen at random.
        dof, variance_as_scale
            As of `get_aggregated_posterior`.
        out
            Holds them as ``X``, with a column for each sample.

        Raises
        ------
        ValueError
            If `sample_key` does not exist.
        """
        if sample_key is None:
            raise ValueError("sample_key is needed: name the obs column of the samples")
        if num_cells_posterior is not None:
            check_count("num_cells_posterior", num_cells_posterior)
        selection = self.select(adata)
        data = selection.data
        rows = rows_by_category(data.store.categorical(sample_key), data.n_cells, most=num_cells_posterior, seed=seed)
        if not rows:
            raise ValueError(f"obs column '{sample_key}' has no value in any cell: name another as sample_key")
        sampled, chunk_cells = select(data, np.concatenate(list(rows.values()))), chunk_cells_of(batch_size)
        moments = posterior_moments(self.module, sampled, self.world, chunk_cells=chunk_cells)
        qzm, qzv = (torch.split(moment_nk, [*map(len, rows.values())]) for moment_nk in moments)
        mixtures = [
            AggregatedPosterior(*part, dof, variance_as_scale=variance_as_scale) for part in zip(qzm, qzv, strict=True)
        ]

        def answers(minibatch: MiniBatch) -> RowArrays:
            qzm_nk, _ = posterior_of(self.module, minibatch)
            return {"X": _numpy(torch.stack([mixture.log_prob(qzm_nk) for mixture in mixtures], dim=1))}

        identity = ("differential_abundance", digest(*rows.values()), dof, variance_as_scale)
        progress = ProgressReporter("computed")
        reported = with_progress(answers, selection, progress, world=self.world, chunk_cells=chunk_cells)
        found = self._answer(selection, reported, batch_size, out, identity=identity, var_names=list(rows))
        if isinstance(found, zarr.Group):
            return found
        frame = pd.DataFrame(found[0], index=selection.obs_names(), columns=list(rows))
        in_memory = self.adata if adata is None else anndata_of(adata)
        if in_memory is not None:
            in_memory.obsm["da_log_probs"] = frame
        return frame

    def _answer(
        self,
        selection: Selection,
        answers: ComputeChunk,
        batch_size: int | None,
        out: str | Path | None,
        *,
        identity: Sequence[Any],
        var_names: Sequence[str] = (),
    ) -> list[NDArray[Any]] | zarr.Group:
        """Compute or write `answers`; `identity` is the method with the arguments on which they depend."""
        described = {"asked": identity, "model": out and model_fingerprint(self.module, self.spec)}
        return compute_or_write(
            selection, answers, out, identity=described, var_names=var_names, world=self.world, batch_size=batch_size
        )


def _numpy(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.detach().cpu().numpy()
    return array
