"""What an encoder's first layer reads: embeddings, summed and normed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.layers.norm import LayerNorm, States


@dataclass(frozen=True)
class Embeddings:
    """LayerNorm(word + position + token type) of each token (Devlin et al., 2018), summed in float32.

    words: [vocabulary, hidden]; positions: [positions, hidden]; types: [types, hidden]; all in the model's dtype
    """

    words: Tensor
    positions: Tensor
    types: Tensor
    norm: LayerNorm

    def __call__(self, ids: Tensor, positions: Tensor, types: Tensor | None, out: States) -> None:
        """Of tokens, int64 [T] each, into `out` [T, hidden]; without `types` all are of type 0.

        IndexError where a table has no such row.
        """
        norm, kernels = self.norm, self.norm.kernels
        if kernels is not None:
            tables = ((self.words, ids), (self.positions, positions), (self.types, types))
            kernels.embed_layer_norm(tables, norm.weight, norm.bias, norm.eps, out.exact, out.rounded)
            return
        x = F.embedding(ids, self.words).float() + F.embedding(positions, self.positions)
        norm.of_sum(x, F.embedding(torch.zeros_like(ids) if types is None else types, self.types), out)
