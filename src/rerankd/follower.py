"""A process of another rank than 0: it loads its part of the model, and computes the batches that are broadcast to it.

    python -m rerankd.follower FILE_DESCRIPTOR

The descriptor is of a connection to the process of rank 0. When the connection ends, so does this process.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import torch

from rerankd.core import ModelError, PackedBatch
from rerankd.loading import Plan, plan
from rerankd.models.base import Model
from rerankd.parallel.messages import Batch, Done, End, Join, Start, received


def main(descriptor: int) -> None:
    """Follow rank 0 until it ends."""
    # A terminal and a supervisor signal all processes at once; rank 0 answers its last requests before it ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Rank 0 logs the facts of the model.
    logging.basicConfig(level=logging.ERROR)
    leader = Connection(descriptor)
    messages: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(leader, messages), daemon=True).start()
    start: Start = messages.get()
    try:
        planned = plan(start.options, rank=start.rank)
        device = planned.placement.device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        model = planned.load()
    except ModelError as error:
        leader.send(Done(0, str(error)))
        return
    leader.send(Done(0, None))
    join: Join = messages.get()
    planned.placement.ranks.join(join.folder, device)
    while True:
        _compute(messages.get(), planned, model, leader)


def _listen(leader: Connection, messages: SimpleQueue[Any]) -> None:
    """Receive messages, in a thread of its own: rank 0 may end while this rank computes, or waits for a sum."""
    while True:
        try:
            message = leader.recv()
        except (EOFError, OSError):
            message = End()
        if isinstance(message, End):
            os._exit(0)
        messages.put(message)


def _compute(message: Batch, planned: Plan, model: Model, leader: Connection) -> None:
    ranks, device = planned.placement.ranks, planned.placement.device
    batch = received(message, ranks, device)
    failure = _failure(model, batch)
    if failure is not None and device.type != "cpu":
        # The cause may be a lack of memory.
        torch.get_device_module(device).empty_cache()
    leader.send(Done(ranks.sums, failure))


def _failure(model: Model, batch: PackedBatch) -> str | None:
    """Why the batch cannot be computed. An error would keep all tensors of its frames."""
    try:
        with torch.inference_mode():
            model(batch)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    main(int(sys.argv[1]))
