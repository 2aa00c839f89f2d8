"""The backend of CPUs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor

from rerankd.backends.cpu.linear import DenseLinear, Linear, PackedLinear, int8_linear, int16_linear, kernel_linear
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.rows import to_dense
from rerankd.backends.cpu.runtime import ROW_TILE_STEP, MakeLinear, Runtime
from rerankd.backends.cpu.transformer import PostNormTransformer, PreNormTransformer
from rerankd.core import ModelError
from rerankd.layers.relative import Buckets, Disentangled
from rerankd.layers.spec import Activation, Affine, LayerSpec, TransformerSpec, TransformerWeights
from rerankd.layers.transformer import Projection, Transformer

# Enough rows to pay for loading a GEMM's weight into the cache; few enough that the rows between two GEMMs stay there.
ROW_TILE_VALUES = 1 << 21
# The kernels' GEMMs block for the caches by themselves. For each thread: enough rows that calls are few and weights are
# seldom loaded from memory; few enough that the rows between two GEMMs stay near. A tile unit multiplies so fast that
# it pays to load weights as seldom as the third-level cache allows.
KERNEL_ROW_TILE_VALUES, KERNEL_LEAST_ROWS = 1 << 19, 512
TILE_UNIT_ROW_TILE_VALUES = 3 << 21


class CpuBackend:
    """A `Backend` for bfloat16 and float32 on a CPU, with linear layers in 8 bits if asked for."""

    name: Final = "cpu"
    device: Final = torch.device("cpu")

    def __init__(self, dtype: torch.dtype, quantization: str | None = None) -> None:
        """quantization: "int8", or None for linear layers in `dtype`. ModelError without kernels and without VNNI."""
        self.dtype = dtype
        kernels = Kernels.load(dtype)
        values, least = _row_tile(kernels)
        self.runtime = Runtime(
            dtype=dtype,
            kernels=kernels,
            linear=_linear(quantization, dtype, kernels),
            precise_linear=_precise_linear(quantization, dtype, kernels),
            row_tile_values=values,
            least_rows=least,
        )

    @property
    def title(self) -> str:
        """See `Backend`."""
        kernels = self.runtime.kernels
        return f"{self.name}/{kernels.unit.name}" if kernels else self.name

    @property
    def fast_quantization(self) -> str | None:
        """See `Backend`. Without kernels int8 is hardly faster than float32."""
        return "int8" if self.runtime.kernels else None

    def supports(self, spec: TransformerSpec) -> str | None:
        """See `Backend.supports`."""
        return next(filter(None, map(_lacking, dict.fromkeys(spec.layers))), None)

    def transformer(self, spec: TransformerSpec, weights: TransformerWeights) -> Transformer:
        """See `Executor.transformer`."""
        if spec.layers[0].placement == "post":
            return PostNormTransformer(spec, weights, self.runtime)
        return PreNormTransformer(spec, weights, self.runtime)

    def projection(self, weights: Affine, activation: Activation | None = None) -> Projection:
        """See `Executor.projection`."""
        linear = self.runtime.linear(weights.weight, weights.bias)
        outputs, inputs = weights.weight.shape

        def project(x: Tensor) -> Tensor:
            out = x.new_empty(len(x), outputs)
            for rows in self.runtime.row_tiles(len(x), max(inputs, outputs)):
                y = linear(x[rows]) if activation is None else linear.with_activation(x[rows], activation)
                out[rows] = to_dense(y)
            return out

        return project


ABSENT: dict[type, str] = {
    str: "ALiBi",
    Disentangled: "disentangled attention",
    Buckets: "biases of distance",
}
"""Kinds of `LayerSpec.attention_bias`, which no kernel has."""


def _lacking(spec: LayerSpec) -> str | None:
    """The feature of a layer that the backend does not support; None where there is none."""
    if spec.window is not None:
        return "attention windows"
    if spec.attention_bias is not None:
        return ABSENT[type(spec.attention_bias)]
    if spec.rotary is not None and 2 * len(spec.rotary.frequencies) != spec.head_dim:
        return "partial rotation"
    if spec.output_norms:
        return "norms behind attention and MLP"
    if spec.qk_norm is not None and spec.qk_norm.kind != "rms":
        return "a LayerNorm of queries and keys"
    if spec.gated and spec.activation != "silu":
        return f"a gated MLP with {spec.activation}"
    if not spec.gated and spec.activation not in ("gelu", "gelu_tanh", "quick_gelu"):
        return f"an MLP with {spec.activation}"
    if spec.placement == "post":
        if spec.gated or spec.rotary is not None or spec.qk_norm is not None or spec.causal:
            return "rotation, gating or causal attention in a post-norm layer"
        if spec.norm.kind != "layer":
            return "RMSNorm in a post-norm layer"
    return None


def _row_tile(kernels: Kernels | None) -> tuple[int, int]:
    """The most values of a row tile, and the rows that it has at least, whatever their width."""
    if kernels is None:
        return ROW_TILE_VALUES, ROW_TILE_STEP
    threads = torch.get_num_threads()
    if kernels.unit.name == "amx":
        return TILE_UNIT_ROW_TILE_VALUES * threads, ROW_TILE_STEP
    return KERNEL_ROW_TILE_VALUES * threads, KERNEL_LEAST_ROWS * threads


def _linear(quantization: str | None, dtype: torch.dtype, kernels: Kernels | None) -> MakeLinear:
    if quantization is None:
        packed = dtype == torch.bfloat16 and _onednn_multiplies_bfloat16()
        return partial(kernel_linear, kernels=kernels, otherwise=PackedLinear if packed else DenseLinear)
    if quantization != "int8":
        raise ModelError(f"The quantization {quantization!r} is unknown; choose int8, or leave the quantization out.")
    if _has_vnni():
        return partial(int8_linear, kernels=kernels)
    # Without VNNI oneDNN adds pairs of products in 16 bits, which saturate.
    if kernels is None:
        raise ModelError(
            "int8 needs the compiled kernels on a processor with AVX2 or a 64-bit ARM, or a processor with VNNI, whose "
            "8-bit sums are exact; here is neither."
        )
    return partial(_exact_int8_linear, kernels=kernels)


def _precise_linear(quantization: str | None, dtype: torch.dtype, kernels: Kernels | None) -> MakeLinear:
    """Makes the layers that lose too much precision in 8 bits: in 16 bits where kernels are faster in these."""
    otherwise = _linear(None, dtype, kernels)
    if quantization is None or kernels is None or not kernels.largest_half:
        return otherwise

    def make(weight: Tensor, bias: Tensor | None) -> Linear:
        return int16_linear(weight, bias, kernels) if kernels.fit_gemm(*weight.shape) else otherwise(weight, bias)

    return make


def _exact_int8_linear(weight: Tensor, bias: Tensor | None, kernels: Kernels) -> Linear:
    return int8_linear(weight, bias, kernels) if kernels.fit_gemm(*weight.shape) else DenseLinear(weight, bias)


def _has_vnni() -> bool:
    supported: Callable[[], bool] = getattr(torch.cpu, "_is_vnni_supported", bool)
    return supported()


def _onednn_multiplies_bfloat16() -> bool:
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)
    return bool(torch._C._has_mkldnn) and bool(supported())
