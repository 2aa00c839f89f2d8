"""Cutting prompts as the authors of Qwen's rerankers do: special tokens stay, and the last of all other tokens are
removed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Set
from itertools import count

from rerankd.prompts.sharing import SharedIds


class PromptCutter:
    """Cuts prompts that share a base.

    Source: `truncate_tokens_optimized` of `src/models/qwen3_vl_reranker.py` in QwenLM/Qwen3-VL-Embedding. Without
    special tokens in the part that goes this is the cut of Qwen3-Reranker's README too.
    """

    def __init__(self, base: list[int], special: Set[int]) -> None:
        """special: the ids that are never cut"""
        self._base = base
        self._special = special
        self._in_base = [place for place, token in enumerate(base) if token in special]

    def plain_budget(self, ids: SharedIds, i: int, budget: int) -> int:
        """The tokens of `budget` that the special tokens of prompt i leave; negative where these are more."""
        return budget - bisect_left(self._in_base, ids.kept[i]) - self._count(ids.rest[i])

    def cut(self, ids: SharedIds, i: int, budget: int) -> tuple[int, list[int]]:
        """Prompt i cut to `budget` tokens: the number of tokens of the base, and the tokens behind them."""
        kept, rest = ids.kept[i], ids.rest[i]
        budget = self.plain_budget(ids, i, budget)
        in_base = bisect_left(self._in_base, kept)
        if budget < kept - in_base:
            # Before special token number n stand (its place minus n) plain tokens.
            first = next((n for n in range(in_base) if self._in_base[n] - n >= budget), in_base)
            return budget + first, [self._base[place] for place in self._in_base[first:in_base]] + self._cut(rest, 0)
        return kept, self._cut(rest, budget - (kept - in_base))

    def _cut(self, ids: list[int], budget: int) -> list[int]:
        plain = count()
        return [token for token in ids if token in self._special or next(plain) < budget]

    def _count(self, ids: list[int]) -> int:
        return sum(token in self._special for token in ids)
