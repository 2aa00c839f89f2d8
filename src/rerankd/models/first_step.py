"""The head of an encoder-decoder: the decoder's first step over the encoder's states, and the logits of two answers.

Reference: T5 (Raffel et al., 2020). The step has one token, so its self-attention is the token's own value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rerankd.core import PackedBatch
from rerankd.layers.spec import LayerSpec, Norm
from rerankd.models.heads import BETWEEN, Activation, one_logit


@dataclass(frozen=True, slots=True)
class StepLayer:
    """The weights of one layer of the decoder, as far as its first step reads them.

    norms: float32 [3, H]: before self-attention, before cross-attention, and before the MLP
    own_value, own_out: of self-attention; query, key, value, out: of cross-attention
    up: [M, H], or [2M, H] with the gate first
    """

    norms: Tensor
    own_value: Tensor
    own_out: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class FirstStepHead:
    """The logit of the decoder's first token for each text.

    spec: the specification of the decoder's layers
    start: the embedding of the token that the decoder begins with, float32 [H]
    norm: the norm of the last states, float32 [H]
    relevance: float32 [1, H], or [2, H] for (no, yes)
    logarithm: whether the head gives the logarithm of the logit's sigmoid
    """

    spec: LayerSpec
    layers: tuple[StepLayer, ...]
    start: Tensor
    norm: Tensor
    relevance: Tensor
    activation: Activation
    logarithm: bool
    outputs: int = 0

    def rows(self, batch: PackedBatch) -> None:
        """All rows."""
        return

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """See `Head`."""
        texts = [states[span.start : span.stop] for span in batch.documents()]
        encoded = pad_sequence(texts, batch_first=True).to(self.layers[0].up.dtype)
        lengths = torch.tensor([len(text) for text in texts], device=states.device)
        hidden = (torch.arange(encoded.shape[1], device=states.device) >= lengths[:, None])[:, None]
        x = self.start.expand(len(texts), -1)
        for layer in self.layers:
            x = self._layer(x, encoded, hidden, layer)
        logits = one_logit(_rms(x, self.norm, self.spec.norm) @ self.relevance.T)
        return F.logsigmoid(logits) if self.logarithm else logits

    def _layer(self, x: Tensor, encoded: Tensor, hidden: Tensor, layer: StepLayer) -> Tensor:
        """x: float32 [texts, H]; encoded: the encoder's states [texts, longest, H]; hidden: the padding."""
        spec, dtype = self.spec, encoded.dtype
        self_value = F.linear(_rms(x, layer.norms[0], spec.norm).to(dtype), layer.own_value)
        x = x + F.linear(self_value, layer.own_out)
        queries = F.linear(_rms(x, layer.norms[1], spec.norm).to(dtype), layer.query)
        # q (K s) = (q K) s: it is cheaper to project the one query of each text than every state. So for values.
        keys, values = (part.view(spec.heads, spec.head_dim, -1) for part in (layer.key, layer.value))
        state_queries = torch.einsum("thd,hdm->thm", queries.view(len(x), spec.heads, spec.head_dim), keys)
        logits = (state_queries @ encoded.transpose(1, 2)).float() * spec.softmax_scale
        shares = logits.masked_fill(hidden, float("-inf")).softmax(-1).to(dtype)
        attended = torch.einsum("thm,hdm->thd", shares @ encoded, values).flatten(1)
        x = x + F.linear(attended, layer.out)
        inner = F.linear(_rms(x, layer.norms[2], spec.norm).to(dtype), layer.up)
        activate = BETWEEN[spec.activation]
        if spec.gated:
            gate, inner = inner.chunk(2, dim=1)
            inner = activate(gate) * inner
        else:
            inner = activate(inner)
        return x + F.linear(inner, layer.down)


def _rms(x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, norm.eps)
