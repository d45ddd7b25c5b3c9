"""A linear layer whose product a training step may compute in bfloat16."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer with an option to multiply in bfloat16; its result is float32 in any case."""

    operands: torch.dtype | None = None
    """Type that the factors of the product are rounded to; None does not round them."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x`."""
        return self.product(x, self.weight)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply `x` by some columns of the weight and add the bias."""
        if self.operands is None:
            return F.linear(x, weight, self.bias)
        product = F.linear(x.to(self.operands), weight.to(self.operands))
        return product.float() if self.bias is None else product + self.bias  # the bias is not rounded
