"""The embeddings of a "post" model: summed and normed, in one pass by the kernels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.norm import States
from rerankd.backends.torch.transformer import embed
from rerankd.layers.spec import EmbeddingWeights, TransformerSpec
from rerankd.layers.transformer import Tokens


class _Fused(NamedTuple):
    """The weights that the kernels' operation reads."""

    words: Tensor
    positions: Tensor
    types: Tensor
    norm: Tensor
    bias: Tensor
    eps: float


class NormedEmbedding:
    """LayerNorm(word + position + token type) of each token (Devlin et al., 2018), summed in float32.

    kernels: the kernels that compute all embeddings, or None where torch does
    """

    def __init__(self, spec: TransformerSpec, weights: EmbeddingWeights, kernels: Kernels | None) -> None:
        self.spec = spec
        self.weights = weights
        self._fused = _fused(spec, weights)
        fits = self._fused is not None and kernels is not None and kernels.fit(weights.words.shape[1])
        self.kernels = kernels if fits else None

    def __call__(self, tokens: Tokens, rows: slice, out: States) -> None:
        """The embeddings of some tokens into `out`.

        IndexError for an index outside of its table, which the kernels raise when the operation is computed.
        """
        types = None if tokens.types is None else tokens.types[rows]
        tile_tokens = Tokens(tokens.ids[rows], tokens.positions[rows], types)
        if self.kernels is None or self._fused is None:
            x = embed(tile_tokens, self.weights, self.spec)
            out.float32.copy_(x)
            if out.rounded is not out.float32:
                out.rounded.copy_(x)
            return
        w = self._fused
        tables = ((w.words, tile_tokens.ids), (w.positions, tile_tokens.positions), (w.types, tile_tokens.types))
        self.kernels.embed_layer_norm(tables, w.norm, w.bias, w.eps, out.float32, out.rounded)


def _fused(spec: TransformerSpec, w: EmbeddingWeights) -> _Fused | None:
    """The weights for the kernels' operation; None for embeddings that the kernels do not support."""
    norm = spec.embedding_norm
    if w.positions is None or w.types is None or spec.embedding_scale != 1.0 or norm is None or norm.kind != "layer":
        return None
    if w.norm is None or w.norm.bias is None:
        return None
    return _Fused(w.words, w.positions, w.types, w.norm.weight, w.norm.bias, norm.eps)
