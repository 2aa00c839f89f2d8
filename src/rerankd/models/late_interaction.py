"""Late interaction: vectors of a query's tokens against vectors of each document's tokens.

Reference: ColBERT (Khattab and Zaharia, 2020), and MaxSim in sentence-transformers and PyLate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rerankd.core import ModelError, PackedBatch, PackedGroup
from rerankd.layers.spec import Affine, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.late_interaction import LateInteraction, read_late_interaction, token_modules
from rerankd.models.checkpoint.modules import read_modules
from rerankd.models.heads import Activation
from rerankd.models.stack import Stack
from rerankd.models.steps import TOKENS, Linear, Steps, normalize, read_steps


@dataclass(frozen=True, slots=True)
class MaxSimHead:
    """MaxSim: for each token of the query, the largest dot product with a document's tokens, summed over the query.

    steps: compute a token's vector from its state
    skipped: int64, ids of tokens that are skipped in documents; skips_query: whether they are skipped in queries too
    mean: whether the sum is divided by the number of the query's tokens
    """

    steps: Callable[[Tensor], Tensor]
    skipped: Tensor
    skips_query: bool = False
    skips_documents: bool = True
    mean: bool = False
    activation: Activation = "identity"
    outputs: int = 0

    def rows(self, batch: PackedBatch) -> None:
        """All rows."""
        return

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """See `Head`."""
        vectors, counts = self.steps(states), ~torch.isin(batch.token_ids, self.skipped)
        return torch.cat([self._scores(vectors, counts, group) for group in batch.groups if group.suffixes])

    def _scores(self, vectors: Tensor, counts: Tensor, group: PackedGroup) -> Tensor:
        """float32 [documents of the group], whose rows lie side by side."""
        start, stop = group.suffixes[0].start, group.suffixes[-1].stop
        query = vectors[group.prefix.start : group.prefix.stop]
        if self.skips_query:
            query = query[counts[group.prefix.start : group.prefix.stop]]
        products = query @ vectors[start:stop].T
        if self.skips_documents:
            products = products.masked_fill(~counts[start:stop], float("-inf"))
        lengths = torch.tensor([len(suffix) for suffix in group.suffixes], device=products.device)
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=products.device), lengths)
        lowest = products.new_full((len(query), len(lengths)), float("-inf"))
        best = lowest.scatter_reduce(1, owner.expand_as(products), products, "amax")
        return best.mean(0) if self.mean else best.sum(0)


def late_interaction(folder: Path, stack: Stack, token_id: TokenIds, executor: Executor) -> TextModel:
    """A stack whose states are compared token by token, as its folder's settings say.

    Raises ModelError for modules and settings that are not supported.
    """
    settings, hidden, device = read_late_interaction(folder), stack.spec.hidden, stack.weights.device
    _expect_in_reach(folder, settings, stack.spec)
    steps = _steps(folder, stack, hidden, device)
    ids = [token for word in settings.skipped if (token := _single_token(word, token_id)) is not None]
    head = MaxSimHead(
        steps,
        torch.tensor(ids, dtype=torch.int64, device=device),
        skips_query="query" in settings.skipped_in,
        skips_documents="document" in settings.skipped_in,
        mean=settings.mean,
    )
    return TextModel(stack.spec, executor.transformer(stack.spec, stack), head, apart=True)


def _steps(folder: Path, stack: Stack, hidden: int, device: torch.device) -> Steps:
    if read_modules(folder) is None:
        weights = stack.weights.root()
        height = weights.height("linear.weight")
        projection = Linear(Affine(weights.tensor("linear.weight", height, hidden, dtype=torch.float32)))
        return Steps((projection, normalize), height, TOKENS)
    modules = token_modules(folder)
    steps = read_steps(modules, hidden, device, TOKENS)
    if any(module.kind == "Normalize" for module in modules) or not read_late_interaction(folder).marked:
        return steps
    return Steps((*steps.steps, normalize), steps.width, TOKENS)


def _single_token(word: str, token_id: TokenIds) -> int | None:
    """The id of a word that is one token. Other words skip nothing, as in sentence-transformers."""
    try:
        return token_id(word)
    except ModelError:
        return None


def _expect_in_reach(folder: Path, settings: LateInteraction, spec: TransformerSpec) -> None:
    """Refuse mask tokens that see no other token, being farther from all than a layer's window."""
    expansion = settings.expansion
    windows = [layer.window for layer in spec.layers if layer.window is not None]
    if expansion and not expansion.attend and windows and expansion.length > min(windows):
        raise ModelError(
            f"{folder} expands queries to {expansion.length} tokens, and {min(windows)} tokens on each side is as far "
            "as a layer's tokens see; the mask tokens beyond would see nothing."
        )
