"""Weights of 8-bit floats or integers with separate scales: fp8 checkpoints, and the formats of compressed-tensors.

Layout references: `FP8Linear` and `FbgemmFp8Linear` in transformers, the compressors of the package compressed-tensors.
Scales of activations are ignored, because activations are not quantised here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.quantized.grid import Grid, unpacked
from rerankd.models.checkpoint.quantized.stored import Rows, Stored, modules_with, parts_of
from rerankd.models.checkpoint.tensors import Checkpoint

SCALES = ("weight_scale_inv", "weight_scale")
"""Names of a weight's scale. The weight is multiplied by the scale under both names, in spite of `inv`."""
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
STRATEGIES = ("tensor", "channel", "group", "block")


@dataclass(frozen=True, slots=True)
class Scaled:
    """8-bit weights and their scales.

    block: rows and columns of a block; None if no scales are for blocks
    """

    description: str
    block: tuple[int, int] | None = None

    @classmethod
    def fp8(cls, config: Config) -> Scaled:
        """The fp8 formats of transformers, vLLM and FBGEMM: a scale for each block, each row, or the whole weight.

        Raises ModelError for unsupported settings.
        """
        config.require("fmt", "e4m3", None)
        sizes = config.entries.get("weight_block_size")
        if sizes is None:
            return cls("fp8")
        block = _block(config, "weight_block_size")
        return cls(f"fp8, blocks of {block[0]} x {block[1]}", block)

    def stored(self, checkpoint: Checkpoint) -> dict[str, Stored]:
        """See `Scheme`."""
        weights: dict[str, Stored] = {}
        for scale in SCALES:
            for module in modules_with(checkpoint, scale):
                name = f"{module}.weight"
                if name in checkpoint.names and name not in weights:
                    weights[name] = self._stored(checkpoint, module, scale)
        return weights

    def _stored(self, checkpoint: Checkpoint, module: str, scale_name: str) -> Stored:
        name, zeros = f"{module}.weight", f"{module}.weight_zero_point"
        shape = _matrix(name, checkpoint.shape(name))

        def opened() -> Rows:
            weight = checkpoint.read(name)
            if weight.dtype not in EIGHT_BITS:
                raise ModelError(f"it is stored as {str(weight.dtype).removeprefix('torch.')}, but has a scale")
            scale = Grid.of(checkpoint.read(f"{module}.{scale_name}"), shape, self.block)
            zero = Grid.of(checkpoint.read(zeros), shape, self.block) if zeros in checkpoint.names else None
            return lambda rows: _dequantised(weight[rows].float(), rows, scale, zero)

        return Stored(parts_of(checkpoint, module, "weight", scale_name, "weight_zero_point"), shape, opened)


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """The formats of llm-compressor: integers packed into words, or 8-bit numbers.

    scaled: reads the weights that are not packed
    packed: possible numbers of bits of a packed integer
    """

    description: str
    scaled: Scaled
    packed: tuple[int, ...]

    @classmethod
    def of(cls, config: Config) -> CompressedTensors:
        """The format that `quantization_config` describes. Raises ModelError for unsupported settings."""
        config.require("format", "pack-quantized", *FORMATS)
        if config.entries.get("sparsity_config") and config.section("sparsity_config").entries.get("format") != "dense":
            raise config.wrong("sparsity_config", "must be absent or dense")
        config.require("transform_config", None, {})
        groups = config.section("config_groups")
        block, packed, descriptions = None, set[int](), list[str]()
        for name in groups.entries:
            group = groups.section(name)
            group.require("format", None, *FORMATS)
            weights = group.section("weights")
            kind, bits = weights.get("type", str, "int"), weights.size("num_bits")
            if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)):
                raise weights.wrong("num_bits", "must be 4 or 8 for integers, or 8 for floats")
            strategy = weights.entries.get("strategy") or ("group" if weights.entries.get("group_size") else "tensor")
            if strategy not in STRATEGIES:
                raise weights.wrong("strategy", f"must be {', '.join(STRATEGIES)}")
            if strategy == "block":
                block = _block(weights, "block_structure")
            if kind == "int":
                packed.add(bits)
            descriptions.append(f"{kind} of {bits} bits by {strategy}")
        return cls(f"compressed-tensors, {', '.join(descriptions)}", Scaled("", block), tuple(sorted(packed)))

    def stored(self, checkpoint: Checkpoint) -> dict[str, Stored]:
        """See `Scheme`."""
        weights = self.scaled.stored(checkpoint)
        for module in modules_with(checkpoint, "weight_packed"):
            weights[f"{module}.weight"] = self._stored(checkpoint, module)
        return weights

    def _stored(self, checkpoint: Checkpoint, module: str) -> Stored:
        numbers = checkpoint.read(f"{module}.weight_shape").tolist()
        shape = _matrix(f"{module}.weight", tuple(numbers))
        words = checkpoint.shape(f"{module}.weight_packed")
        possible_bits = [bits for bits in self.packed if words == (shape[0], -(-shape[1] * bits // 32))]
        names = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
        order, zeros = f"{module}.weight_g_idx", f"{module}.weight_zero_point"

        def opened() -> Rows:
            if not possible_bits:
                raise ModelError(f"its {list(words)} words do not hold the shape {list(shape)} in {self.packed} bits")
            bits, scales = possible_bits[-1], checkpoint.read(f"{module}.weight_scale")
            groups = checkpoint.read(order) if order in checkpoint.names else None
            packed, half = checkpoint.read(f"{module}.weight_packed"), 1 << (bits - 1)

            def grid(values: Tensor) -> Grid:
                if groups is None or -1 in groups:
                    return Grid.of(values, shape)
                return Grid.of_groups(values, shape[0], groups)

            zero = None
            if zeros in checkpoint.names:
                stored = checkpoint.read(zeros)
                if stored.dtype == torch.int32:
                    stored = unpacked(stored.T, bits)[:, : shape[0]].T - half
                zero = grid(stored)
            scale = grid(scales)
            return lambda rows: _dequantised(unpacked(packed[rows], bits)[:, : shape[1]] - half, rows, scale, zero)

        return Stored(parts_of(checkpoint, module, *names), shape, opened)


def _dequantised(values: Tensor, rows: slice, scale: Grid, zero: Grid | None) -> Tensor:
    return (values if zero is None else values - zero(rows)) * scale(rows)


def _matrix(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2:
        raise ModelError(f"`{name}` is quantised and has the shape {list(shape)}; only matrices are supported.")
    return shape[0], shape[1]


def _block(config: Config, name: str) -> tuple[int, int]:
    """The rows and columns of a block: a list of two sizes, or "128x128"."""
    value = config.entries.get(name)
    sizes = value.split("x") if isinstance(value, str) else value
    if isinstance(sizes, (list, tuple)) and len(sizes) == 2 and all(str(size).isdecimal() for size in sizes):
        rows, columns = map(int, sizes)
        if rows and columns:
            return rows, columns
    raise config.wrong(name, "must be two sizes such as [128, 128]")
