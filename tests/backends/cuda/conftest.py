"""What the interpreter of Triton lacks."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from triton.runtime import interpreter


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """float8 is rounded as a device does it. The interpreter halves numbers that round up to a power of two."""
    as_it_is: Any = interpreter._convert_float  # type: ignore[attr-defined]

    def convert(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if target.name != "fp8e4nv" or values.dtype != numpy.float32:
            return as_it_is(values, source, target, mode)
        rounded = torch.from_numpy(numpy.ascontiguousarray(values)).to(torch.float8_e4m3fn)
        return rounded.view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)
