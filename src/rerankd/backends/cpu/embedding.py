"""The embeddings of a "post" model: summed and normed, in one pass by the kernels."""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.norm import States
from rerankd.backends.torch.transformer import embed
from rerankd.layers.spec import EmbeddingWeights, TransformerSpec
from rerankd.layers.transformer import Tokens


@dataclass(frozen=True)
class NormedEmbedding:
    """LayerNorm(word + position + token type) of each token (Devlin et al., 2018), summed in float32."""

    spec: TransformerSpec
    weights: EmbeddingWeights
    kernels: Kernels | None

    def __call__(self, tokens: Tokens, rows: slice, out: States) -> None:
        """The embeddings of some tokens into `out`. IndexError for an index outside of its table."""
        types = None if tokens.types is None else tokens.types[rows]
        own = Tokens(tokens.ids[rows], tokens.positions[rows], types)
        w, norm = self.weights, self.spec.embedding_norm
        if (
            self.kernels is not None
            and w.positions is not None
            and w.types is not None
            and norm is not None
            and norm.kind == "layer"
            and w.norm is not None
            and w.norm.bias is not None
            and self.spec.embedding_scale == 1.0
            and self.kernels.fit(w.words.shape[1])
        ):
            tables = ((w.words, own.ids), (w.positions, own.positions), (w.types, own.types))
            self.kernels.embed_layer_norm(tables, w.norm.weight, w.norm.bias, norm.eps, out.float32, out.rounded)
            return
        x = embed(own, w, self.spec)
        out.float32.copy_(x)
        if out.rounded is not out.float32:
            out.rounded.copy_(x)
