"""LinearSCVI for use in notebooks, with the names, arguments and defaults of ``scvi.model.LinearSCVI`` 1.4.2."""

from typing import TYPE_CHECKING, ClassVar, Literal

import pandas as pd

from dist_scvi.config.load import parse_section
from dist_scvi.config.schema import ModelConfig
from dist_scvi.model.cell_source import CellSource
from dist_scvi.model.setup_anndata import setup_anndata
from dist_scvi.model.trainable_model import TrainableModel
from dist_scvi.network.ldvae import LDVAE
from dist_scvi.world import World

if TYPE_CHECKING:
    from anndata import AnnData


class LinearSCVI(TrainableModel):
    """SCVI whose decoder is linear, so that each latent dimension has a weight for each gene.

    Svensson et al. 2020, doi:10.1093/bioinformatics/btaa169.

    Parameters
    ----------
    adata
        An AnnData after ``LinearSCVI.setup_anndata``, cells from ``dist_scvi.open``, or a store.
    n_hidden, n_latent, n_layers, dropout_rate
        Width and depth of the encoder.
    dispersion
        ``"gene"`` or ``"gene-batch"``.
    gene_likelihood, use_observed_lib_size, latent_distribution, log_variational
        As of `SCVI`, with other defaults.
    use_batch_norm
        Normalise the factors of the decoder.
    bias
        Add an intercept to the decoder.
    seed, world
        As of `SCVI`.

    Raises
    ------
    ValueError
        If an argument is out of range, or there are covariates other than the batch.

    Notes
    -----
    scvi-tools 1.4.2, model/_linear_scvi.py.
    """

    model_name: ClassVar[Literal["SCVI", "SCANVI", "LinearSCVI"]] = "LinearSCVI"

    def __init__(
        self,
        adata: CellSource | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "nb",
        use_observed_lib_size: bool = False,  # noqa: FBT001, FBT002 - the position in scvi-tools
        latent_distribution: Literal["normal", "ln"] = "normal",
        *,
        log_variational: bool = True,
        use_batch_norm: bool = True,
        bias: bool = False,
        seed: int | None = None,
        world: World | None = None,
    ) -> None:
        tree = {
            "model_name": "LinearSCVI",
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "dispersion": dispersion,
            "gene_likelihood": gene_likelihood,
            "use_observed_lib_size": use_observed_lib_size,
            "latent_distribution": latent_distribution,
            "log_variational": log_variational,
            "use_batch_norm": "both" if use_batch_norm else "encoder",
            "bias": bias,
        }
        self._make(adata, parse_section(ModelConfig, "model", tree), seed=seed, world=world)

    @staticmethod
    def setup_anndata(
        adata: "AnnData", batch_key: str | None = None, labels_key: str | None = None, layer: str | None = None
    ) -> None:
        """Record in an AnnData which columns the model uses; see `dist_scvi.model.setup_anndata.setup_anndata`."""
        setup_anndata(adata, layer=layer, batch_key=batch_key, labels_key=labels_key)

    def get_loadings(self) -> pd.DataFrame:
        """Return the weight of each latent dimension in each gene: genes by ``Z_0``, ``Z_1`` and so on."""
        assert isinstance(self.module, LDVAE)
        columns = [f"Z_{dimension}" for dimension in range(self.spec.model.n_latent)]
        return pd.DataFrame(self.module.loadings().cpu().numpy(), index=list(self.spec.var_names), columns=columns)
