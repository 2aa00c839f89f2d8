"""A checkpoint with quantised weights, which are dequantised one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import read_json, shown
from rerankd.models.checkpoint.quantized.bitsandbytes import BitsAndBytes
from rerankd.models.checkpoint.quantized.integers import Awq, Gptq
from rerankd.models.checkpoint.quantized.scaled import CompressedTensors, Scaled
from rerankd.models.checkpoint.quantized.stored import Rows, Scheme, Stored
from rerankd.models.checkpoint.tensors import ALL, Checkpoint, Tensors

SCHEMES: Mapping[str, Callable[[Config], Scheme]] = {
    "gptq": Gptq.of,
    "awq": Awq.of,
    "compressed-tensors": CompressedTensors.of,
    "fp8": Scaled.fp8,
    "fbgemm_fp8": Scaled.fp8,
    "bitsandbytes": BitsAndBytes.of,
}
"""The reader of each format's configuration, by `quant_method`."""
KEYS = ("quantization_config", "compression_config", "quantization")
"""Names of the entry of config.json that describes the format."""
ACTIVATIONS = ("input_scale", "input_zero_point", "input_scale_ub", "activation_scale", "output_scale")
CACHES = ("k_scale", "v_scale", "q_scale", "kv_scale")
"""Scales of activations and of a KV cache. They are ignored, because neither is quantised here."""
OLD_GPTQ = "quantize_config.json"
"""The file in which AutoGPTQ stored its configuration before config.json had an entry for it."""
ROWS_AT_ONCE = 512
"""Rows of a weight that are dequantised at once."""


def read_scheme(config: Config) -> Scheme | None:
    """The format of quantised weights that a configuration describes; None for unquantised weights.

    Raises ModelError for an unsupported format.
    """
    section = next((config.section(key) for key in KEYS if config.entries.get(key)), None)
    if section is None and isinstance(config.entries.get("text_config"), Mapping):
        text = config.section("text_config")
        section = next((text.section(key) for key in KEYS if text.entries.get(key)), None)
    old = Path(config.source).parent / OLD_GPTQ
    if section is None and old.is_file():
        section = Config({"quant_method": "gptq"} | read_json(old), str(old))
    if section is None:
        return None
    method = section.entries.get("quant_method")
    if method is None and any(section.entries.get(name) for name in ("load_in_8bit", "load_in_4bit")):
        method = "bitsandbytes"
    if not isinstance(method, str) or method not in SCHEMES:
        mlx = " (a checkpoint of MLX)" if method is None and {"bits", "group_size"} <= section.entries.keys() else ""
        raise ModelError(
            f"{section.source}: `quant_method` is {shown(method)}{mlx}, which is not supported; {', '.join(SCHEMES)} "
            "and GGUF are. Serve the checkpoint from which this one was made."
        )
    return SCHEMES[method](section)


class Quantized:
    """The tensors of a checkpoint, with quantised weights dequantised to float32. See `Tensors`.

    The stored tensors of a weight are read whole, but dequantised a few rows at a time, which saves memory.
    """

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme) -> None:
        self.folder = checkpoint.folder
        self._checkpoint = checkpoint
        try:
            self._stored = scheme.stored(checkpoint)
        except ValueError:
            raise ModelError(
                f"{self.folder} has quantised weights, but not in the format {scheme.description}."
            ) from None
        if not self._stored:
            raise ModelError(
                f"`quantization_config` in config.json of {self.folder} says that weights are quantised "
                f"({scheme.description}), but no weight is stored in that format; remove the entry if the weights are "
                "not quantised."
            )
        unused = {name for name in checkpoint.names if name.rpartition(".")[2] in (*ACTIVATIONS, *CACHES)}
        parts = {part for stored in self._stored.values() for part in stored.parts}
        self.names = (checkpoint.names - parts - unused) | set(self._stored)
        self.description = f"{len(self._stored)} weights are stored quantised ({scheme.description})"
        if unused:
            self.description += f", and {len(unused)} scales of activations or of a cache are ignored"

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        stored = self._stored.get(name)
        return self._checkpoint.shape(name) if stored is None else stored.shape

    def read(self, name: str) -> Tensor:
        """See `Tensors`."""
        stored = self._stored.get(name)
        if stored is None:
            return self._checkpoint.read(name)
        return self._dequantised(name, stored, ALL, ALL)

    def read_part(self, name: str, rows: slice, columns: slice) -> Tensor:
        """See `Tensors`."""
        stored = self._stored.get(name)
        if stored is None:
            return self._checkpoint.read_part(name, rows, columns)
        return self._dequantised(name, stored, rows, columns)

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """See `Tensors`."""
        stored = self._stored.get(name)
        if stored is None:
            return self._checkpoint.read_rows(name, rows)
        read_rows = self._open(name, stored)
        return torch.cat([self._rows(name, read_rows, slice(row, row + 1)) for row in rows])

    def _dequantised(self, name: str, stored: Stored, rows: slice, columns: slice) -> Tensor:
        height, width = (range(size)[part] for size, part in zip(stored.shape, (rows, columns), strict=True))
        weight = torch.empty((len(height), len(width)))
        read_rows = self._open(name, stored)
        for start in range(0, len(height), ROWS_AT_ONCE):
            part = height[start : start + ROWS_AT_ONCE]
            weight[start : start + len(part)] = self._rows(name, read_rows, slice(part.start, part.stop))[:, columns]
        return weight

    def _open(self, name: str, stored: Stored) -> Rows:
        try:
            return stored.open()
        except (ModelError, RuntimeError, IndexError, ValueError) as error:
            raise self._wrong(name, error) from None

    def _rows(self, name: str, read_rows: Rows, rows: slice) -> Tensor:
        try:
            return read_rows(rows)
        except (ModelError, RuntimeError, IndexError, ValueError) as error:
            raise self._wrong(name, error) from None

    def _wrong(self, name: str, error: Exception) -> ModelError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ModelError(f"`{name}` in {self.folder} is stored quantised and cannot be read: {reason.rstrip('.')}.")


def open_tensors(folder: Path, config: Config) -> Tensors:
    """The tensors of a model folder, with quantised weights dequantised. Raises ModelError."""
    scheme, checkpoint = read_scheme(config), Checkpoint(folder)
    return checkpoint if scheme is None else Quantized(checkpoint, scheme)
