"""Writes quantized.safetensors: weights as bitsandbytes and compressed-tensors store and read them.

Run with torch, bitsandbytes 0.50.2 and compressed-tensors 0.20.0 (both work on a CPU). The tensors of each case are
below its name, the weight that the library makes of them again is `NAME.expected`, and `quantization_config` is in
the file's metadata under the name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from torch import Tensor

WEIGHT = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
Case = tuple[dict[str, Tensor], Tensor, dict[str, Any]]


def four_bits(kind: str, double: bool) -> Case:
    packed, state = bitsandbytes.functional.quantize_4bit(WEIGHT, quant_type=kind, compress_statistics=double)
    tensors = {"weight": packed} | {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return tensors, bitsandbytes.functional.dequantize_4bit(packed, state), config


def rows() -> Case:
    packed, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(WEIGHT.half())
    found = bitsandbytes.functional.int8_vectorwise_dequant(packed, scales)
    return {"weight": packed, "SCB": scales}, found, {"quant_method": "bitsandbytes", "load_in_8bit": True}


def compressed(form: str, **arguments: Any) -> Case:
    args = QuantizationArgs(**arguments)
    block = args.block_structure
    match args.strategy:
        case "group":
            parts = WEIGHT.float().unflatten(1, (-1, args.group_size)).unbind(1)
        case "channel":
            parts = (WEIGHT.float(),)
        case _:
            parts = ()
    if parts:
        low = torch.stack([part.amin(1) for part in parts], 1)
        high = torch.stack([part.amax(1) for part in parts], 1)
    elif block:
        tiles = [[t.float() for t in row.split(block[1], 1)] for row in WEIGHT.split(block[0])]
        low, high = (torch.tensor([[float(f(t)) for t in row] for row in tiles]) for f in (torch.amin, torch.amax))
    else:
        low, high = WEIGHT.float().amin().reshape(1), WEIGHT.float().amax().reshape(1)
    scale, zero = calculate_qparams(low, high, args)
    state = {"weight": WEIGHT.clone(), "weight_scale": scale.bfloat16(), "weight_zero_point": zero}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    expected = compressor.decompress(dict(stored), scheme)["weight"]
    group = json.loads(scheme.model_dump_json())
    return stored, expected, {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


CASES = {
    "nf4": four_bits("nf4", False),
    "nf4_double": four_bits("nf4", True),
    "fp4": four_bits("fp4", False),
    "int8": rows(),
    "packed": compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=16),
    "packed_asym": compressed(
        "pack-quantized", num_bits=4, type="int", strategy="group", group_size=16, symmetric=False
    ),
    "packed_channel": compressed("pack-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
    "ints": compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
    "floats": compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
    "floats_channel": compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    "floats_block": compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[16, 24]),
}

if __name__ == "__main__":
    tensors: dict[str, Tensor] = {}
    for name, (stored, expected, _) in CASES.items():
        tensors |= {f"{name}.{part}": value.contiguous() for part, value in stored.items()}
        tensors[f"{name}.expected"] = expected.bfloat16().contiguous()
    metadata = {name: json.dumps(config) for name, (_, _, config) in CASES.items()}
    save_file(tensors, Path(sys.argv[1]), metadata=metadata)
