"""The heads of encoders: a classifier over a pair, or the comparison of two texts' embeddings."""

from __future__ import annotations

from pathlib import Path

import torch

from rerankd.core import ModelError
from rerankd.layers.transformer import Executor
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.embedding import embedding_head
from rerankd.models.heads import BETWEEN, ClassifierHead, Head
from rerankd.models.labels import declared_activation, read_labels
from rerankd.models.late_interaction import late_interaction
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.sequential import chain_head
from rerankd.models.stack import Stack


def cross_encoder(
    config: Config,
    weights: Weights,
    executor: Executor,
    stack: Stack,
    recipe: Recipe,
    dense: str,
    out: str,
    between: str = "tanh",
) -> TextModel:
    """An encoder with a classifier: `dense` and `out` name its linear layers, `between` the activation between."""
    if between not in BETWEEN:
        raise ModelError(
            f"{config.source}: the classifier's activation is {shown(between)}; known: {', '.join(BETWEEN)}."
        )
    labels, hidden = read_labels(config, recipe.label), stack.spec.hidden
    count = labels.count
    activation = declared_activation(config, count)
    weights.expect_size(config, "num_labels", count, f"{out}.weight")
    head = ClassifierHead(
        dense=weights.affine(dense, hidden, hidden, True, torch.float32),
        out=weights.affine(out, count, hidden, True, torch.float32),
        activation=activation,
        between=between,
        label=labels.chosen,
    )
    return TextModel(stack.spec, executor.transformer(stack.spec, stack), head)


def pooled(config: Config, token_id: TokenIds, executor: Executor, stack: Stack, recipe: Recipe) -> TextModel:
    """A stack with the head that the modules of its sentence-transformers folder describe: the similarity of two
    texts' pooled states, the score of a pair's pooled states, or MaxSim over the states of tokens."""
    if recipe.family == "late-interaction":
        return late_interaction(Path(config.source).parent, stack, token_id, executor)
    hidden, device = stack.spec.hidden, stack.weights.device
    head: Head
    if recipe.pairs:
        head = chain_head(config, recipe, hidden, device)
    else:
        head = embedding_head(Path(config.source).parent, hidden, device)
    return TextModel(stack.spec, executor.transformer(stack.spec, stack), head, apart=not recipe.pairs)
