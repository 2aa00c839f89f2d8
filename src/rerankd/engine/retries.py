"""A batch that fails is split until the request at fault is known."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch

from rerankd.core import EngineError, OutOfMemory
from rerankd.engine.batcher import Job, Slice

log = logging.getLogger("rerankd")

Forward: TypeAlias = Callable[[Sequence[Slice]], Sequence[list[float]]]
"""Returns the logits of each slice."""
NOT_FINITE = "The model's logits are not finite numbers; its weights or dtype are at fault."
WITHOUT_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Messages of torch's allocators whose errors are no `OutOfMemoryError`."""


class Budget:
    """The token budget of a batch: smaller for a while after memory ran out."""

    BATCHES = 32
    """After this many batches that fit, the budget is doubled, until it is whole again."""
    PARTS = 16
    """The smallest budget is the whole one divided by this number."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._whole = tokens
        self._fitted = 0

    def ran_out(self, tokens: int) -> None:
        """Record that a batch of `tokens` tokens did not fit."""
        self._fitted = 0
        self.tokens = max(min(self.tokens, tokens // 2), self._whole // self.PARTS, 1)

    def fitted(self) -> None:
        """Record that a batch fitted."""
        if self.tokens < self._whole:
            self._fitted += 1
            if self._fitted == self.BATCHES:
                self._fitted = 0
                self.tokens = min(self.tokens * 2, self._whole)


def scored(
    batch: Sequence[Slice], forward: Forward, budget: Budget, free: Callable[[], object]
) -> Iterator[tuple[Slice, list[float] | EngineError]]:
    """Score a batch. Yields its slices, or parts of them in order, each with the logits of its documents or its error.

    free: frees unused memory

    If memory runs out, half of the documents are tried, then the other half, and so on down to one document. After any
    other error, half of the requests are tried: a request that fails beside others is tried alone. Logits that are not
    finite are an error of their request. Requests that nobody waits for are left out.
    """
    parts = [list(batch)]
    failed: set[Job] = set()
    while parts:
        part = [piece for piece in parts.pop() if piece.job.waited_for and piece.job not in failed]
        if not part:
            continue
        try:
            logits = forward(part)
        except Exception as error:
            # Its frames hold the tensors of the whole batch.
            traceback.clear_frames(error.__traceback__)
            if _out_of_memory(error):
                budget.ran_out(sum(piece.cost for piece in part))
                halves = _documents_halved(part)
                failure: EngineError = _too_large(part)
            else:
                halves = _requests_halved(part)
                failure = EngineError(f"The model failed on this request: {error}")
            failure.__cause__ = error
            if halves:
                log.warning("A batch of %d requests failed and is tried by halves: %r", len(part), error)
        else:
            budget.fitted()
            finite = [all(map(math.isfinite, piece_logits)) for piece_logits in logits]
            again = []
            for piece, piece_logits, is_finite in zip(part, logits, finite, strict=True):
                if is_finite:
                    yield piece, piece_logits
                elif len(part) > 1:
                    again.append([piece])
                else:
                    failed.add(piece.job)
                    yield piece, EngineError(NOT_FINITE)
            parts += reversed(again)
            continue
        free()
        if halves:
            parts += reversed(halves)
        else:
            failed.add(part[0].job)
            yield part[0], failure


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WITHOUT_MEMORY)


def _too_large(part: Sequence[Slice]) -> OutOfMemory:
    return OutOfMemory(
        f"A document whose prompt has {sum(piece.cost for piece in part)} tokens does not fit into the memory that the "
        "model's device has left, not even alone; send a shorter one, or have a smaller --max-model-len cut it."
    )


def _requests_halved(part: Sequence[Slice]) -> list[list[Slice]]:
    """The requests in two halves; empty for one request."""
    middle = (len(part) + 1) // 2
    return [list(part[:middle]), list(part[middle:])] if len(part) > 1 else []


def _documents_halved(part: Sequence[Slice]) -> list[list[Slice]]:
    """The documents in two halves, of which both may have documents of one request; empty for one document."""
    count = sum(len(piece.group.suffixes) for piece in part)
    if count < 2:
        return []
    first: list[Slice] = []
    second: list[Slice] = []
    documents_left = (count + 1) // 2
    for piece in part:
        documents = min(documents_left, len(piece.group.suffixes))
        documents_left -= documents
        before, after = piece.split(documents)
        first += [before] if before else []
        second += [after] if after else []
    return [first, second]
