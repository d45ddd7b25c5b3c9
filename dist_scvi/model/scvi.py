"""SCVI for use in notebooks, with the names, arguments and defaults of ``scvi.model.SCVI`` 1.4.2."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from dist_scvi.config.load import parse_section
from dist_scvi.config.schema import ModelConfig
from dist_scvi.model.cell_source import CellSource
from dist_scvi.model.setup_anndata import setup_anndata
from dist_scvi.model.trainable_model import TrainableModel
from dist_scvi.world import World

if TYPE_CHECKING:
    from anndata import AnnData

Where = Literal["encoder", "decoder", "none", "both"]


class SCVI(TrainableModel):
    """Single-cell variational inference (Lopez et al. 2018, doi:10.1038/s41592-018-0229-2).

    Parameters
    ----------
    adata
        An AnnData after ``SCVI.setup_anndata``, cells from ``dist_scvi.open``, or a store, opened without covariates.
    n_hidden, n_latent, n_layers, dropout_rate
        Width and depth of the networks; dropout is in the encoder.
    dispersion
        ``"gene"``, ``"gene-batch"``, ``"gene-label"`` or ``"gene-cell"``.
    gene_likelihood
        ``"zinb"``, ``"nb"``, ``"poisson"`` or ``"normal"``.
    use_observed_lib_size
        Use the total count of a cell as its library size. Otherwise it is latent, with a prior by batch from a pass
        over the cells.
    latent_distribution
        ``"normal"``, or ``"ln"`` for logistic normal.
    log_variational
        Encode log(1 + counts).
    encode_covariates
        Pass the covariates to the encoder too. Without it a query cannot change the latent space (`load_query_data`).
    deeply_inject_covariates
        Pass covariates to every layer, otherwise to the first.
    batch_representation, batch_embedding_kwargs
        ``"one-hot"``, or ``"embedding"`` of ``embedding_dim`` dimensions (5).
    use_batch_norm, use_layer_norm
        In the ``"encoder"``, the ``"decoder"``, ``"both"`` or ``"none"``.
    seed
        Seed of weights, split, order and noise; ``dist_scvi.settings.seed`` by default.
    world
        Rank of this process among several that train and answer together.

    Raises
    ------
    ValueError
        If an argument is out of range, or the AnnData is not set up.

    Notes
    -----
    scvi-tools 1.4.2, model/_scvi.py. Under one seed the weights are bit for bit those that scvi-tools makes after
    ``torch.manual_seed(seed)``.

    Examples
    --------
    >>> data = dist_scvi.open("atlas.zarr", batch_key="donor")  # doctest: +SKIP
    >>> model = dist_scvi.model.SCVI(data, n_latent=30)  # doctest: +SKIP
    >>> model.train(max_epochs=10)  # doctest: +SKIP
    >>> latent = model.get_latent_representation()  # doctest: +SKIP
    """

    model_name: ClassVar[Literal["SCVI", "SCANVI", "LinearSCVI"]] = "SCVI"

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
        latent_distribution: Literal["normal", "ln"] = "normal",
        *,
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
            "model_name": "SCVI",
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "dispersion": dispersion,
            "gene_likelihood": gene_likelihood,
            "use_observed_lib_size": use_observed_lib_size,
            "latent_distribution": latent_distribution,
            "log_variational": log_variational,
            "encode_covariates": encode_covariates,
            "deeply_inject_covariates": deeply_inject_covariates,
            "batch_representation": batch_representation,
            "use_batch_norm": use_batch_norm,
            "use_layer_norm": use_layer_norm,
            **(batch_embedding_kwargs or {}),
        }
        self._make(adata, parse_section(ModelConfig, "model", tree), seed=seed, world=world)

    @staticmethod
    def setup_anndata(
        adata: "AnnData",
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
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
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
        )
