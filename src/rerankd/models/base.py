"""A model as the engine knows it: a transformer over packed tokens, and a head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from rerankd.core import PackedBatch
from rerankd.layers.layout import AttentionLayout, causal_layout, separate_layout
from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Tokens, Transformer
from rerankd.models.heads import Head

TokenIds: TypeAlias = Callable[[str], int]
"""The id of a string that is one token of the checkpoint's tokenizer; ModelError for any other string."""


class Model(Protocol):
    """A loaded model. It holds no state between calls.

    shares_prefix: whether the documents of a group continue its prefix; otherwise each is a sequence of its own
    """

    @property
    def head(self) -> Head: ...

    @property
    def shares_prefix(self) -> bool: ...

    def __call__(self, batch: PackedBatch) -> Tensor:
        """float32 logits, in the order of `batch.documents()`; see `Head`."""
        ...


@dataclass(frozen=True, slots=True)
class TextModel:
    """A model that reads tokens only.

    apart: whether query and documents are separate sequences although attention is causal
    """

    spec: TransformerSpec
    transformer: Transformer
    head: Head
    apart: bool = False

    @property
    def shares_prefix(self) -> bool:
        """See `Model`."""
        return self.spec.causal and not self.apart

    def __call__(self, batch: PackedBatch) -> Tensor:
        """See `Model`."""
        rotates = any(layer.rotary is not None for layer in self.spec.layers)
        states = self.transformer(
            tokens_of(batch),
            layout_of(batch, self.spec, self.apart),
            batch.positions if rotates else None,
            self.head.rows(batch),
        )
        return self.head(states, batch)


def tokens_of(batch: PackedBatch) -> Tokens:
    """The tokens of a batch."""
    return Tokens(batch.token_ids, batch.positions, batch.token_types)


def layout_of(batch: PackedBatch, spec: TransformerSpec, apart: bool = False) -> AttentionLayout:
    """The attention layout of a batch; see `TextModel`."""
    if spec.causal and not apart:
        return causal_layout(batch.groups)
    spans = [span for group in batch.groups for span in (group.prefix, *group.suffixes) if len(span)]
    unseen = {group.prefix: group.unseen for group in batch.groups if group.unseen}
    return separate_layout(spans, spec.causal, unseen)
