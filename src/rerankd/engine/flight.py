"""A batch that a device computes while the host does other work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.engine.batcher import Slice


@dataclass(frozen=True, slots=True)
class Flight:
    """A launched batch. Its logits are copied to the host as soon as they are computed.

    began: when the launch began, by `perf_counter`
    logits: on the host, undefined before `landed`; None for a launch that failed
    landed: the event at the end of the copy; None if the logits are there already
    """

    batch: Sequence[Slice]
    began: float
    logits: Tensor | None
    landed: torch.Event | None = None

    @classmethod
    def of(cls, batch: Sequence[Slice], began: float, logits: Tensor) -> Flight:
        """The flight of a launched batch. logits: on the device, where their computation is queued"""
        if logits.device.type == "cpu":
            return cls(batch, began, logits)
        # The copy is queued before the next batch's work, so it does not wait for that work.
        on_host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        on_host.copy_(logits, non_blocking=True)
        landed = torch.Event(logits.device)
        landed.record()
        return cls(batch, began, on_host, landed)

    def result(self) -> list[float] | None:
        """Wait for the logits; None for a launch that failed. Raises the error of the device's work."""
        if self.landed is not None:
            self.landed.synchronize()
        return None if self.logits is None else self.logits.tolist()
