"""The messages between the first process of a model and the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from rerankd.backends.ranks import Ranks
from rerankd.core import PackedBatch, PackedGroup
from rerankd.core.prompts import Visual
from rerankd.options import LoadOptions


@dataclass(frozen=True, slots=True)
class Start:
    """Load a part. options: with the model's folder and recipe, so that no follower need find them again"""

    options: LoadOptions
    rank: int


@dataclass(frozen=True, slots=True)
class Join:
    """All ranks have loaded; they connect by a file in this folder."""

    folder: Path


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch without its tensors, which are broadcast. rows: 3 if there are token types, otherwise 2"""

    rows: int
    tokens: int
    groups: tuple[PackedGroup, ...]
    visuals: tuple[Visual, ...]


@dataclass(frozen=True, slots=True)
class End:
    """There will be no more batches."""


@dataclass(frozen=True, slots=True)
class Done:
    """A follower has loaded, or has computed a batch. sums: see `Ranks`; failure: the reason if it has failed"""

    sums: int
    failure: str | None


def broadcast(batch: PackedBatch, followers: Sequence[Connection], ranks: Ranks) -> None:
    """Send a batch from rank 0 to the others."""
    parts = [batch.token_ids, batch.positions, *([] if batch.token_types is None else [batch.token_types])]
    message = Batch(len(parts), len(batch.token_ids), batch.groups, batch.visuals)
    for follower in followers:
        follower.send(message)
    ranks.broadcast(torch.stack(parts))


def received(message: Batch, ranks: Ranks, device: torch.device) -> PackedBatch:
    """The batch, on another rank."""
    tensors = ranks.broadcast(torch.empty((message.rows, message.tokens), dtype=torch.int64, device=device))
    token_ids, positions, *types = tensors.unbind()
    return PackedBatch(token_ids, positions, types[0] if types else None, message.groups, message.visuals)
