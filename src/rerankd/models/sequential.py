"""A head of several steps over a pooled state: that of ModernBERT, and the modules of sentence-transformers' chains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rerankd.core import ModelError, PackedBatch
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.modules import pooling_modes, read_modules
from rerankd.models.heads import Activation, Label, asked_logits
from rerankd.models.labels import declared_activation, read_labels
from rerankd.models.pooling import Pooling
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.steps import SCORES, Steps, read_steps


@dataclass(frozen=True, slots=True)
class SequentialHead:
    """Steps over the pooled states of each pair, which give labels; `label`: see `one_logit`."""

    pooling: Pooling
    steps: Steps
    activation: Activation
    label: Label | None = None

    @property
    def outputs(self) -> int:
        """The labels."""
        return self.steps.width

    def rows(self, batch: PackedBatch) -> list[int] | None:
        """The rows that are pooled; see `Pooling`."""
        return self.pooling.rows(batch.documents())

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """See `Head`."""
        return asked_logits(self.steps(self.pooling(states, batch.documents())), batch, self.label)


def chain_head(config: Config, recipe: Recipe, hidden: int, device: torch.device) -> SequentialHead:
    """The head that the modules behind a folder's transformer make; ModelError for modules that are not supported."""
    folder = Path(config.source).parent
    _, pooling, *later_modules = read_modules(folder) or ()
    modes = pooling_modes(pooling)
    steps = read_steps(later_modules, hidden * len(modes), device)
    labels = None if recipe.label is None else read_labels(config, recipe.label)
    counts = (1, 2) if labels is None else (labels.count,)
    if steps.output != SCORES or steps.width not in counts:
        raise ModelError(
            f"{folder / 'modules.json'}: the last module gives {steps.width} values as {shown(steps.output)}; that of "
            f"a reranker gives {' or '.join(map(str, counts))} as 'scores'."
        )
    activation = declared_activation(config, steps.width)
    return SequentialHead(Pooling(modes), steps, activation, labels.chosen if labels else None)
