"""LinearSCVI: SCVI with a linear decoder (Svensson et al. 2020, doi:10.1093/bioinformatics/btaa169).

Shape letters in this file
    g   genes
    k   latent dimensions
"""

import torch
from torch import Tensor, nn

from dist_scvi.network.batch_norm import MicroBatchNorm
from dist_scvi.network.layers import LinearDecoder
from dist_scvi.network.vae import VAE


class LDVAE(VAE):
    """The network of LinearSCVI: that of SCVI with a linear decoder.

    scvi-tools 1.4.2 builds the networks of SCVI first and then replaces them. So does this class: the networks that are
    discarded draw from the generator, and without them the weights under the same seed would differ.
    """

    def _build(self, n_encoder_in: int, n_decoder_in: int) -> None:
        super()._build(n_encoder_in, n_decoder_in)
        self._build_encoders(n_encoder_in)
        self.decoder = LinearDecoder(
            n_decoder_in,
            self.n_genes,
            n_cat_list=self.n_cat_list,
            use_batch_norm=self.config.use_batch_norm == "both",
            bias=self.config.bias,
        )

    @torch.no_grad()
    def loadings(self) -> Tensor:
        """Return the weight of each latent dimension in each gene, shape (g, k), scaled by batch normalisation."""
        assert isinstance(self.decoder, LinearDecoder)
        linear, *norms = self.decoder.factor_regressor.fc_layers[0].children()
        assert isinstance(linear, nn.Linear)
        weight_gk = linear.weight[:, : self.config.n_latent]
        for norm in norms:
            assert isinstance(norm, MicroBatchNorm)
            assert norm.running_var is not None
            weight_gk = weight_gk * (norm.weight / torch.sqrt(norm.running_var + norm.eps))[:, None]
        return weight_gk.detach()
