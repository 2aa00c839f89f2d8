"""Cutting prompts as the authors of Qwen's rerankers do: special tokens stay, of all others the last ones go."""

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

    def plain_room(self, ids: SharedIds, i: int, room: int) -> int:
        """How many of `room` tokens the special ones of prompt i leave: less than none where they take more."""
        return room - bisect_left(self._in_base, ids.kept[i]) - self._count(ids.rest[i])

    def cut(self, ids: SharedIds, i: int, room: int) -> tuple[int, list[int]]:
        """What is left of prompt i in `room` tokens, as tokens of the base and what comes behind them."""
        kept, rest = ids.kept[i], ids.rest[i]
        room = self.plain_room(ids, i, room)
        in_base = bisect_left(self._in_base, kept)
        if room < kept - in_base:
            # Special token number n stands behind as many plain ones as lie between its place and n.
            first = next((n for n in range(in_base) if self._in_base[n] - n >= room), in_base)
            return room + first, [self._base[place] for place in self._in_base[first:in_base]] + self._cut(rest, 0)
        return kept, self._cut(rest, room - (kept - in_base))

    def _cut(self, ids: list[int], room: int) -> list[int]:
        plain = count()
        return [token for token in ids if token in self._special or next(plain) < room]

    def _count(self, ids: list[int]) -> int:
        return sum(token in self._special for token in ids)
