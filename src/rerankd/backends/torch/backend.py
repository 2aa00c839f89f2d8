"""The backend of plain tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.ranks import Ranks
from rerankd.backends.torch.attention import Attention, sdpa_attention
from rerankd.backends.torch.transformer import TorchTransformer, activate
from rerankd.layers.spec import Activation, Affine, TransformerSpec, TransformerWeights
from rerankd.layers.transformer import Projection


@dataclass(frozen=True, slots=True)
class TorchBackend:
    """A `Backend` for any device. `attention` is the one part in which devices differ."""

    device: torch.device
    dtype: torch.dtype
    attention: Attention = sdpa_attention
    name: str = "torch"
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def title(self) -> str:
        """See `Backend`."""
        return self.name

    @property
    def fast_quantization(self) -> str | None:
        """See `Backend`."""
        return None

    def supports(self, spec: TransformerSpec) -> str | None:
        """See `Backend.supports`."""
        return self.ranks.shard.lacks(spec)

    def transformer(self, spec: TransformerSpec, weights: TransformerWeights) -> TorchTransformer:
        """See `Executor.transformer`."""
        return TorchTransformer(spec, weights, self.attention, self.dtype, self.ranks)

    def projection(self, weights: Affine, activation: Activation | None = None) -> Projection:
        """See `Executor.projection`."""

        def project(x: Tensor) -> Tensor:
            y = F.linear(x, *weights)
            return y if activation is None else activate(y, activation)

        return project
