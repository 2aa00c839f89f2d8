"""Token compression: from some layer on, several tokens of a document are one, their mean.

Tokens of the query and of the question behind the document stay, and positions follow one another again. Behaviour
reference: `token_compress` of `gemma_model.py` in the package FlagEmbedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from rerankd.core import ModelError, PackedBatch, PackedGroup, Span
from rerankd.layers.layout import causal_layout
from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor, Tokens, Transformer
from rerankd.models.base import tokens_of
from rerankd.models.checkpoint.config import Config
from rerankd.models.heads import Head
from rerankd.models.stack import Stack

RATIO, LAYERS = "compress_ratio", "compress_layers"
"""The entries of config.json, by the names of FlagEmbedding's arguments."""
RATIOS = (1, 2, 4, 8)
"""The authors trained the model for these; 1 is their default, and compresses nothing."""
DEFAULT_LAYERS = (8,)


@dataclass(frozen=True, slots=True)
class Compression:
    """ratio: the tokens that become one; layers: the numbers of layers after which they do, ascending"""

    ratio: int
    layers: tuple[int, ...]

    @classmethod
    def of(cls, config: Config, cutoff: int) -> Compression | None:
        """From a configuration, for a model that is scored after `cutoff` layers; None for no compression.

        Layers from `cutoff` on have no effect, as in FlagEmbedding. ModelError where no layer has one.
        """
        ratio = config.entries.get(RATIO)
        if ratio is not None and (type(ratio) is not int or ratio not in RATIOS):
            raise config.wrong(RATIO, f"must be {', '.join(map(str, RATIOS[:-1]))} or {RATIOS[-1]}")
        if ratio in (None, 1):
            return None
        entry = config.entries.get(LAYERS)
        entry = list(DEFAULT_LAYERS) if entry is None else entry
        numbers = entry if isinstance(entry, (list, tuple)) else ()
        if not numbers or any(type(i) is not int or not 1 <= i < config.layers() for i in numbers):
            raise _wrong(config, entry, f"must be a list of numbers of layers, from 1 to {config.layers() - 1}")
        layers = tuple(sorted({i for i in numbers if i < cutoff}))
        if not layers:
            raise _wrong(config, entry, f"must hold a number below {cutoff}: the score is read after so many layers")
        return cls(ratio, layers)

    def __str__(self) -> str:
        return f"{self.ratio} tokens of a document become one after {', '.join(map(str, self.layers))} layers"


def _wrong(config: Config, entry: object, rule: str) -> ModelError:
    """The error for the entry `compress_layers`, or for its default."""
    return Config({LAYERS: entry}, config.source).wrong(LAYERS, rule)


@dataclass(frozen=True, slots=True)
class CompressingModel:
    """A decoder that compresses the documents behind each of its parts but the last."""

    parts: tuple[Transformer, ...]
    ratio: int
    head: Head

    @classmethod
    def of(cls, stack: Stack, head: Head, executor: Executor, compression: Compression) -> CompressingModel:
        """From the weights of all layers, read part after part."""
        parts = tuple(executor.transformer(part.spec, part) for part in _parts(stack, compression.layers))
        return cls(parts, compression.ratio, head)

    @property
    def shares_prefix(self) -> bool:
        """See `Model`."""
        return True

    def __call__(self, batch: PackedBatch) -> Tensor:
        """See `Model`."""
        states: Tokens | Tensor = tokens_of(batch)
        for part in self.parts[:-1]:
            whole = part(states, causal_layout(batch.groups), batch.positions)
            states, batch = compressed(whole, batch, self.ratio)
        last = self.parts[-1](states, causal_layout(batch.groups), batch.positions, self.head.rows(batch))
        return self.head(last, batch)


def _parts(stack: Stack, layers: tuple[int, ...]) -> Iterator[Stack]:
    """The stack in parts, of which each but the first begins after one of the numbers of layers."""
    whole = stack.spec
    for start, stop in pairwise((0, *layers, len(whole.layers))):
        first, last = start == 0, stop == len(whole.layers)
        spec = TransformerSpec(
            whole.layers[start:stop],
            final_norm=whole.final_norm if last else None,
            embedding_norm=whole.embedding_norm if first else None,
            embedding_scale=whole.embedding_scale if first else 1.0,
        )
        yield replace(
            stack,
            spec=spec,
            embedding=stack.embedding if first else None,
            final_norm=stack.final_norm if last else None,
            first=stack.first + start,
        )


def compressed(states: Tensor, batch: PackedBatch, ratio: int) -> tuple[Tensor, PackedBatch]:
    """The states and the batch in which each `ratio` rows of a document (at its end, the rest) are one row, their mean.

    states: float32 [T, hidden]. A row of several has the token id of the first of them.
    """
    lengths: list[int] = []
    positions: list[int] = []
    groups: list[PackedGroup] = []
    for group in batch.groups:
        assert group.tail, "the prompts say where documents end"
        documents = [_runs(len(span) - group.tail, ratio) + [1] * group.tail for span in group.suffixes]
        spans: list[Span] = []
        for runs, first_position in (
            ([1] * len(group.prefix), 0),
            *((document, len(group.prefix)) for document in documents),
        ):
            spans.append(Span(len(lengths), len(lengths) + len(runs)))
            positions += range(first_position, first_position + len(runs))
            lengths += runs
        groups.append(replace(group, prefix=spans[0], suffixes=tuple(spans[1:])))
    device = states.device
    counts = torch.tensor(lengths)
    starts = counts.cumsum(0) - counts
    means = states[starts.to(device)]
    for i in range(1, ratio):
        # Each row is the sum of its own in their order, so that a batch has the same scores each time.
        longer = (counts > i).nonzero()[:, 0]
        means[longer.to(device)] += states[(starts[longer] + i).to(device)]
    means /= counts.to(device)[:, None]
    row_starts = starts.to(batch.token_ids.device)
    return means, replace(
        batch,
        token_ids=batch.token_ids[row_starts],
        positions=torch.tensor(positions).to(row_starts.device),
        token_types=None,
        groups=tuple(groups),
    )


def _runs(rows: int, ratio: int) -> list[int]:
    """The lengths of runs of `ratio` rows, of which the last may be shorter."""
    return [ratio] * (rows // ratio) + [rows % ratio] * (rows % ratio > 0)
