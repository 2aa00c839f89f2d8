"""The protocol of backends: one way to run transformers on one device in one dtype."""

from __future__ import annotations

from typing import Protocol

from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor


class Backend(Executor, Protocol):
    """An `Executor` that says what it cannot run.

    name: as `--backend` has it
    title: as `inspect` and the ready line have it: the name, and the instruction set of its kernels, such as "cpu/amx"
    fast_quantization: the quantisation that is faster than its dtype, with an error that was measured on judged
        documents (docs/scores.md); None where there is none
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def fast_quantization(self) -> str | None: ...

    def supports(self, spec: TransformerSpec) -> str | None:
        """None, or what the backend lacks to run it: words that complete "the backend does not support ..."."""
        ...
