"""What kernels.c computes, as functions of tensors: bfloat16 on a CPU with AVX512-BF16, with AMX where there is one.

The library is built with the package where a C compiler is at hand. Where it is missing, or the processor is another,
`Kernels.load` answers None, and everything here is computed by torch's own functions.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rerankd.layers.attention.layout import AttentionLayout
from rerankd.layers.attention.sdpa import sdpa_attention
from rerankd.layers.rotary import Rotation

_LANES = 16
_HEAD_STEP = 32
_BLOCK_ROWS = 32
_THEN = (None, "silu", "gelu", "gelu_tanh", "times", "plus")


class Int8Rows(NamedTuple):
    """Rows as 8-bit integers: x = (code - zero) * step.

    codes: uint8 [rows, width] in the order that the product reads; steps: float32 [rows]; zeros: int32 [rows]
    """

    codes: Tensor
    steps: Tensor
    zeros: Tensor


class Kernels:
    """The loaded library. Tensors lie on the CPU, contiguous in their last dimension, in bfloat16 unless noted."""

    def __init__(self, library: ctypes.CDLL, features: int) -> None:
        self._library = library
        self._features = features

    @classmethod
    def load(cls) -> Kernels | None:
        """The library, or None where it was not built or has nothing for this processor."""
        for path in sorted(Path(__file__).parent.glob("_kernels*.so")):
            library = ctypes.CDLL(str(path))
            features = library.rerankd_features()
            return cls(library, features) if features else None
        return None

    def fit_products(self, outputs: int, inputs: int) -> bool:
        """Whether the products can take a weight of this shape here."""
        return self.has_amx and inputs % 64 == 0 and outputs % 32 == 0

    @staticmethod
    def fit(*widths: int) -> bool:
        """Whether rows of these widths can be read a whole register at a time."""
        return all(width % _LANES == 0 for width in widths)

    @property
    def has_amx(self) -> bool:
        return bool(self._features & 2)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight for x [rows, width]."""
        out = torch.empty(x.shape, dtype=x.dtype)
        self._library.rerankd_rms_norm(
            _threads(), _i64(len(x)), _i64(x.shape[1]), *_rows(x), _at(weight), _f32(eps), _at(out)
        )
        return out

    def norm_rotate(self, x: Tensor, weight: Tensor, eps: float, rotation: Rotation, out: Tensor) -> None:
        """RMSNorm over each head of x [rows, heads, head_dim], turned by `rotation`, into `out` of the same shape."""
        rows, heads, head_dim = x.shape
        self._library.rerankd_norm_rotate(
            _threads(),
            _i64(rows),
            _i64(heads),
            _i64(head_dim),
            *_rows(x),
            _at(weight),
            _f32(eps),
            _at(rotation.cos),
            _at(rotation.sin),
            *_rows(out),
        )

    def add_layer_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor, rounded: Tensor
    ) -> None:
        """LayerNorm of float32 x [rows, width] and bfloat16 delta, by float32 weights: `out` float32 and `rounded`."""
        self._library.rerankd_add_layer_norm(
            _threads(),
            _i64(len(x)),
            _i64(x.shape[1]),
            _at(x),
            _at(delta),
            _at(weight),
            _at(bias),
            _f32(eps),
            _at(out),
            _at(rounded),
        )

    def quantize(self, x: Tensor) -> Int8Rows:
        """Rows [rows, width] as 8-bit integers, each row over its own range."""
        rows, width = x.shape
        quantized = Int8Rows(
            torch.empty(_filled(rows), width, dtype=torch.uint8),
            torch.empty(rows),
            torch.empty(rows, dtype=torch.int32),
        )
        self._library.rerankd_quantize(_threads(), _i64(rows), _i64(width), *_rows(x), *map(_at, quantized))
        return quantized

    def pack_bf16(self, weight: Tensor) -> Tensor:
        """A weight [outputs, inputs] as `product` reads it."""
        packed = torch.empty_like(weight)
        outputs, inputs = weight.shape
        self._library.rerankd_pack_bf16(_i64(outputs), _i64(inputs), _at(weight), _at(packed))
        return packed

    def pack_int8(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """An int8 weight [outputs, inputs] as `int8_product` reads it, and each output's sum: int32 [outputs]."""
        packed, sums = torch.empty_like(weight), torch.empty(len(weight), dtype=torch.int32)
        outputs, inputs = weight.shape
        self._library.rerankd_pack_int8(_i64(outputs), _i64(inputs), _at(weight), _at(packed), _at(sums))
        return packed, sums

    def product(
        self,
        x: Tensor,
        packed: Tensor,
        bias: Tensor | None,
        then: str | None = None,
        other: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """x W^T + b of x [rows, inputs] and a packed weight, and what follows it before it is rounded, by AMX.

        then: "silu", "gelu", "gelu_tanh", or "times" or "plus" `other` [rows, outputs]
        """
        outputs, inputs = packed.shape
        out = torch.empty(len(x), outputs, dtype=x.dtype) if out is None else out
        tiles = torch.empty(_filled(len(x)), inputs, dtype=x.dtype)
        operands = _Product.of(packed, bias, then, other, out)
        self._library.rerankd_bf16(_threads(), *_rows(x), _at(tiles), ctypes.byref(operands))
        return out

    def int8_product(
        self,
        x: Int8Rows,
        packed: Tensor,
        scales: Tensor,
        sums: Tensor,
        bias: Tensor | None,
        then: str | None = None,
        other: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """`product` of quantised rows and an 8-bit weight with float32 scales and int32 sums [outputs]."""
        out = torch.empty(len(x.steps), len(packed), dtype=torch.bfloat16) if out is None else out
        operands = _Product.of(packed, bias, then, other, out)
        self._library.rerankd_int8(_threads(), *map(_at, (*x, scales, sums)), ctypes.byref(operands))
        return out

    def attention(self, q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
        """An `Attention` (see layout.py), by AMX; head dimensions that do not fill tiles go through torch's own."""
        if q.shape[2] % _HEAD_STEP:
            return sdpa_attention(q, k, v, layout, scale)
        out = torch.empty(q.shape, dtype=q.dtype)
        runs, blocks = layout.runs
        failed = self._library.rerankd_attention(
            _threads(),
            _i64(len(runs) - 1),
            _at(runs),
            _at(blocks),
            _i64(q.shape[1]),
            _i64(k.shape[1]),
            _i64(q.shape[2]),
            *_rows(q),
            *_rows(k),
            *_rows(v),
            ctypes.c_int(layout.causal),
            _f32(scale),
            *_rows(out),
        )
        if failed:
            raise MemoryError("No memory for attention over a batch.")
        return out


class _Product(ctypes.Structure):
    """`product` of kernels.c."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("packed", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("other_stride", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
        ("then", ctypes.c_int64),
    )

    @classmethod
    def of(cls, packed: Tensor, bias: Tensor | None, then: str | None, other: Tensor | None, out: Tensor) -> _Product:
        outputs, inputs = packed.shape
        if out.shape[1] != outputs or (other is not None and other.shape != out.shape):
            raise ValueError(f"A product of {outputs} outputs cannot be written to a tensor of {list(out.shape)}.")
        no_rows = (None, 0)
        return cls(
            len(out),
            inputs,
            outputs,
            _at(packed),
            None if bias is None else _at(bias),
            *(no_rows if other is None else _rows(other)),
            *_rows(out),
            _THEN.index(then),
        )


def _filled(rows: int) -> int:
    """Rows up to whole blocks of tiles."""
    return -(-rows // _BLOCK_ROWS) * _BLOCK_ROWS


_i64 = ctypes.c_int64
_f32 = ctypes.c_float


def _threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())


def _at(tensor: Tensor) -> ctypes.c_void_p:
    """Where a contiguous tensor begins."""
    if not tensor.is_contiguous():
        raise ValueError(f"A tensor of shape {list(tensor.shape)} is not contiguous.")
    return ctypes.c_void_p(tensor.data_ptr())


def _rows(tensor: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    """Where a tensor begins whose rows, alone, are contiguous, and how many elements lie between them."""
    if len(tensor) and not tensor[0].is_contiguous():
        raise ValueError(f"The rows of a tensor of shape {list(tensor.shape)} are not contiguous.")
    return ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.stride(0))
