"""Likelihoods of cells under a model: bounds and estimates of the log-probability of their counts.

Shape letters in this file
    n   cells
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import zarr
from numpy.typing import NDArray

from dist_scvi.inference.cell_selection import Cells, Selection
from dist_scvi.inference.likelihood_estimates import (
    elbo,
    marginal_log_likelihood,
    mean_over_cells,
    reconstruction_error,
)
from dist_scvi.inference.zarr_output import check_count, chunk_cells_of
from dist_scvi.loaders.data import check_counts
from dist_scvi.model.cell_source import CellSource
from dist_scvi.model.latent_model import LatentModel
from dist_scvi.report.subject import subject_of_model
from dist_scvi.report.write_report import WrittenReport, write_report


class LikelihoodModel(LatentModel):
    """Likelihoods of cells; `LatentModel` explains the arguments that the methods share.

    Notes
    -----
    scvi-tools 1.4.2, model/base/_vaemixin.py.
    """

    @overload
    def get_elbo(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        batch_size: int | None = None,
        return_mean: Literal[True] = True,  # noqa: FBT002
        *,
        seed: int = 0,
        out: None = None,
    ) -> float: ...
    @overload
    def get_elbo(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        batch_size: int | None = None,
        *,
        return_mean: Literal[False],
        seed: int = 0,
        out: None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def get_elbo(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        batch_size: int | None = None,
        *,
        return_mean: Literal[False],
        seed: int = 0,
        out: str | Path,
    ) -> zarr.Group: ...
    def get_elbo(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,  # noqa: FBT001, FBT002
        *,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> float | NDArray[np.float32] | zarr.Group:
        """Return the evidence lower bound at one draw for each cell; higher is better.

        Parameters
        ----------
        return_mean
            Average over the cells, else return that of each, shape (n,).
        out
            Holds ``obs/elbo``; needs ``return_mean=False``.
        """
        compute = partial(elbo, self.module, seed=seed)
        selection = self.select(adata, indices)
        return self._for_each(selection, "elbo", compute, batch_size, out, return_mean=return_mean)

    @overload
    def get_reconstruction_error(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        batch_size: int | None = None,
        return_mean: Literal[True] = True,  # noqa: FBT002
        *,
        include_latent_terms: bool = False,
        seed: int = 0,
        out: None = None,
    ) -> dict[str, float]: ...
    @overload
    def get_reconstruction_error(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        batch_size: int | None = None,
        *,
        return_mean: Literal[False],
        include_latent_terms: bool = False,
        seed: int = 0,
        out: None = None,
    ) -> dict[str, NDArray[np.float32]]: ...
    @overload
    def get_reconstruction_error(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        batch_size: int | None = None,
        *,
        return_mean: Literal[False],
        include_latent_terms: bool = False,
        seed: int = 0,
        out: str | Path,
    ) -> zarr.Group: ...
    def get_reconstruction_error(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,  # noqa: FBT001, FBT002
        *,
        include_latent_terms: bool = False,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> dict[str, Any] | zarr.Group:
        """Return the negative log-probability of the counts at one draw for each cell, as ``reconstruction_loss``.

        Parameters
        ----------
        return_mean
            Average over the cells, else return that of each, shape (n,).
        include_latent_terms
            SCANVI: add ``log q(z | x) - log p(z | z2, y)``, as scvi-tools 1.4.2 does.
        out
            Holds ``obs/reconstruction_loss``; needs ``return_mean=False``.
        """
        self._check_latent_terms(include_latent_terms)
        compute = partial(reconstruction_error, self.module, include_latent_terms=include_latent_terms, seed=seed)
        name, selection = "reconstruction_loss", self.select(adata, indices)
        found = self._for_each(selection, name, compute, batch_size, out, return_mean=return_mean)
        return found if isinstance(found, zarr.Group) else {name: found}

    @overload
    def get_marginal_ll(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: Literal[True] = True,  # noqa: FBT002
        n_mc_samples_per_pass: int = 1,
        *,
        include_latent_terms: bool = False,
        seed: int = 0,
        out: None = None,
    ) -> float: ...
    @overload
    def get_marginal_ll(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        *,
        return_mean: Literal[False],
        n_mc_samples_per_pass: int = 1,
        include_latent_terms: bool = False,
        seed: int = 0,
        out: None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def get_marginal_ll(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        *,
        return_mean: Literal[False],
        n_mc_samples_per_pass: int = 1,
        include_latent_terms: bool = False,
        seed: int = 0,
        out: str | Path,
    ) -> zarr.Group: ...
    def get_marginal_ll(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,  # noqa: FBT001, FBT002
        n_mc_samples_per_pass: int = 1,
        *,
        include_latent_terms: bool = False,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> float | NDArray[np.float32] | zarr.Group:
        """Estimate the log-probability of the counts of cells by importance sampling; higher is better.

        Parameters
        ----------
        n_mc_samples
            Draws for each cell.
        return_mean
            Average over the cells (scvi-tools averages the means of its minibatches), else return that of each.
        n_mc_samples_per_pass
            Draws in memory at a time.
        include_latent_terms
            SCANVI: weight as scvi-tools 1.4.2 does, which adds latent terms to the log-probability of the counts.
        out
            Holds ``obs/marginal_ll``; needs ``return_mean=False``.

        Notes
        -----
        scvi-tools 1.4.2, module/_vae.py: marginal_ll. See
        `dist_scvi.inference.likelihood_estimates.marginal_log_likelihood`.
        """
        self._check_latent_terms(include_latent_terms)
        check_count("n_mc_samples", n_mc_samples)
        check_count("n_mc_samples_per_pass", n_mc_samples_per_pass)
        compute = partial(
            marginal_log_likelihood,
            self.module,
            n_samples=n_mc_samples,
            n_samples_per_pass=n_mc_samples_per_pass,
            include_latent_terms=include_latent_terms,
            seed=seed,
        )
        selection = self.select(adata, indices)
        return self._for_each(selection, "marginal_ll", compute, batch_size, out, return_mean=return_mean)

    def report(
        self,
        out: str | Path = "report.html",
        *,
        columns: Sequence[str] = (),
        fast: bool = False,
        multiqc: bool = False,
        seed: int = 0,
    ) -> WrittenReport:
        """Write a page that says how good the model is: losses, map, integration, labels, checks, and a verdict.

        Parameters
        ----------
        out
            HTML file to write; ``NAME.json`` and the folder ``NAME_figures`` are written alongside it.
        columns
            obs columns that colour the map.
        fast
            Use smaller samples, and leave out what takes longest.
        multiqc
            Write ``NAME_mqc.json`` for MultiQC too.
        seed
            Seed of the samples and of the map.

        Returns
        -------
        WrittenReport
            The paths, and the verdict.

        Raises
        ------
        ValueError
            If a column does not exist, or the packages of ``pip install 'dist-scvi[report]'`` are not installed.
        """
        config = {"data": {"uri": self.data.store.uri}, "model": self.spec.model.model_dump(mode="json")}
        target = Path(out).expanduser().resolve()
        subject = subject_of_model(self, config)
        return write_report(subject, target, columns=columns, fast=fast, multiqc=multiqc, seed=seed)

    def _check_latent_terms(self, include_latent_terms: bool) -> None:  # noqa: FBT001
        if include_latent_terms and self.model_name != "SCANVI":
            raise ValueError(f"include_latent_terms=True: {self.model_name} has no latent terms, leave it out")

    def _for_each(
        self,
        selection: Selection,
        name: str,
        compute: partial[NDArray[np.float32]],
        batch_size: int | None,
        out: str | Path | None,
        *,
        return_mean: bool,
    ) -> float | NDArray[np.float32] | zarr.Group:
        """Return one number per requested cell, or their mean. They depend on the keywords of `compute`."""
        check_counts(selection.data, name)
        if return_mean and out is not None:
            raise ValueError(f"out={str(out)!r} is for the values of cells: give return_mean=False with it")
        if return_mean:
            return mean_over_cells(selection, compute, self.world, chunk_cells=chunk_cells_of(batch_size))
        identity = (name, compute.keywords)
        found = self._answer(
            selection, lambda cells: {f"obs/{name}": compute(cells)}, batch_size, out, identity=identity
        )
        return found if isinstance(found, zarr.Group) else found[0]
