"""jina-reranker-v3: a Qwen3 decoder whose states behind each document and the query become vectors.

Behaviour reference: `JinaForRanking` in `modeling.py` of jinaai/jina-reranker-v3.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.core import ModelError, PackedBatch
from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.decoders import decoder, expect_in
from rerankd.models.heads import Activation
from rerankd.models.qwen3 import plain_spec
from rerankd.models.recipes.jina import JINA_RERANKER_V3
from rerankd.models.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True)
class VectorHead:
    """Vectors of the marked tokens of each prompt: two linear layers with a ReLU between them.

    marks: int64, ids of the tokens that are read
    first, second: float32 [between, hidden] and [vector, between]
    """

    marks: Tensor
    first: Tensor
    second: Tensor
    activation: Activation = "identity"
    outputs: int = 0

    def rows(self, batch: PackedBatch) -> list[int]:
        """The marked tokens."""
        rows: list[int] = torch.isin(batch.token_ids, self.marks).nonzero()[:, 0].tolist()
        return rows

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """The vectors of each prompt, then zeros up to the `values` of its group."""
        vectors, rows = F.linear(F.relu(F.linear(states, self.first)), self.second), self.rows(batch)
        padded = []
        for group in batch.groups:
            for span in group.suffixes:
                prompt_vectors = vectors[bisect_left(rows, span.start) : bisect_left(rows, span.stop)].flatten()
                padded.append(F.pad(prompt_vectors, (0, group.values - len(prompt_vectors))))
        return torch.cat(padded)


def spec_of(config: Config) -> TransformerSpec:
    """The decoder that a configuration describes. ModelError for jina-reranker-v3.5, which has layers with a window."""
    kinds = config.entries.get("layer_types")
    if config.entries.get("use_sliding_window") or (isinstance(kinds, list) and set(kinds) - {"full_attention"}):
        raise ModelError(
            f"{config.source}: layers of sliding attention (jina-reranker-v3.5) are not supported; serve "
            "jina-reranker-v3, whose layers attend to all tokens before."
        )
    return plain_spec(config)


def jina_reranker_v3(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`JinaForRanking`."""
    assert recipe.listwise is not None
    base = weights.scope_holding("embed_tokens.weight", "model", "")
    expect_in(config, base)
    spec = spec_of(config)
    between = weights.height("projector.0.weight")
    marks = [token_id(mark) for mark in (recipe.listwise.document_mark, recipe.listwise.query_mark)]
    head = VectorHead(
        marks=torch.tensor(marks, dtype=torch.int64, device=weights.device),
        first=weights.tensor("projector.0.weight", between, spec.hidden, dtype=torch.float32),
        second=weights.tensor("projector.2.weight", recipe.listwise.vector, between, dtype=torch.float32),
    )
    return TextModel(spec, executor.transformer(spec, decoder(config, base, spec)), head)


JINA_V3 = Architecture(("qwen3",), (JINA_RERANKER_V3,), jina_reranker_v3, plain_positions, spec=spec_of)
