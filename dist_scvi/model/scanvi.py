"""SCANVI for use in notebooks, with the names, arguments and defaults of ``scvi.model.SCANVI`` 1.4.2.

Shape letters in this file
    n   cells
    l   labels
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, overload

import numpy as np
import pandas as pd
import torch
import zarr
from numpy.typing import NDArray

from dist_scvi.config.load import parse_section
from dist_scvi.config.schema import ModelConfig
from dist_scvi.inference.cell_selection import Cells
from dist_scvi.inference.output_identity import model_fingerprint
from dist_scvi.inference.zarr_output import RowArrays, chunk_cells_of, write_rows
from dist_scvi.loaders.minibatch import MiniBatch
from dist_scvi.model.cell_source import CellSource, anndata_of
from dist_scvi.model.scvi import SCVI, Where
from dist_scvi.model.setup_anndata import setup_anndata
from dist_scvi.model.trainable_model import Accelerator, TrainableModel
from dist_scvi.model.trainer_arguments import trainer_options
from dist_scvi.network.fit_data import fit_to_spec
from dist_scvi.network.noise import RowNoise
from dist_scvi.network.scanvae import SCANVAE
from dist_scvi.progress_reporter import ProgressReporter
from dist_scvi.session_settings import settings
from dist_scvi.transfer.scanvi_from_scvi import labelled_data, scanvi_from
from dist_scvi.world import World

if TYPE_CHECKING:
    from anndata import AnnData


class SCANVI(TrainableModel):
    """SCVI that also learns labels, of which some cells have none (Xu et al. 2021, doi:10.15252/msb.20209620).

    Parameters
    ----------
    adata
        An AnnData after ``SCANVI.setup_anndata``, or cells from ``dist_scvi.open`` with its `labels_key` and
        `unlabeled_category`.
    n_hidden, n_latent, n_layers, dropout_rate, dispersion, gene_likelihood, use_observed_lib_size
        As of `SCVI`. With ``dispersion="gene-label"`` a cell without a label has the mean over labels by probability.
    linear_classifier
        Classify by one linear layer.
    classifier_parameters
        ``n_layers``, ``n_hidden``, ``dropout_rate`` of the classifier.
    y_prior
        Prior probability of each label, uniform by default.
    objective
        ``"scvi-tools"`` computes the bound of a labelled cell over all labels, as if it had none; ``"conditional"``
        conditions it on its own label, as in the paper.
    log_variational, encode_covariates, deeply_inject_covariates, batch_representation, batch_embedding_kwargs
        As of `SCVI`.
    use_batch_norm, use_layer_norm, seed, world
        As of `SCVI`.

    Raises
    ------
    ValueError
        If an argument is out of range, or there are fewer than two labels.

    Notes
    -----
    scvi-tools 1.4.2, model/_scanvi.py. A cell whose label is missing is unlabelled.
    """

    model_name: ClassVar[Literal["SCVI", "SCANVI", "LinearSCVI"]] = "SCANVI"

    def __init__(  # noqa: PLR0913 - the arguments of scvi-tools
        self,
        adata: CellSource | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        use_observed_lib_size: bool = True,  # noqa: FBT001, FBT002 - the position in scvi-tools
        linear_classifier: bool = False,  # noqa: FBT001, FBT002
        *,
        classifier_parameters: Mapping[str, Any] | None = None,
        y_prior: Sequence[float] | None = None,
        objective: Literal["scvi-tools", "conditional"] = "scvi-tools",
        log_variational: bool = True,
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: Literal["one-hot", "embedding"] = "one-hot",
        batch_embedding_kwargs: Mapping[str, int] | None = None,
        use_batch_norm: Where = "both",
        use_layer_norm: Where = "none",
        seed: int | None = None,
        world: World | None = None,
    ) -> None:
        tree = {
            "model_name": "SCANVI",
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "dispersion": dispersion,
            "gene_likelihood": gene_likelihood,
            "use_observed_lib_size": use_observed_lib_size,
            "linear_classifier": linear_classifier,
            "classifier_parameters": _classifier_options(classifier_parameters),
            "y_prior": None if y_prior is None else tuple(np.ravel(y_prior).tolist()),
            "objective": objective,
            "log_variational": log_variational,
            "encode_covariates": encode_covariates,
            "deeply_inject_covariates": deeply_inject_covariates,
            "batch_representation": batch_representation,
            "use_batch_norm": use_batch_norm,
            "use_layer_norm": use_layer_norm,
            **(batch_embedding_kwargs or {}),
        }
        self._make(adata, parse_section(ModelConfig, "model", tree), seed=seed, world=world)

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        unlabeled_category: str | float,
        labels_key: str | None = None,
        adata: CellSource | None = None,
        *,
        linear_classifier: bool = False,
        classifier_parameters: Mapping[str, Any] | None = None,
        y_prior: Sequence[float] | None = None,
        objective: Literal["scvi-tools", "conditional"] = "scvi-tools",
        seed: int | None = None,
    ) -> Self:
        """Create a model that starts from a trained SCVI model.

        Parameters
        ----------
        unlabeled_category
            Label of the cells that have none, in the type that the column has.
        labels_key
            obs column of the labels; by default that of the SCVI model.
        adata
            Other cells with the same genes and batches; by default those of the SCVI model.
        linear_classifier, classifier_parameters, y_prior, objective
            What SCVI does not have; see the class. All else is as in `scvi_model`.

        Raises
        ------
        ValueError
            If no column of labels is known, or the cells do not fit the SCVI model.

        Warns
        -----
        UserWarning
            If the SCVI model is not trained, as in scvi-tools.

        Notes
        -----
        scvi-tools 1.4.2, model/_scanvi.py. There `labels_key` is ignored if the SCVI model has one.
        """
        if not isinstance(scvi_model, SCVI):
            raise ValueError(f"scvi_model is {type(scvi_model).__name__}: a model of SCVI is needed")  # noqa: TRY004
        if not scvi_model.is_trained:
            warnings.warn("Passed in scvi model hasn't been trained yet.", stacklevel=2)
        options = {
            "linear_classifier": linear_classifier,
            "classifier_parameters": _classifier_options(classifier_parameters),
            "y_prior": None if y_prior is None else tuple(np.ravel(y_prior).tolist()),
            "objective": objective,
        }
        source = scvi_model.data_of(adata)
        data = labelled_data(source, labels_key=labels_key, unlabeled_category=str(unlabeled_category))
        config = parse_section(
            ModelConfig, "model", {**scvi_model.spec.model.model_dump(), "model_name": "SCANVI", **options}
        )
        module, spec = scanvi_from(
            scvi_model.module, scvi_model.spec, data, config, seed=scvi_model.spec.seed if seed is None else seed
        )
        in_memory = scvi_model.adata if adata is None else anndata_of(adata)
        return cls._made(fit_to_spec(data, spec), module, spec, adata=in_memory, world=scvi_model.world)

    @staticmethod
    def setup_anndata(
        adata: "AnnData",
        labels_key: str,
        unlabeled_category: str | float,
        layer: str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
    ) -> None:
        """Record in an AnnData which columns the model uses; see `dist_scvi.model.setup_anndata.setup_anndata`."""
        setup_anndata(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            unlabeled_category=unlabeled_category,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
        )

    def train(  # type: ignore[override]  # in the order of scvi-tools
        self,
        max_epochs: int | None = None,
        n_samples_per_label: int | None = None,
        check_val_every_n_epoch: int | None = None,
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,  # noqa: FBT001, FBT002 - the position in scvi-tools
        batch_size: int | None = None,
        accelerator: Accelerator = "auto",
        devices: int | str | Sequence[int] = "auto",
        *,
        early_stopping: bool = False,
        plan_kwargs: Mapping[str, Any] | None = None,
        data_kwargs: Mapping[str, Any] | None = None,
        lanes: int = 1,
        run: str | Path | None = None,
        enable_progress_bar: bool = True,
        **trainer_kwargs: Any,
    ) -> None:
        """Continue training from the present weights; arguments not named here are those of ``SCVI.train``.

        Parameters
        ----------
        max_epochs
            By default as for SCVI; after `from_scvi_model` a third of it, from 2 to 10.
        n_samples_per_label
            Labelled cells of each label that the classifier draws anew in each epoch; all by default.
        plan_kwargs
            Also ``classification_ratio``, the weight of the classification loss (50).

        Raises
        ------
        ValueError
            If no training cell has a label, and as ``SCVI.train``.
        """
        options: dict[str, Any] = {
            "max_epochs": max_epochs,
            "n_samples_per_label": n_samples_per_label,
            "check_val_every_n_epoch": check_val_every_n_epoch,
            "train_size": train_size,
            "validation_size": validation_size,
            "batch_size": settings.batch_size if batch_size is None else batch_size,
            "early_stopping": early_stopping or None,
            "lanes": lanes,
        }
        given = {"shuffle_set_split": shuffle_set_split, **trainer_kwargs}
        options |= trainer_options(given, has_run=run is not None)
        device = self._choose_device(accelerator, devices)
        self._train(options, plan_kwargs, data_kwargs, device=device, run=run, progress=enable_progress_bar)

    @overload
    def predict(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        soft: Literal[False] = False,  # noqa: FBT002
        batch_size: int | None = None,
        use_posterior_mean: bool = True,  # noqa: FBT001, FBT002
        *,
        seed: int = 0,
        out: None = None,
    ) -> NDArray[Any]: ...
    @overload
    def predict(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        *,
        soft: Literal[True],
        batch_size: int | None = None,
        use_posterior_mean: bool = True,
        seed: int = 0,
        out: None = None,
    ) -> pd.DataFrame: ...
    @overload
    def predict(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        soft: bool = False,  # noqa: FBT001, FBT002
        batch_size: int | None = None,
        use_posterior_mean: bool = True,  # noqa: FBT001, FBT002
        *,
        seed: int = 0,
        out: str | Path,
    ) -> zarr.Group: ...
    def predict(
        self,
        adata: CellSource | None = None,
        indices: Cells | None = None,
        soft: bool = False,  # noqa: FBT001, FBT002 - the position in scvi-tools
        batch_size: int | None = None,
        use_posterior_mean: bool = True,  # noqa: FBT001, FBT002
        *,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> NDArray[Any] | pd.DataFrame | zarr.Group:
        """Predict the labels of cells.

        Parameters
        ----------
        adata, indices
            Which cells; see `select`.
        soft
            Return the probability of each label.
        batch_size
            Cells computed at a time; the answer does not depend on it.
        use_posterior_mean
            Classify the mean of a cell's posterior, else one draw of it.
        seed
            Seed of the draw; a cell's draw does not depend on which others are requested.
        out
            Zarr folder to write instead, by chunks: ``obsm/probability``, and in ``obs/predicted`` the place of the
            most probable label among ``labels``, an attribute of the group.

        Returns
        -------
        numpy.ndarray, pandas.DataFrame or zarr.Group
            Labels in the type that the column has in obs, or cells by labels; what was written, if `out` is given.
        """
        module = self.module
        assert isinstance(module, SCANVAE)
        assert self.spec.label is not None
        categories = self.spec.label.values()

        @torch.no_grad()
        def probabilities(minibatch: MiniBatch) -> tuple[NDArray[np.float32]]:
            qzm_nk, qzv_nk = module.encode(minibatch.to(module.device))
            if not use_posterior_mean:
                qzm_nk = qzm_nk + qzv_nk.sqrt() * RowNoise(seed, minibatch.row_n).normal(qzm_nk)
            return (module.probabilities(module.latent(qzm_nk)).cpu().numpy(),)

        def written(minibatch: MiniBatch) -> RowArrays:
            (found_nl,) = probabilities(minibatch)
            return {"obsm/probability": found_nl, "obs/predicted": found_nl.argmax(axis=1).astype(np.int32)}

        selection, chunk_cells = self.select(adata, indices), chunk_cells_of(batch_size)
        if out is not None:
            return write_rows(
                selection,
                written,
                out,
                identity={
                    "model": model_fingerprint(module, self.spec),
                    "asked": ("predict", use_posterior_mean, seed),
                },
                world=self.world,
                chunk_cells=chunk_cells,
                attributes={"labels": categories.tolist()},
                on_progress=ProgressReporter("computed"),
            )
        (probability_nl,) = selection.answer(probabilities, self.world, chunk_cells=chunk_cells)
        if soft:
            return pd.DataFrame(probability_nl, index=selection.obs_names(), columns=categories)
        label_n: NDArray[Any] = categories[probability_nl.argmax(axis=1)]
        return label_n


def _classifier_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Leave out ``logits=True``: scvi-tools names its only working form, which is the only one here."""
    options = dict(given or {})
    if options.get("logits") is True:
        del options["logits"]
    return options
