"""A checkpoint's tensors, read one at a time, and checked against the shapes that the model expects."""

from __future__ import annotations

import difflib
import logging
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
from rerankd.layers.shard import WHOLE, Shard
from rerankd.layers.spec import Affine, Norm
from rerankd.models.checkpoint.config import Config, adapter_error
from rerankd.models.checkpoint.files import PICKLED, SAFETENSORS, inside
from rerankd.models.checkpoint.json_files import read_json, shown

log = logging.getLogger("rerankd")

ALL = slice(None)
MAPPED_BYTES = 64 << 20
"""Bytes that are read from a file before it is reopened: mapped pages count as memory until the file is closed."""
PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of weights that need no scale."""


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


class Weights:
    """The weights of a checkpoint below a name prefix: linear layers, norms and tensors.

    Every tensor is converted to `dtype` on `device` when it is read, so that loading needs little more memory than the
    model. `finish` reports tensors that were never read.

    shard: the part of each layer that this process reads
    """

    def __init__(
        self,
        checkpoint: Tensors,
        device: torch.device,
        dtype: torch.dtype,
        prefix: str = "",
        shard: Shard = WHOLE,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.shard = shard
        self._checkpoint = checkpoint
        self._prefix = prefix
        self._read: set[str] = set()

    def scope(self, name: str) -> Weights:
        """The weights below `name`."""
        inner = Weights(self._checkpoint, self.device, self.dtype, f"{self._prefix}{name}.", self.shard)
        inner._read = self._read
        return inner

    def root(self) -> Weights:
        """All weights of the checkpoint."""
        whole = Weights(self._checkpoint, self.device, self.dtype)
        whole._read = self._read
        return whole

    def scope_holding(self, name: str, *scopes: str) -> Weights:
        """The first of `scopes` ("" is this scope) that holds the tensor `name`; the first of all if none does."""
        for scope in scopes:
            candidate = self.scope(scope) if scope else self
            if name in candidate:
                return candidate
        return self.scope(scopes[0]) if scopes[0] else self

    def leave(self, name: str) -> None:
        """Mark the tensors below `name` as unneeded for the score, so that `finish` does not report them."""
        self._read.update(full for full in self._checkpoint.names if full.startswith(f"{self._prefix}{name}."))

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._checkpoint.names

    def tensor(
        self, name: str, *shape: int, dtype: torch.dtype | None = None, rows: slice = ALL, columns: slice = ALL
    ) -> Tensor:
        """Read the tensor `name`, or some of its rows and columns. Raises ModelError unless its full shape is `shape`.

        dtype: of the result; None is the dtype of this object
        """
        full = self._prefix + name
        self._expect(full, shape)
        if rows in (ALL, slice(0, shape[0])) and columns in (ALL, slice(0, shape[-1])):
            stored = self._checkpoint.read(full)
        else:
            stored = self._checkpoint.read_part(full, rows, columns)
        stored = self._plain(full, stored)
        # A copy, because the tensor is a view of the mapped file, and would keep the whole file in memory.
        return stored.to(self.device, dtype or self.dtype, copy=True)

    def height(self, name: str) -> int:
        """Number of rows of a stored matrix, for sizes that the configuration lacks."""
        return (*self._checkpoint.shape(self._prefix + name), 0)[0]

    def expect_size(self, config: Config, key: str, size: int, name: str, axis: int = 0, each: int = 1) -> None:
        """Raise ModelError if a size in the configuration does not fit the tensor `name`.

        Called before memory of that size is allocated, because a wrong configuration may hold any number. A missing
        tensor is ignored; reading it raises the error.

        key: the configuration's entry, whose value is `size`
        axis, each: the tensor must have `size * each` rows (axis 0) or columns (axis 1)
        """
        if name not in self:
            return
        shape = self._checkpoint.shape(self._prefix + name)
        if axis >= len(shape) or shape[axis] != size * each:
            raise ModelError(
                f"{config.source}: `{key}` is {size}, but `{self._prefix}{name}` has shape {list(shape)}; "
                "the configuration and the weights belong to different models."
            )

    def expect_count(self, config: Config, key: str, count: int, name: str) -> None:
        """Raise ModelError if the weights have more or fewer than `count` layers `name`.0, `name`.1, ...

        key: the configuration's entry, whose value is `count`
        """
        pattern = re.compile(re.escape(f"{self._prefix}{name}.") + r"(\d+)\.")
        stored = len({match[1] for match in map(pattern.match, self._checkpoint.names) if match})
        if stored != count:
            raise ModelError(
                f"{config.source}: `{key}` is {count}, but the weights have {stored} of `{self._prefix}{name}`; "
                "the configuration and the weights belong to different models."
            )

    def rows(self, name: str, rows: Sequence[int], columns: int) -> Tensor:
        """Some rows of a matrix, float32 [len(rows), columns]. Raises ModelError for missing rows."""
        full = self._prefix + name
        height = self.height(name)
        self._expect(full, (height, columns))
        if max(rows) >= height:
            raise ModelError(f"`{full}` has {height} rows; the answer tokens {list(rows)} are beyond them.")
        return self._plain(full, self._checkpoint.read_rows(full, rows)).to(self.device, torch.float32)

    def _plain(self, full: str, stored: Tensor) -> Tensor:
        """The tensor itself. Raises ModelError for a dtype whose values need a scale: the configuration names none."""
        if stored.dtype not in PLAIN:
            raise ModelError(
                f"`{full}` in {self._checkpoint.folder} is stored as {str(stored.dtype).removeprefix('torch.')}, and "
                "config.json has no `quantization_config`; quantised weights cannot be read without that entry."
            )
        return stored

    def affine(
        self,
        name: str,
        outputs: int,
        inputs: int,
        bias: bool,
        dtype: torch.dtype | None = None,
        rows: slice = ALL,
        columns: slice = ALL,
    ) -> Affine:
        """A linear layer with weight [outputs, inputs], or some of its outputs (rows) and inputs (columns)."""
        weight = self.tensor(f"{name}.weight", outputs, inputs, dtype=dtype, rows=rows, columns=columns)
        return Affine(weight, self.tensor(f"{name}.bias", outputs, dtype=dtype, rows=rows) if bias else None)

    def norm(self, name: str, width: int, norm: Norm) -> Affine:
        """The weights of a norm, float32 [width]. The bias of a LayerNorm is optional."""
        weight = self.tensor(f"{name}.weight", width, dtype=torch.float32)
        has_bias = norm.kind == "layer" and f"{name}.bias" in self
        bias = self.tensor(f"{name}.bias", width, dtype=torch.float32) if has_bias else None
        return Affine(weight + norm.offset if norm.offset else weight, bias)

    def finish(self) -> None:
        """Report the tensors that were never read.

        An unread tensor inside a stack of layers raises ModelError, because the configuration does not describe the
        weights: a layer or a bias would be missing. Other tensors are only logged. Biases of zeros are ignored,
        because programs that quantise models give each linear layer a bias.
        """
        unread = sorted(self._checkpoint.names - self._read)
        unread = [name for name in unread if not name.endswith(".bias") or self._checkpoint.read(name).any()]
        in_layers = [name for name in unread if re.search(r"\b(layers?|blocks)\.\d+\.(?!.*(inv_freq|_ids)$)", name)]
        if in_layers:
            raise ModelError(
                f"config.json does not describe the weights in {self._checkpoint.folder}: "
                f"the configuration has no place for `{in_layers[0]}`"
                + (f" and {len(in_layers) - 1} more." if in_layers[1:] else ".")
            )
        if unread:
            log.info("Tensors that scoring does not need: %s", ", ".join(unread))

    def _expect(self, full: str, shape: tuple[int, ...]) -> None:
        stored = self._checkpoint.shape(full)
        self._read.add(full)
        if stored != shape:
            raise ModelError(
                f"`{full}` in {self._checkpoint.folder} has shape {list(stored)}; config.json requires {list(shape)}."
            )


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
