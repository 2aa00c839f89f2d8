"""The backend of CUDA devices."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.base import Backend
from rerankd.backends.ranks import Ranks
from rerankd.backends.torch.attention import sdpa_attention
from rerankd.backends.torch.backend import TorchBackend
from rerankd.backends.torch.transformer import activate
from rerankd.core import ModelError
from rerankd.layers.relative import Buckets, Disentangled
from rerankd.layers.spec import Activation, Affine, TransformerSpec, TransformerWeights
from rerankd.layers.transformer import Projection, Transformer

log = logging.getLogger("rerankd")

FP8_CAPABILITY = (8, 9)
"""The first compute capability whose GEMMs take float8: Ada."""


def cuda_backend(device: torch.device, dtype: torch.dtype, quantization: str | None, ranks: Ranks) -> Backend:
    """Fused kernels where Triton is installed, else plain tensors, with torch's flash attention for 16 bits."""
    if find_spec("triton") is not None:
        return CudaBackend(device, dtype, fp8=quantization == "fp8", ranks=ranks)
    if dtype == torch.float32:
        return TorchBackend(device, dtype, sdpa_attention, "cuda", ranks)
    from rerankd.backends.cuda.attention import varlen_attention

    return TorchBackend(device, dtype, varlen_attention, "cuda", ranks)


def expect_fp8(device: torch.device) -> None:
    """ModelError where GEMMs in float8 cannot run."""
    if find_spec("triton") is None:
        raise ModelError("fp8 needs the package triton, which is not installed; leave the quantization out.")
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        raise ModelError(
            f"fp8 needs a device of compute capability {'.'.join(map(str, FP8_CAPABILITY))} or later; this one has "
            f"{'.'.join(map(str, capability))}. Leave the quantization out."
        )


@dataclass(frozen=True, slots=True)
class CudaBackend:
    """GEMMs by cuBLAS, fused kernels in Triton, CUDA graphs for small batches."""

    device: torch.device
    dtype: torch.dtype
    fp8: bool = False
    name: str = "cuda"
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
        if any(isinstance(layer.attention_bias, Disentangled) for layer in spec.layers):
            return "disentangled attention"
        if any(isinstance(layer.attention_bias, Buckets) for layer in spec.layers):
            return "biases of distance"
        if any(layer.output_norms for layer in spec.layers):
            return "norms behind attention and MLP"
        if any(layer.head_dim > 256 for layer in spec.layers):
            return "heads of more than 256 values"
        if len({layer.placement for layer in spec.layers}) > 1:
            return "pre- and post-norm layers in one model"
        return self.ranks.shard.lacks(spec)

    def transformer(self, spec: TransformerSpec, weights: TransformerWeights) -> Transformer:
        """See `Executor.transformer`."""
        from rerankd.backends.cuda.graphs import cuda_recorder
        from rerankd.backends.cuda.transformer import CudaTransformer

        if self.fp8 and not spec.causal:
            log.warning("fp8 is for decoders: the layers of a bidirectional transformer stay in %s.", self.dtype)
        # Sums of several processes are not recorded.
        record = cuda_recorder() if self.device.type == "cuda" and self.ranks.shard.size == 1 else None
        fp8 = self.fp8 and spec.causal
        return CudaTransformer(spec, weights, self.device, self.dtype, fp8, record, self.ranks)

    def projection(self, weights: Affine, activation: Activation | None = None) -> Projection:
        """See `Executor.projection`."""

        def project(x: Tensor) -> Tensor:
            y = F.linear(x, *weights)
            return y if activation is None else activate(y, activation)

        return project
