"""A replica whose engine a test can hold up and break."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rerankd.core import EngineDead
from rerankd.ray.replica import Replica


class Held:
    """A model that computes nothing until a file is there."""

    def __init__(self, model: Any, file: Path) -> None:
        self._model = model
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, packed: Any) -> Any:
        while not self._file.exists():
            time.sleep(0.01)
        return self._model(packed)


class BreakableReplica(Replica):
    async def waiting(self) -> int:
        """Tokens to compute for what waits."""
        return self._pool.load().waiting_tokens

    async def hold(self, file: str) -> None:
        """Have the engines compute nothing until a file is there."""
        for engine in self._engines():
            engine.model = Held(engine.model, Path(file))

    async def break_engine(self) -> None:
        """What becomes of an engine that fails on prompts that it scored before."""
        self._engines()[0]._die(EngineDead("broken by a test"))

    def _engines(self) -> list[Any]:
        return [model.reranker._engine for model in self._pool.models]  # type: ignore[union-attr]
