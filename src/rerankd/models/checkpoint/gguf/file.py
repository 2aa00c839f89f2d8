"""A GGUF file's metadata, and the places of its tensors.

Reference: `docs/gguf.md` of ggml, versions 2 and 3. The package gguf dequantises tensors, but does not read the
metadata here, because it takes many seconds for a vocabulary of 150,000 tokens; this module takes less than one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rerankd.core import ModelError
from rerankd.models.checkpoint.json_files import shown

T = TypeVar("T", int, float, str, bool)

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Format characters of the module struct, by the type number of a scalar."""
STRING, ARRAY = 8, 9
ALIGNMENT = 32
"""Alignment of tensors in bytes, unless the file has `general.alignment`."""

DAMAGE = (ValueError, OSError, struct.error, LookupError, MemoryError, OverflowError, RecursionError)
"""Exceptions that reading a damaged file raises."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored tensor.

    shape: rows first
    kind: the number of its type
    offset: of its first byte in the file
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """The metadata and the tensors of a GGUF file. Tensors are read on demand.

    Raises ModelError for a file that is damaged or not a GGUF file, and if the package gguf is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
            from gguf.quants import dequantize
        except ImportError:
            raise ModelError("A GGUF file needs an extra package: pip install 'rerankd[gguf]'.") from None
        self.path = path
        self._types, self._sizes = GGMLQuantizationType, GGML_QUANT_SIZES
        self._dequantize: Callable[..., Any] = dequantize
        try:
            self._data = np.memmap(path, dtype=np.uint8, mode="r")
            self._values, self.tensors = _read(self._data.data)
            for name in self.tensors:
                self._rows_of(name)
        except DAMAGE as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{path} is not a GGUF file, or it is damaged: {reason}.") from None
        if self.get("split.count", int, 1) > 1:
            raise ModelError(f"{path} is one part of several; join them with llama-gguf-split --merge.")

    @property
    def architecture(self) -> str:
        """`general.architecture`, which is also the prefix of the names of the model's entries."""
        return self.get("general.architecture", str)

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """An entry of the metadata. Raises ModelError if it is missing or not of type `kind`."""
        value = self._values.get(name, default)
        if value is None:
            raise ModelError(f"{self.path} has no `{name}` in its metadata, which this architecture needs.")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ModelError(f"{self.path}: `{name}` must be {kind.__name__}, not {shown(value)}.")
        return value

    def list_of(self, name: str, kind: type[T]) -> list[T]:
        """A list of the metadata; empty if it is missing. Raises ModelError for an item that is not of type `kind`."""
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise ModelError(f"{self.path}: `{name}` must be a list of {kind.__name__}.")
        return value

    def model_value(self, name: str, kind: type[T], default: T | None = None) -> T:
        """An entry of the model, whose full name begins with the architecture, such as `bert.block_count`."""
        return self.get(f"{self.architecture}.{name}", kind, default)

    def height(self, name: str) -> int:
        """Number of rows of a tensor. Raises ModelError if the tensor is missing."""
        if name not in self.tensors:
            raise ModelError(f"{self.path} has no tensor `{name}`, which this architecture needs.")
        return self.tensors[name].shape[0]

    def kind(self, name: str) -> str:
        """The name of a tensor's type, such as Q4_K."""
        return str(self._types(self.tensors[name].kind).name)

    def rows(self, name: str, rows: slice) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Some rows of a tensor (or values of a vector), dequantised to float32. Raises ModelError."""
        stored = self._rows_of(name)[rows]
        try:
            values = self._dequantize(stored, self._types(self.tensors[name].kind))
        except NotImplementedError:
            raise ModelError(
                f"`{name}` in {self.path} is stored as {self.kind(name)}, which is not supported."
            ) from None
        return np.array(values, dtype=np.float32).reshape(-1, *self.tensors[name].shape[1:])

    def _rows_of(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The stored bytes of each row of a tensor: [rows, bytes]. Raises ValueError for a damaged file."""
        tensor = self.tensors[name]
        block_values, block_bytes = self._sizes[self._types(tensor.kind)]
        width = prod(tensor.shape[1:])
        if width % block_values and prod(tensor.shape) % block_values:
            raise ValueError(f"`{name}` has rows of {width} values, but blocks of {block_values}")
        size = prod(tensor.shape) // block_values * block_bytes
        if tensor.offset + size > len(self._data):
            raise ValueError(f"`{name}` lies beyond the end of the file")
        return self._data[tensor.offset : tensor.offset + size].reshape(tensor.shape[0], -1)


def _read(data: memoryview) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Read the metadata and the list of tensors. Raises ValueError, struct.error and others for a damaged file."""
    magic, version = data[:4].tobytes(), struct.unpack_from("<I", data, 4)[0]
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"the file begins with {magic!r}, version {version}")
    reader = _Reader(data, 8)
    tensors, entries = reader.scalar("Q"), reader.scalar("Q")
    values = {reader.string(): reader.value(reader.scalar("I")) for _ in range(entries)}
    stored: dict[str, Stored] = {}
    for _ in range(tensors):
        name = reader.string()
        shape = tuple(reader.scalar("Q") for _ in range(reader.scalar("I")))
        stored[name] = Stored(shape[::-1], reader.scalar("I"), reader.scalar("Q"))
        if not shape or min(shape) < 1:
            raise ValueError(f"`{name}` has the shape {shape}")
    alignment = values.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"`general.alignment` is {shown(alignment)}")
    start = -(-reader.place // alignment) * alignment
    return values, {name: Stored(tensor.shape, tensor.kind, start + tensor.offset) for name, tensor in stored.items()}


class _Reader:
    """Reads values one after the other. `place` is the offset of the next value in bytes."""

    def __init__(self, data: memoryview, place: int) -> None:
        self._data, self.place = data, place

    def scalar(self, letter: str) -> Any:
        """A number, by the format character of the module struct."""
        form = f"<{letter}"
        (number,) = struct.unpack_from(form, self._data, self.place)
        self.place += struct.calcsize(form)
        return number

    def string(self) -> str:
        """A string: its length, then its bytes in UTF-8."""
        length = self.scalar("Q")
        text = self._data[self.place : self.place + length].tobytes()
        if len(text) < length:
            raise ValueError("a text is cut short")
        self.place += length
        return text.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A value, by the number of its type."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in SCALARS:
            form = f"<{count}{SCALARS[inner]}"
            numbers = list(struct.unpack_from(form, self._data, self.place))
            self.place += struct.calcsize(form)
            return numbers
        return [self.value(inner) for _ in range(count)]
