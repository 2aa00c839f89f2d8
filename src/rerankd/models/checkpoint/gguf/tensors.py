"""The tensors of a GGUF file, by their names in transformers, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rerankd.core import ModelError
from rerankd.models.checkpoint.gguf.config import family_of
from rerankd.models.checkpoint.gguf.file import GgufFile

ROWS_AT_ONCE = 512
"""Rows of a matrix that are dequantised at once."""


class GgufTensors:
    """See `Tensors`. Raises ModelError for a file with an unsupported architecture."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)
        self._family = family_of(self._file)
        self.folder = path
        self._where = {self._family.name_of(name): name for name in self._file.tensors}
        kinds = sorted({self._file.kind(name) for name in self._file.tensors} - {"F32"})
        self.description = f"{len(self._where)} tensors are stored as GGUF ({', '.join(kinds) or 'F32'})"

    @property
    def names(self) -> frozenset[str]:
        """See `Tensors`."""
        return frozenset(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        shape = self._file.tensors[self._located(name)].shape
        return (shape[0] + self._skipped(name), *shape[1:])

    def read(self, name: str) -> Tensor:
        """See `Tensors`."""
        stored = self._located(name)
        tensor = self._rows(stored, slice(0, self._file.height(stored)))
        order = self._family.order(name, len(tensor), self._file)
        tensor = tensor if order is None else tensor[order]
        skipped = self._skipped(name)
        return torch.cat([tensor.new_zeros(skipped, *tensor.shape[1:]), tensor]) if skipped else tensor

    def read_part(self, name: str, rows: slice, columns: slice) -> Tensor:
        """See `Tensors`."""
        if self._skipped(name) or self._family.order(name, 2, self._file) is not None:
            part = self.read(name)[rows]
        else:
            stored = self._located(name)
            part = self._rows(stored, slice(*rows.indices(self._file.height(stored))[:2]))
        return part[:, columns] if part.dim() > 1 else part

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """See `Tensors`."""
        if self._skipped(name) or self._family.order(name, 2, self._file) is not None:
            return self.read(name)[list(rows)]
        stored = self._located(name)
        return torch.cat([self._rows(stored, slice(row, row + 1)) for row in rows])

    def _rows(self, stored: str, rows: slice) -> Tensor:
        """Consecutive rows of a stored tensor, in float32."""
        tensor = torch.empty(rows.stop - rows.start, *self._file.tensors[stored].shape[1:])
        for start in range(rows.start, rows.stop, ROWS_AT_ONCE):
            part = slice(start, min(start + ROWS_AT_ONCE, rows.stop))
            tensor[start - rows.start : part.stop - rows.start] = torch.from_numpy(self._file.rows(stored, part))
        return tensor

    def _skipped(self, name: str) -> int:
        """Number of first rows of a tensor that llama.cpp leaves out, because no model reads them."""
        return self._family.skipped(name)

    def _located(self, name: str) -> str:
        """The stored name of a tensor. Raises ModelError if the tensor is missing."""
        if name not in self._where:
            raise ModelError(f"{self.folder} has no tensor `{self._family.stored_as(name)}` (`{name}`).")
        return self._where[name]
