"""Linear layers as GEMMs of cuBLAS: in the dtype of the weights, or in float8 with a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.cuda.float8 import Operand, quantised_rows
from rerankd.layers.spec import Affine

MULTIPLE = 16
"""Both sides of a float8 GEMM must be multiples of this."""


class Linear(Protocol):
    """x W^T + b: [rows, in] -> [rows, out]."""

    def __call__(self, x: Operand) -> Tensor: ...

    def rows(self, start: int, stop: int | None) -> Linear:
        """The layer of some outputs alone; it shares the weights."""
        ...


@dataclass(frozen=True, slots=True)
class PlainLinear:
    """A `Linear` in the dtype of its weights."""

    affine: Affine

    def __call__(self, x: Operand) -> Tensor:
        """See `Linear`. It reads plain rows."""
        assert x.plain is not None, "the rows were quantised"
        return F.linear(x.plain, *self.affine)

    def gelu(self, x: Operand) -> Tensor:
        """GELU behind it, in the GEMM's epilogue: by the approximation with tanh, which is what cuBLAS has."""
        weight, bias = self.affine
        assert x.plain is not None, "the rows were quantised"
        if bias is None:
            return F.gelu(F.linear(x.plain, weight), approximate="tanh")
        return torch._addmm_activation(bias, x.plain, weight.t(), use_gelu=True)

    def rows(self, start: int, stop: int | None) -> PlainLinear:
        """See `Linear`."""
        weight, bias = self.affine
        return PlainLinear(Affine(weight[start:stop], None if bias is None else bias[start:stop]))


@dataclass(frozen=True, slots=True)
class Fp8Linear:
    """A `Linear` of float8 weights and inputs (e4m3), each row of both with a scale of its own; sums are float32.

    weight: float8 [out, in]; scale: float32 [out, 1]
    dtype: the dtype of the result
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(cls, affine: Affine) -> Fp8Linear:
        """Quantise the weights of a layer."""
        weight, scale = quantised_rows(affine.weight)
        return cls(weight, scale, affine.bias, affine.weight.dtype)

    def __call__(self, x: Operand) -> Tensor:
        """See `Linear`. Rows that no kernel has quantised yet are now."""
        codes = x.codes
        if codes is None:
            assert x.plain is not None, "an operand has rows of one kind"
            codes = quantised_rows(x.plain)
        return torch._scaled_mm(
            codes.values,
            self.weight.t(),
            scale_a=codes.scale,
            scale_b=self.scale.t(),
            bias=self.bias,
            out_dtype=self.dtype,
        )

    def rows(self, start: int, stop: int | None) -> Fp8Linear:
        """See `Linear`."""
        bias = None if self.bias is None else self.bias[start:stop]
        return Fp8Linear(self.weight[start:stop], self.scale[start:stop], bias, self.dtype)


def linear(affine: Affine, fp8: bool) -> Linear:
    """The layer in float8 if that is asked for and its sizes allow it."""
    out, width = affine.weight.shape
    return Fp8Linear.of(affine) if fp8 and not out % MULTIPLE and not width % MULTIPLE else PlainLinear(affine)


def stacked(*parts: Affine) -> Affine:
    """One linear layer with the outputs of all `parts`, one behind another."""
    biases = [part.bias for part in parts if part.bias is not None]
    assert len(biases) in (0, len(parts)), "either all have a bias or none"
    return Affine(torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None)
