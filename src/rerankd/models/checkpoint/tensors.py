"""The tensors of a model folder, read on demand."""

from __future__ import annotations

import difflib
import re
import zipfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import adapter_error
from rerankd.models.checkpoint.files import PICKLED, SAFETENSORS, inside
from rerankd.models.checkpoint.json_files import read_json, shown

ALL = slice(None)
MAPPED_BYTES = 64 << 20
"""Bytes that are read from a file before it is reopened: mapped pages count as memory until the file is closed."""


class Tensors(Protocol):
    """A source of weights.

    folder: the path for messages
    description: the format of quantised weights, for the log; empty for unquantised weights
    """

    folder: Path
    description: str

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading the tensor. Raises ModelError for an unknown name."""
        ...

    def read(self, name: str) -> Tensor:
        """A whole tensor, on the CPU."""
        ...

    def read_part(self, name: str, rows: slice, columns: slice) -> Tensor:
        """Some rows of a tensor, and some columns of a matrix, on the CPU. May read less than the whole tensor."""
        ...

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Some rows of a matrix, on the CPU: [len(rows), columns]."""
        ...


class Checkpoint:
    """The tensors of a model folder, in one file or several, `.safetensors` or `.bin`. Tensors are read on demand.

    Raises ModelError for missing, truncated or unreadable files.
    """

    description = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._mapped: dict[str, int] = {}
        self._where: dict[str, tuple[str, str]] = {}
        for file in _weight_files(folder):
            self._files[file] = _open(folder / file)
            for stored in self._files[file].keys():  # noqa: SIM118 - safe_open is no mapping
                self._where[_current_name(stored)] = (file, stored)

    @property
    def names(self) -> frozenset[str]:
        """See `Tensors`."""
        return frozenset(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        file, stored = self._locate(name)
        source = self._files[file]
        return tuple(source[stored].shape if isinstance(source, dict) else source.get_slice(stored).get_shape())

    def read(self, name: str) -> Tensor:
        """See `Tensors`. The tensor has the dtype of the file."""
        file, stored = self._locate(name)
        source = self._files[file]
        if isinstance(source, dict):
            return cast(Tensor, source[stored])
        tensor: Tensor = source.get_tensor(stored)
        self._count_mapped(file, tensor.nbytes)
        return tensor

    def read_part(self, name: str, rows: slice, columns: slice) -> Tensor:
        """See `Tensors`."""
        file, stored = self._locate(name)
        source = self._files[file]
        place = rows if columns == ALL else (rows, columns)
        if isinstance(source, dict):
            return cast(Tensor, source[stored][place])
        part: Tensor = source.get_slice(stored)[place]
        # Reading some columns touches all pages of the matrix.
        self._count_mapped(file, prod(self.shape(name)) * part.element_size())
        return part

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """See `Tensors`. Other rows are not read."""
        file, stored = self._locate(name)
        source = self._files[file]
        matrix = source[stored] if isinstance(source, dict) else source.get_slice(stored)
        return torch.cat([matrix[row : row + 1] for row in rows])

    def _count_mapped(self, file: str, size: int) -> None:
        """Count `size` bytes that were read, and reopen the file if they are many."""
        self._mapped[file] = self._mapped.get(file, 0) + size
        if self._mapped[file] > MAPPED_BYTES:
            self._files[file], self._mapped[file] = _open(self.folder / file), 0

    def _locate(self, name: str) -> tuple[str, str]:
        try:
            return self._where[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._where, n=1)
            hint = f" (the nearest name is `{near[0]}`)" if near else ""
            raise ModelError(f"The weights in {self.folder} have no tensor `{name}`{hint}.") from None


def _current_name(name: str) -> str:
    """The current name of a weight. The converters of early BERT checkpoints wrote TensorFlow's names of LayerNorm."""
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def _weight_files(folder: Path) -> list[str]:
    if (folder / "adapter_config.json").is_file():
        raise adapter_error(folder)
    for single, index in (SAFETENSORS, PICKLED):
        if (folder / single).is_file():
            return [single]
        if (folder / index).is_file():
            shards = _shards(folder / index, Path(single).suffix)
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise ModelError(f"{folder} lacks {', '.join(missing)}, which {index} lists.")
            return shards
    expected = ", ".join((*SAFETENSORS, *PICKLED))
    raise ModelError(f"{folder} holds no weights; expected one of {expected}.")


def _shards(index: Path, suffix: str) -> list[str]:
    """The files that an index of sharded weights names. Raises ModelError for a file outside of its folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} is not a weight index: `weight_map` must be an object, not {shown(weight_map)}.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not shard.endswith(suffix):
            raise ModelError(f"{index} is not a weight index: it names {shown(shard)}, which is not a {suffix} file.")
        inside(index.parent, shard, index)
    return sorted(set(weight_map.values()))


def _open(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safe_open(str(path), framework="pt")
        # Files from before torch 1.6 are not zip files, and cannot be mapped.
        loaded = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{path} is damaged or cut short: {reason}") from None
    except Exception as error:  # the errors of pickle have no common base class
        raise ModelError(f"{path} is not a weight file that can be loaded safely: {type(error).__name__}.") from None
    tensors = loaded if isinstance(loaded, dict) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path} is not a state dict: it holds no tensors by name.")
    return tensors
