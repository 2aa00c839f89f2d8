"""The processes that compute one model together, and the sums that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rerankd.core import ModelError
from rerankd.layers.shard import WHOLE, Shard


class Ranks:
    """The place of this process among the processes that compute its model.

    The process group is separate from the default group of torch.distributed, which belongs to the caller.

    sums: the number of sums so far; it is equal in processes that compute the same batches
    """

    def __init__(self, shard: Shard = WHOLE) -> None:
        self.shard = shard
        self.sums = 0
        self._group: Any = None

    def join(self, folder: Path, device: torch.device) -> None:
        """Meet the other processes, by a file in `folder`, which must stay until all have ended.

        NCCL carries tensors on CUDA devices. gloo carries tensors in memory, over the loopback interface.
        """
        # The type declarations of torch lack the attributes of these classes.
        c10d: Any = torch.distributed
        store = c10d.FileStore(str(folder / "ranks"), self.shard.size)
        if device.type == "cuda":
            kind = c10d.ProcessGroupNCCL
            options = kind.Options()
        else:
            kind = c10d.ProcessGroupGloo
            options = kind._Options()
            options._devices = [kind.create_device(hostname="127.0.0.1")]
        self._group = kind(store, self.shard.rank, self.shard.size, options)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of the x of all processes, in place of x."""
        if self.shard.size > 1:
            self.sums += 1
            self._group.allreduce([x]).wait()
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """The x of rank 0, in place of x."""
        self._group.broadcast(x, 0).wait()
        return x


def expect_parallel(device: torch.device, size: int) -> None:
    """ModelError where `size` devices of this kind cannot compute one model."""
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"Tensor parallelism runs on CUDA devices and on the CPU, not on {device.type}.")
    if device.type == "cuda" and size > torch.cuda.device_count():
        raise ModelError(
            f"Tensor parallelism of {size} needs as many CUDA devices; this machine has {torch.cuda.device_count()}."
        )
