"""Attention for CUDA: the whole packed batch in one call of variable-length flash attention, or in two.

Rows that see a shared prefix attend to it by one call and to their own keys by another; the results are merged by
their log-sum-exps. So the keys of a prefix are read in place, and not copied for every document. The kernel aligns a
causal block to its end, which is what a suffix, and a last layer's single row, need.

Written against `torch.nn.attention.varlen` of torch 2.11 and later. The arithmetic is tested on the CPU; nothing is
measured on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.attention.varlen import AuxRequest

from rerankd.backends.torch.attention import sdpa_attention
from rerankd.core import Span
from rerankd.layers.layout import AttentionLayout


@dataclass(frozen=True, slots=True)
class Sequences:
    """Runs of queries and the keys that each sees, as the kernel takes them.

    queries, keys: int64, the rows to gather; None where they lie side by side from the first row on, and for queries
        where they are all rows
    cu_queries, cu_keys: cumulative lengths, int32 [runs + 1]
    """

    queries: Tensor | None
    keys: Tensor | None
    cu_queries: Tensor
    cu_keys: Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, queries: Sequence[Span], keys: Sequence[Span], query_rows: int, device: torch.device) -> Sequences:
        """On `device`: two copies from the host, of rows and of lengths. `query_rows` counts all rows of queries."""
        gathered_queries, gathered_keys = _rows(queries), _rows(keys)
        if gathered_queries is None and queries[-1].stop != query_rows:
            gathered_queries = list(range(queries[-1].stop))
        rows = torch.tensor([*(gathered_queries or ()), *(gathered_keys or ())], dtype=torch.int64).to(
            device, non_blocking=True
        )
        cut = len(gathered_queries or ())
        lengths = torch.tensor([[0, *map(len, queries)], [0, *map(len, keys)]], dtype=torch.int32)
        cumulative = lengths.cumsum(1, dtype=torch.int32).to(device, non_blocking=True)
        return cls(
            queries=None if gathered_queries is None else rows[:cut],
            keys=None if gathered_keys is None else rows[cut:],
            cu_queries=cumulative[0],
            cu_keys=cumulative[1],
            most_queries=max(map(len, queries)),
            most_keys=max(map(len, keys)),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout as calls of the kernel; `shared` is None where no row sees a prefix of others."""

    own: Sequences
    shared: Sequences | None


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes the plan of a layout on one device, once for all layers."""

    device: torch.device

    def __call__(self, layout: AttentionLayout) -> Plan:
        blocks, rows = layout.blocks, layout.query_rows
        queries, prefixes = [], []
        for prefix, members in groupby(blocks, key=lambda block: block.shared):
            if len(prefix):
                run = list(members)
                queries.append(Span(run[0].query.start, run[-1].query.stop))
                prefixes.append(prefix)
        return Plan(
            own=Sequences.of([block.query for block in blocks], [block.own for block in blocks], rows, self.device),
            shared=Sequences.of(queries, prefixes, rows, self.device) if prefixes else None,
        )


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AttentionLayout,
    scale: float,
    window: int | None = None,
    slopes: tuple[float, ...] = (),
) -> Tensor:
    """An `Attention` for bfloat16 or float16 on CUDA."""
    if window is not None or slopes:
        return sdpa_attention(q, k, v, layout, scale, window, slopes)
    plan = layout.derived(Planner(q.device))
    own, own_lse = _flash(q, k, v, plan.own, scale, layout.causal)
    if plan.shared is None:
        return own.flatten(1)
    shared, shared_lse = _flash(q, k, v, plan.shared, scale, causal=False)
    rows = plan.shared.queries
    if rows is None:
        return _merged(own, own_lse, shared, shared_lse).flatten(1)
    merged = _merged(own.index_select(0, rows), own_lse.index_select(0, rows), shared, shared_lse)
    return own.index_copy_(0, rows, merged).flatten(1)


def _flash(q: Tensor, k: Tensor, v: Tensor, runs: Sequences, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention [queries, heads, head_dim] of the runs, and its log-sum-exps: float32 [queries, heads]."""
    queries = q if runs.queries is None else q.index_select(0, runs.queries)
    keys, values = (x if runs.keys is None else x.index_select(0, runs.keys) for x in (k, v))
    # Before torch 2.13 the kernel needs no argument to take fewer key heads than query heads.
    gqa: dict[str, Any] = {"enable_gqa": q.shape[1] != k.shape[1]} if _takes_gqa() else {}
    attended, lse = cast(
        "tuple[Tensor, Tensor]",
        varlen.varlen_attn(
            queries,
            keys,
            values,
            runs.cu_queries,
            runs.cu_keys,
            runs.most_queries,
            runs.most_keys,
            return_aux=AuxRequest(lse=True),
            scale=scale,
            window_size=(-1, 0) if causal else (-1, -1),
            **gqa,
        ),
    )
    # The kernel returns log-sum-exps by head, and not by query as torch's documentation says.
    return attended, lse.T if lse.shape == (q.shape[1], len(queries)) else lse


def _takes_gqa() -> bool:
    return "enable_gqa" in signature(varlen.varlen_attn).parameters


def _merged(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> Tensor:
    """Attention over the keys of both, from attention over the keys of each and its log-sum-exp."""
    share = torch.sigmoid(a_lse - b_lse)[..., None]
    return (b.float() + (a.float() - b.float()) * share).to(a.dtype)


def _rows(spans: Sequence[Span]) -> list[int] | None:
    """The rows of all spans; None where the spans lie side by side from row 0 on."""
    end = 0
    for span in spans:
        if span.start != end:
            return [row for s in spans for row in range(s.start, s.stop)]
        end = span.stop
    return None
