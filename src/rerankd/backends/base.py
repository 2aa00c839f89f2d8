"""The protocol of backends: one way to run transformers on one device in one dtype."""

from __future__ import annotations

from typing import Protocol

from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor


class Backend(Executor, Protocol):
    """An `Executor` that also says which specifications it supports.

    name: the name for `--backend`
    title: the name in `inspect` and the ready line, with the instruction set of its kernels, such as "cpu/amx"
    fast_quantization: the quantisation of `--quantization auto`: faster than the dtype, with an error that was measured
        on judged documents (docs/scores.md); None for none
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def fast_quantization(self) -> str | None: ...

    def supports(self, spec: TransformerSpec) -> str | None:
        """None if the backend can run the specification; otherwise the missing feature, in words that complete "the
        backend does not support ..."."""
        ...
