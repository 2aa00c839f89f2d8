"""Attention for Ascend NPUs: many blocks of a packed batch in one call of torch_npu's `npu_fusion_attention`.

Each block's keys are laid together, those of a shared prefix copied for each document that sees it, so a call has a
bounded number of keys. The kernel aligns a causal block to its end (`sparse_mode` 3), which is what a suffix, and a
last layer's single row, need.

Written from Ascend's documentation of the call. The arithmetic is tested on the CPU; it was never run on an NPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from rerankd.backends.ranks import Ranks
from rerankd.backends.torch.attention import sdpa_attention
from rerankd.backends.torch.backend import TorchBackend
from rerankd.layers.layout import AttentionLayout, Block

KEYS = 1 << 16
"""The most keys of a call, unless one block alone has more: bounds the copies of prefixes."""
MULTIPLE = 16
"""The width of a head must be a multiple of this number."""
MASK_SIDE = 2048
"""The triangle that the kernel takes for a causal mask of any size."""
RIGHT_DOWN_CAUSAL, DENSE = 3, 0
"""Values of `sparse_mode`."""


@dataclass(frozen=True, slots=True)
class Call:
    """Blocks side by side. keys: the rows of all their keys, int64; ends: behind each block, cumulative"""

    queries: slice
    keys: Tensor | slice
    query_ends: list[int]
    key_ends: list[int]


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes the calls of a layout on one device, once for all layers."""

    device: torch.device

    def __call__(self, layout: AttentionLayout) -> list[Call]:
        return [_call(blocks, self.device) for blocks in _bounded(layout.blocks)]


class FusionAttention:
    """An `Attention` for bfloat16 and float16."""

    def __init__(self, device: torch.device) -> None:
        self._fused: Callable[..., Any] = import_module("torch_npu").npu_fusion_attention
        self._planner = Planner(device)
        self._triangle = torch.ones(MASK_SIDE, MASK_SIDE, dtype=torch.bool, device=device).triu_(1)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: AttentionLayout,
        scale: float,
        window: int | None = None,
        slopes: tuple[float, ...] = (),
    ) -> Tensor:
        """See `Attention`. Windows, slopes and heads of other widths go to torch's own attention."""
        if window is not None or slopes or q.shape[2] % MULTIPLE:
            return sdpa_attention(q, k, v, layout, scale, window, slopes)
        out = torch.empty_like(q)
        for call in layout.derived(self._planner):
            out[call.queries] = self._fused(
                q[call.queries].contiguous(),
                k[call.keys].contiguous(),
                v[call.keys].contiguous(),
                q.shape[1],
                "TND",
                atten_mask=self._triangle if layout.causal else None,
                scale=scale,
                actual_seq_qlen=call.query_ends,
                actual_seq_kvlen=call.key_ends,
                sparse_mode=RIGHT_DOWN_CAUSAL if layout.causal else DENSE,
            )[0]
        return out.flatten(1)


def npu_backend(device: torch.device, dtype: torch.dtype, ranks: Ranks) -> TorchBackend:
    """Plain tensors, with fused attention for 16 bits."""
    attention = sdpa_attention if dtype == torch.float32 else FusionAttention(device)
    return TorchBackend(device, dtype, attention, "npu", ranks)


def _bounded(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Neighbours of at most KEYS keys in all; a larger block by itself."""
    group: list[Block] = []
    for block in blocks:
        if group and sum(member.keys for member in group) + block.keys > KEYS:
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _call(blocks: Sequence[Block], device: torch.device) -> Call:
    first, last = blocks[0], blocks[-1]
    keys: Tensor | slice = slice(first.own.start, last.own.stop)
    beside = all(before.own.stop == block.own.start for before, block in pairwise(blocks))
    if not beside or any(len(block.shared) for block in blocks):
        rows = [row for b in blocks for span in (b.shared, b.own) for row in range(span.start, span.stop)]
        keys = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
    return Call(
        slice(first.query.start, last.query.stop),
        keys,
        list(accumulate(len(block.query) for block in blocks)),
        list(accumulate(block.keys for block in blocks)),
    )
