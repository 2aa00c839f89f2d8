"""Times of what runs on a device, by the host's clock, the device waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Bench:
    """One run of the script. `rates` keeps what was measured of the machine itself: TFLOP/s by dtype."""

    device: torch.device
    small: bool
    tell: Callable[..., None]
    wanted: list[str]
    rates: dict[str, float] = field(default_factory=dict)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def median(self, run: Callable[[], Any], seconds: float = 1.0, least: int = 3) -> float:
        """The median time of a call that is waited for, after two that are not counted."""
        if self.small:
            least = 1
        for _ in range(0 if self.small else 2):
            run()
        self.wait()
        times: list[float] = []
        until = time.perf_counter() + (0 if self.small else seconds)
        while len(times) < least or time.perf_counter() < until:
            began = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    def each(self, run: Callable[[], Any], times: int = 20) -> float:
        """The time of one call of many that are waited for together: what the device takes where the host is faster."""
        times = 1 if self.small else times

        def many() -> None:
            for _ in range(times):
                run()

        return self.median(many, seconds=0.2) / times
