"""The weights of a model, checked against the shapes that the model expects."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from rerankd.core import ModelError
from rerankd.layers.shard import WHOLE, Shard
from rerankd.layers.spec import Affine, Norm
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.tensors import ALL, Tensors

log = logging.getLogger("rerankd")

PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of weights that need no scale."""


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
