"""The specification of a transformer layer, as data. A model file fills it in; a backend runs it.

Shapes below: H is the hidden width, A is heads * head_dim, K is kv_heads * head_dim, M is the width of the MLP.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from rerankd.layers.relative import Buckets, Disentangled
from rerankd.layers.rotary import Rotary

Activation: TypeAlias = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
"""quick_gelu is x times the sigmoid of 1.702 x (Hendrycks and Gimpel, 2016)."""
AttentionBias: TypeAlias = Literal["alibi"] | Disentangled | Buckets


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation over the last dimension: LayerNorm (Ba et al., 2016) or RMSNorm (Zhang and Sennrich, 2019).

    offset: added to the stored weight; 1 for checkpoints that store the weight minus 1 (Gemma)
    """

    kind: Literal["layer", "rms"]
    eps: float
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One transformer layer: self-attention, then an MLP, each with a residual connection.

    placement: "pre" for x + f(norm(x)), "post" for norm(x + f(x))
    attention_norm: whether the attention of a "pre" layer has a norm (layer 0 of ModernBERT has none)
    gated: whether the MLP is down(activation(gate(x)) * up(x)) (Shazeer, 2020), else down(activation(up(x)))
    qk_norm: the norm of each head's query and key
    rotary: how positions turn queries and keys; None for no rotation
    window: the number of positions back that a row attends to, and in a bidirectional layer ahead too; None for all
    attention_bias: added to attention logits: "alibi" (Press et al., 2022), or biases by distance
    scale: the factor of attention logits; None for head_dim ** -0.5
    output_norms: whether attention and MLP have a norm behind them too, before they are added (Gemma 2)
    qkv_bias, out_bias, mlp_bias: whether these linear layers have biases
    """

    hidden: int
    heads: int
    head_dim: int
    mlp: int
    norm: Norm
    placement: Literal["pre", "post"]
    activation: Activation
    causal: bool
    kv_heads: int | None = None
    gated: bool = False
    attention_norm: bool = True
    qk_norm: Norm | None = None
    rotary: Rotary | None = None
    window: int | None = None
    attention_bias: AttentionBias | None = None
    scale: float | None = None
    output_norms: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False

    @property
    def query_width(self) -> int:
        """A."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """K."""
        return (self.kv_heads or self.heads) * self.head_dim

    @property
    def softmax_scale(self) -> float:
        """The factor of attention logits."""
        return self.head_dim**-0.5 if self.scale is None else self.scale


@dataclass(frozen=True, slots=True)
class TransformerSpec:
    """A stack of layers of one width, and the norm behind the last of them.

    embedding_norm: the norm of the summed embeddings, if the model has one
    embedding_scale: the factor of word embeddings (Gemma: the root of the hidden width)
    """

    layers: tuple[LayerSpec, ...]
    final_norm: Norm | None = None
    embedding_norm: Norm | None = None
    embedding_scale: float = 1.0

    @property
    def hidden(self) -> int:
        """H."""
        return self.layers[0].hidden

    @property
    def causal(self) -> bool:
        """Whether a row attends only to rows before it, so that the documents of a request can share a prefix."""
        return self.layers[0].causal


class Affine(NamedTuple):
    """Weight and bias of a linear layer ([out, in], [out]) or of a norm ([width] each)."""

    weight: Tensor
    bias: Tensor | None = None


class RelativeWeights(NamedTuple):
    """The tables by distance, in the backend's dtype; None if a model has none.

    keys: [2 * span, A], multiplied by queries; queries: [2 * span, A], multiplied by keys
    biases: [buckets, heads], added to logits
    """

    keys: Tensor | None = None
    queries: Tensor | None = None
    biases: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one layer. Linear weights are in the backend's dtype, norms are float32.

    query: [A, H]; key_value: [2K, H], keys first; out: [H, A]
    up: [M, H], or [2M, H] with the gate first; down: [H, M]
    attention_norm: None if the layer has none; query_norm, key_norm: [head_dim]
    attention_output_norm, mlp_output_norm: None if the layer has no output norms
    """

    query: Affine
    key_value: Affine
    out: Affine
    up: Affine
    down: Affine
    attention_norm: Affine | None
    mlp_norm: Affine
    query_norm: Affine | None = None
    key_norm: Affine | None = None
    attention_output_norm: Affine | None = None
    mlp_output_norm: Affine | None = None
    relative: RelativeWeights | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingWeights:
    """The tables of the first layer's input. The input is the norm of the sum of their rows.

    words: [vocabulary, H]; positions: [positions, H]; types: [token types, H]; all in the backend's dtype
    norm: float32
    """

    words: Tensor
    positions: Tensor | None = None
    types: Tensor | None = None
    norm: Affine | None = None


class TransformerWeights(Protocol):
    """The weights of a `TransformerSpec`."""

    @property
    def embedding(self) -> EmbeddingWeights | None:
        """The tables of the input tokens; None for a transformer whose input is not tokens."""
        ...

    @property
    def final_norm(self) -> Affine | None: ...

    def layers(self) -> Iterable[LayerWeights]:
        """Layer after layer. Each is read only when the caller asks for it, so loading needs little memory."""
        ...
