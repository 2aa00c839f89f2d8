"""Quantised forms of a weight, written from the formats' published layouts, with the numbers that they stand for.

Each takes a weight [outputs, inputs] and gives the tensors of its module and the dequantised weight, float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Form: TypeAlias = tuple[dict[str, Tensor], Tensor]
Writer: TypeAlias = Callable[[Tensor], Form]
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
NF4 = (
    *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
FP4 = (0.0, 0.0052083333, 0.6666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)


def words(values: np.ndarray, bits: int) -> Tensor:
    """Unsigned integers along the last axis, packed into int32 words bit by bit, the lowest first."""
    each = 32 // bits
    padded = np.pad(values, [*[(0, 0)] * (values.ndim - 1), (0, -values.shape[-1] % each)]).astype(np.uint64)
    parts = padded.reshape(*padded.shape[:-1], -1, each)
    whole = sum(parts[..., i] << np.uint64(i * bits) for i in range(each))
    return torch.from_numpy(np.asarray(whole).astype(np.uint32).view(np.int32).copy())


def rounded(
    weight: Tensor, groups: Tensor, bits: int, symmetric: bool, dtype: torch.dtype = torch.float16
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Unsigned integers [outputs, inputs], and scales and zero points [outputs, groups].

    groups: of each input
    """
    count, most = int(groups.max()) + 1, (1 << bits) - 1
    parts = [weight[:, groups == group] for group in range(count)]
    low = torch.stack([part.amin(1) for part in parts], 1).clamp(max=0)
    high = torch.stack([part.amax(1) for part in parts], 1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / most).clamp(min=1e-4).to(dtype)
    zeros = torch.full_like(low, 1 << (bits - 1)) if symmetric else (-low / scales.float()).round().clamp(1, most)
    spread = (weight / scales.float()[:, groups] + zeros[:, groups]).round().clamp(0, most)
    return spread.numpy().astype(np.int64), scales, zeros


def numbers(values: np.ndarray, scales: Tensor, zeros: Tensor, groups: Tensor) -> Tensor:
    integers = torch.from_numpy(values).float()
    return (integers - zeros[:, groups]) * scales.float()[:, groups]


def gptq(
    weight: Tensor, bits: int = 4, group: int = 16, symmetric: bool = True, act_order: bool = False, version: int = 1
) -> Form:
    inputs = weight.shape[1]
    groups = torch.arange(inputs) // (inputs if group == -1 else group)
    if act_order:
        groups = groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
    values, scales, zeros = rounded(weight, groups, bits, symmetric)
    stored = zeros.numpy().astype(np.int64) - (1 if version == 1 else 0)
    tensors = {
        "qweight": words(values, bits).T.contiguous(),
        "qzeros": words(stored.T, bits),
        "scales": scales.T.contiguous(),
        "g_idx": groups.int(),
    }
    return tensors, numbers(values, scales, zeros, groups)


def awq(weight: Tensor, group: int = 16) -> Form:
    groups = torch.arange(weight.shape[1]) // group
    values, scales, zeros = rounded(weight, groups, 4, False)

    def packed(matrix: np.ndarray) -> Tensor:
        eights = matrix.reshape(matrix.shape[0], -1, 8)[..., AWQ_COLUMNS]
        return words(eights.reshape(matrix.shape), 4)

    tensors = {
        "qweight": packed(values.T),
        "qzeros": packed(zeros.numpy().astype(np.int64).T),
        "scales": scales.T.contiguous(),
    }
    return tensors, numbers(values, scales, zeros, groups)


def pack_quantized(
    weight: Tensor, bits: int = 4, group: int | None = 16, symmetric: bool = True, act_order: bool = False
) -> Form:
    """compressed-tensors' integers in words. group: None for one scale a row"""
    outputs, inputs = weight.shape
    groups = torch.arange(inputs) // (group or inputs)
    if act_order:
        groups = groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
    values, scales, zeros = rounded(weight, groups, bits, symmetric, torch.bfloat16)
    tensors = {
        "weight_packed": words(values, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = words(zeros.numpy().astype(np.int64).T, bits).T.contiguous()
    if act_order:
        tensors["weight_g_idx"] = groups.int()
    return tensors, numbers(values, scales, zeros, groups)


def eight_bits(
    weight: Tensor, rows: int, columns: int, dtype: torch.dtype = torch.float8_e4m3fn, name: str = "weight_scale"
) -> Form:
    """8-bit floats or integers with a scale for each block of `rows` x `columns`, the last ones cut off."""
    most = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    high, wide = -(-weight.shape[0] // rows), -(-weight.shape[1] // columns)
    scales, whole = torch.empty(high, wide), torch.empty_like(weight)
    for i in range(high):
        for j in range(wide):
            block = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scales[i, j] = weight[block].abs().max() / most
            whole[block] = weight[block] / scales[i, j]
    stored = (whole.round() if dtype == torch.int8 else whole).to(dtype)
    spread = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: weight.shape[0], : weight.shape[1]]
    return {"weight": stored, name: scales}, stored.float() * spread


def one_scale(weight: Tensor, name: str = "weight_scale", whole: tuple[int, ...] = ()) -> Form:
    tensors, found = eight_bits(weight, *weight.shape, name=name)
    extra = {"input_scale": torch.tensor(0.5)}
    return tensors | {name: tensors[name].reshape(whole)} | extra, found


def bnb_rows(weight: Tensor) -> Form:
    largest = weight.abs().amax(1)
    stored = (weight / largest[:, None] * 127).round().to(torch.int8)
    tensors = {"weight": stored, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, stored.float() * largest[:, None] / 127


def bnb_blocks(weight: Tensor, kind: str = "nf4", double: bool = False, block: int = 64) -> Form:
    codes = torch.tensor(NF4 if kind == "nf4" else (*FP4, *(-value for value in FP4)))
    flat = weight.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    largest = blocks.abs().amax(1)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(weight.shape)}
    tensors = {"weight.absmax": largest, "weight.quant_map": codes}
    if double:
        offset, map_ = largest.mean(), torch.linspace(-1, 1, 256)
        centred = largest - offset
        pieces = [centred[i : i + 256] for i in range(0, len(centred), 256)]
        scales = torch.stack([piece.abs().max() for piece in pieces]).clamp(min=1e-6)
        near = [(piece[:, None] / scale - map_).abs().argmin(1) for piece, scale in zip(pieces, scales, strict=True)]
        coded = torch.cat(near).to(torch.uint8)
        largest = map_[coded.int()] * scales.repeat_interleave(256)[: len(coded)] + offset
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
        tensors |= {"weight.absmax": coded, "weight.nested_absmax": scales, "weight.nested_quant_map": map_}
    chosen = (blocks / largest[:, None].clamp(min=1e-9))[..., None].sub(codes).abs().argmin(-1)
    nibbles = chosen.flatten()[: len(flat) + len(flat) % 2].to(torch.uint8)
    tensors["weight"] = ((nibbles[::2] << 4) | nibbles[1::2])[:, None]
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(
        list(json.dumps(state).encode()), dtype=torch.uint8
    )
    return tensors, (codes[chosen] * largest[:, None]).flatten()[: len(flat)].view(weight.shape)


def group_config(bits: int, strategy: str, kind: str = "int", **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, **more}
    return {"targets": ["Linear"], "weights": weights, "input_activations": None}


def compressed(form: str, *groups: dict[str, Any]) -> dict[str, Any]:
    named = {f"group_{i}": group for i, group in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": named, "ignore": ["lm_head"]}


def quantise(folder: Path, entry: dict[str, Any] | None, writer: Writer, plain: Path | None, layers: str) -> int:
    """Rewrite a folder's linear layers below `layers` in a quantised form; how many there were.

    plain: a copy of the folder, whose weights become what the quantised ones stand for
    """
    tensors = load_file(folder / "model.safetensors")
    dense, names = dict(tensors), [name for name in tensors if layers in name and name.endswith(".weight")]
    names = [name for name in names if tensors[name].dim() == 2]
    for name in names:
        parts, found = writer(tensors.pop(name).float())
        dense[name] = found
        tensors |= {f"{name.removesuffix('weight')}{part}": value.contiguous() for part, value in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if plain is not None:
        save_file(dense, plain / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ({"quantization_config": entry} if entry else {})))
    return len(names)


GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [24, 40]}
BNB: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
PACKED = compressed("pack-quantized", group_config(4, "group", group_size=16))
MIXED = compressed(
    "mixed-precision", group_config(4, "group") | {"format": "pack-quantized"}, group_config(8, "channel")
)
BLOCKS = compressed("float-quantized", group_config(8, "block", "float", block_structure=[24, 40]))
ROWS = compressed("int-quantized", group_config(8, "channel"))
FORMS: dict[str, tuple[dict[str, Any], Writer, str]] = {
    "gptq": (GPTQ, gptq, "GPTQ, 4 bits, groups of 16"),
    "gptq without zero": (GPTQ | {"sym": False}, partial(gptq, symmetric=False), "GPTQ, 4 bits, groups of 16"),
    "gptq in another order": (
        GPTQ | {"desc_act": True},
        partial(gptq, symmetric=False, act_order=True),
        "GPTQ, 4 bits, groups of 16",
    ),
    "gptq v2": (
        GPTQ | {"checkpoint_format": "gptq_v2"},
        partial(gptq, symmetric=False, version=2),
        "GPTQ, 4 bits, groups of 16",
    ),
    "gptq of 8 bits": (
        GPTQ | {"bits": 8, "group_size": -1},
        partial(gptq, bits=8, group=-1, symmetric=False),
        "GPTQ, 8 bits, one group",
    ),
    "gptq of 2 bits": (GPTQ | {"bits": 2}, partial(gptq, bits=2), "GPTQ, 2 bits, groups of 16"),
    "gptq of other bits for some": (GPTQ, partial(gptq, bits=8), "GPTQ, 4 bits, groups of 16"),
    "awq": (AWQ, awq, "AWQ, 4 bits, groups of 16"),
    "packed": (PACKED, pack_quantized, "compressed-tensors, int of 4 bits by group"),
    "packed without zero": (
        compressed("pack-quantized", group_config(4, "group", symmetric=False)),
        partial(pack_quantized, symmetric=False),
        "compressed-tensors, int of 4 bits by group",
    ),
    "packed in another order": (
        compressed("pack-quantized", group_config(4, "group", actorder="group")),
        partial(pack_quantized, symmetric=False, act_order=True),
        "compressed-tensors, int of 4 bits by group",
    ),
    "packed of 8 bits": (
        compressed("pack-quantized", group_config(8, "channel")),
        partial(pack_quantized, bits=8, group=None),
        "compressed-tensors, int of 8 bits by channel",
    ),
    "packed of mixed bits": (
        MIXED,
        pack_quantized,
        "compressed-tensors, int of 4 bits by group, int of 8 bits by channel",
    ),
    "int8 rows": (
        ROWS,
        lambda weight: eight_bits(weight, 1, weight.shape[1], torch.int8),
        "compressed-tensors, int of 8 bits by channel",
    ),
    "int8 whole": (
        compressed("int-quantized", group_config(8, "tensor")),
        lambda weight: eight_bits(weight, *weight.shape, torch.int8),
        "compressed-tensors, int of 8 bits by tensor",
    ),
    "float8 rows": (
        compressed("float-quantized", group_config(8, "channel", "float")),
        lambda weight: eight_bits(weight, 1, weight.shape[1]),
        "compressed-tensors, float of 8 bits by channel",
    ),
    "float8 groups": (
        compressed("naive-quantized", group_config(8, "group", "float")),
        lambda weight: eight_bits(weight, 1, 16),
        "compressed-tensors, float of 8 bits by group",
    ),
    "float8 blocks": (BLOCKS, partial(eight_bits, rows=24, columns=40), "compressed-tensors, float of 8 bits by block"),
    "fp8 blocks": (
        FP8,
        partial(eight_bits, rows=24, columns=40, name="weight_scale_inv"),
        "fp8, blocks of 24 x 40",
    ),
    "fp8 whole": (FP8 | {"weight_block_size": None}, partial(one_scale, name="weight_scale_inv"), "fp8"),
    "fp8 of vllm": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        partial(one_scale, whole=(1,)),
        "fp8",
    ),
    "fp8 of fbgemm": ({"quant_method": "fbgemm_fp8"}, lambda weight: eight_bits(weight, 1, weight.shape[1]), "fp8"),
    "bitsandbytes of 8 bits": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        bnb_rows,
        "bitsandbytes, 8 bits",
    ),
    "nf4": (BNB, bnb_blocks, "bitsandbytes, 4 bits (nf4)"),
    "nf4, double": (
        BNB | {"bnb_4bit_use_double_quant": True},
        partial(bnb_blocks, double=True),
        "bitsandbytes, 4 bits (nf4, double)",
    ),
    "fp4": (BNB | {"bnb_4bit_quant_type": "fp4"}, partial(bnb_blocks, kind="fp4"), "bitsandbytes, 4 bits (fp4)"),
}
"""`quantization_config`, what writes a weight so, and the format in words."""
