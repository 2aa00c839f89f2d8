"""Prompts that begin alike: the shared tokens are computed once and kept once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rerankd.core import PromptGroup, Segment
from rerankd.prompts.seams import Seams

_SLICE = 1 << 20
"""Characters that are tokenised in one call, which bounds the tokenizer's memory."""


@dataclass(frozen=True, slots=True)
class SharedIds:
    """The token ids of prompts: prompt i is `base[:kept[i]] + rest[i]`."""

    base: list[int]
    kept: list[int]
    rest: list[list[int]]

    def length(self, i: int) -> int:
        """The number of tokens of prompt i."""
        return self.kept[i] + len(self.rest[i])

    def prompt(self, i: int) -> list[int]:
        """All ids of prompt i."""
        return self.base[: self.kept[i]] + self.rest[i]

    def put(self, i: int, ids: list[int]) -> None:
        """Set the ids of prompt i."""
        self.kept[i] = alike(self.base, ids)
        self.rest[i] = ids[self.kept[i] :]

    def common(self) -> int:
        """The number of first tokens that all prompts share, at most one less than the shortest has; 0 for a single
        prompt."""
        if len(self.rest) < 2:
            return 0
        least = min(self.kept)
        return max(least + _common(self.behind(least)), 0)

    def behind(self, start: int) -> list[list[int]]:
        """The ids of each prompt from place `start` on."""
        return [
            self.base[start:kept] + rest[max(start - kept, 0) :]
            for kept, rest in zip(self.kept, self.rest, strict=True)
        ]

    def group(self) -> PromptGroup:
        """The prompts with the shared prefix laid once."""
        shared = self.common()
        return PromptGroup(
            prefix=Segment(self.prompt(0)[:shared] if shared else []),
            suffixes=tuple(map(Segment, self.behind(shared))),
            truncated=(),
        )


class Around:
    """Tokenises texts that mostly begin with `before` and end with `after`.

    The text before the last seam of `before` and the text behind the first seam of `after` are tokenised once. The ids
    are those of each whole text.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], list[list[int]]], seams: Seams, before: str, after: str = ""
    ) -> None:
        """encode: the ids of each of some texts"""
        self._encode = encode
        self._before, self._after = before, after
        self._head, self._tail = before[: seams.last(before)], after[seams.first(after) :]
        # Without a seam, texts are still compared with their likely beginning.
        self.base, self._end = encode([self._head or before, self._tail])

    def ids(self, texts: Iterable[str]) -> SharedIds:
        """The ids of each text. No more than a few texts are held at a time."""
        ids = SharedIds(self.base, [], [])
        for pending in _slices(self._parted(texts)):
            for (start, _, stop), text_ids in zip(pending, self._encode([text for _, text, _ in pending]), strict=True):
                kept = len(self.base) if start else alike(self.base, text_ids)
                ids.kept.append(kept)
                ids.rest.append((text_ids if start else text_ids[kept:]) + (self._end if stop else []))
        return ids

    def _parted(self, texts: Iterable[str]) -> Iterator[tuple[bool, str, bool]]:
        """The own part of each text, and whether the text begins and ends as expected."""
        for text in texts:
            starts = bool(self._head) and text.startswith(self._before)
            ends = bool(self._tail) and text.endswith(self._after, len(self._before) if starts else 0)
            start, stop = len(self._head) if starts else 0, len(text) - len(self._tail) if ends else len(text)
            yield starts, text[start:stop], ends


def _slices(parted: Iterable[tuple[bool, str, bool]]) -> Iterator[list[tuple[bool, str, bool]]]:
    pending: list[tuple[bool, str, bool]] = []
    characters = 0
    for item in parted:
        pending.append(item)
        characters += len(item[1])
        if characters > _SLICE:
            yield pending
            pending, characters = [], 0
    if pending:
        yield pending


def alike(a: Sequence[object], b: Sequence[object]) -> int:
    """The number of first items that two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _common(prompts: Sequence[list[int]]) -> int:
    """The number of first items that all lists share, at most one less than the shortest has; -1 for an empty list."""
    # All other prompts lie between these two in lexical order, and so share their common beginning.
    return min(alike(min(prompts), max(prompts)), min(map(len, prompts)) - 1)
