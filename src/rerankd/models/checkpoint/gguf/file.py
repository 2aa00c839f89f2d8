"""A GGUF file's metadata and where its tensors lie.

Reference: `docs/gguf.md` of ggml, versions 2 and 3. The package gguf, which dequantises, reads a vocabulary of 150,000
tokens in many seconds; this reads it in less than one.
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
"""Types of values, as letters of struct."""
STRING, ARRAY = 8, 9
ALIGNMENT = 32
"""Of a file that names none."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor: its shape, the rows of a matrix first, the number of its type, and where it begins."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """The metadata of a file by name, and its tensors. No tensor is read ahead.

    Raises ModelError for a file that is no GGUF file or damaged, and where the package gguf is missing.
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
        except (ValueError, OSError, struct.error, IndexError, KeyError, MemoryError, OverflowError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{path} is not a GGUF file, or it is damaged: {reason}.") from None
        if self.get("split.count", int, 1) > 1:
            raise ModelError(f"{path} is one part of several; join them with llama-gguf-split --merge.")

    @property
    def architecture(self) -> str:
        """`general.architecture`, which the names of the model's own entries begin with."""
        return self.get("general.architecture", str)

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """An entry of the metadata, which must be of `kind`."""
        found = self._values.get(name, default)
        if found is None:
            raise ModelError(f"{self.path} has no `{name}` in its metadata, which this architecture needs.")
        if kind is float and type(found) is int:
            found = float(found)
        if type(found) is not kind:
            raise ModelError(f"{self.path}: `{name}` must be {kind.__name__}, not {shown(found)}.")
        return found

    def list_of(self, name: str, kind: type[T]) -> list[T]:
        """A list among the metadata, each item of which must be of `kind`; empty where there is none."""
        found = self._values.get(name, [])
        if not isinstance(found, list) or not all(type(item) is kind for item in found):
            raise ModelError(f"{self.path}: `{name}` must be a list of {kind.__name__}.")
        return found

    def own(self, name: str, kind: type[T], default: T | None = None) -> T:
        """An entry of the architecture's own."""
        return self.get(f"{self.architecture}.{name}", kind, default)

    def height(self, name: str) -> int:
        """How many rows a matrix has; ModelError where there is none of this name."""
        if name not in self.tensors:
            raise ModelError(f"{self.path} has no tensor `{name}`, which this architecture needs.")
        return self.tensors[name].shape[0]

    def kind(self, name: str) -> str:
        """The type of a tensor, such as Q4_K."""
        return str(self._types(self.tensors[name].kind).name)

    def rows(self, name: str, rows: slice) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Some rows of a tensor (of a vector, values) in float32."""
        stored = self._rows_of(name)[rows]
        try:
            found = self._dequantize(stored, self._types(self.tensors[name].kind))
        except NotImplementedError:
            raise ModelError(
                f"`{name}` in {self.path} is stored as {self.kind(name)}, which is not supported."
            ) from None
        return np.array(found, dtype=np.float32).reshape(-1, *self.tensors[name].shape[1:])

    def _rows_of(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of each row."""
        tensor = self.tensors[name]
        values, size = self._sizes[self._types(tensor.kind)]
        width = prod(tensor.shape[1:])
        if width % values and prod(tensor.shape) % values:
            raise ValueError(f"`{name}` has rows of {width} values, stored in blocks of {values}")
        whole = prod(tensor.shape) // values * size
        if tensor.offset + whole > len(self._data):
            raise ValueError(f"`{name}` lies beyond its end")
        return self._data[tensor.offset : tensor.offset + whole].reshape(tensor.shape[0], -1)


def _read(data: memoryview) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The metadata and the tensors. Raises ValueError, struct.error and others for a file of another form."""
    magic, version = data[:4].tobytes(), struct.unpack_from("<I", data, 4)[0]
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"it begins with {magic!r}, version {version}")
    reader = _Reader(data, 8)
    tensors, entries = reader.scalar("Q"), reader.scalar("Q")
    values = {reader.string(): reader.value(reader.scalar("I")) for _ in range(entries)}
    found: dict[str, Stored] = {}
    for _ in range(tensors):
        name = reader.string()
        shape = tuple(reader.scalar("Q") for _ in range(reader.scalar("I")))
        found[name] = Stored(shape[::-1], reader.scalar("I"), reader.scalar("Q"))
        if not shape or min(shape) < 1:
            raise ValueError(f"`{name}` has the shape {shape}")
    step = values.get("general.alignment", ALIGNMENT)
    start = -(-reader.place // step) * step
    return values, {name: Stored(one.shape, one.kind, start + one.offset) for name, one in found.items()}


class _Reader:
    """Reads values one after the other."""

    def __init__(self, data: memoryview, place: int) -> None:
        self._data, self.place = data, place

    def scalar(self, letter: str) -> Any:
        """A number by its letter of struct."""
        form = f"<{letter}"
        (found,) = struct.unpack_from(form, self._data, self.place)
        self.place += struct.calcsize(form)
        return found

    def string(self) -> str:
        """UTF-8 behind its length."""
        length = self.scalar("Q")
        text = self._data[self.place : self.place + length].tobytes()
        if len(text) < length:
            raise ValueError("a text is cut short")
        self.place += length
        return text.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A value of a type by its number."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in SCALARS:
            form = f"<{count}{SCALARS[inner]}"
            found = list(struct.unpack_from(form, self._data, self.place))
            self.place += struct.calcsize(form)
            return found
        return [self.value(inner) for _ in range(count)]
