"""Requests of one batch whose prompts begin alike: they share one prefix, as the documents of one request do.

Clients often send each document as a request of its own. All prompts of a decoder begin with the system prompt and the
instruction, and those of one query with the query too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rerankd.core import PromptGroup, Segment
from rerankd.engine.batcher import Slice

LEAST = 16
"""The fewest tokens that are worth a prefix."""


def side_by_side(batch: Sequence[Slice]) -> list[Slice]:
    """The slices of a batch in an order in which those that begin alike are neighbours."""
    if len(batch) < 2:
        return list(batch)
    return sorted(batch, key=lambda piece: (_may_share(piece.group), _first_prompt(piece.group)))


def merged(groups: Sequence[PromptGroup]) -> list[PromptGroup]:
    """The same prompts in the same order, in fewer groups and tokens where neighbours have a common beginning."""
    if len(groups) < 2:
        return list(groups)
    runs: list[_Run] = []
    for group in groups:
        run = _Run.of(group)
        while runs and (joined := runs[-1].joined(run)):
            runs.pop()
            run = joined
        runs.append(run)
    return [run.group() for run in runs]


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring groups.

    may_share: whether other groups may join
    count: the number of prompts
    prompt: the first prompt
    shared: its first tokens that all prompts have
    shortest: tokens of the shortest prompt
    """

    groups: tuple[PromptGroup, ...]
    may_share: bool
    count: int
    prompt: list[int]
    shared: int
    shortest: int

    @classmethod
    def of(cls, group: PromptGroup) -> _Run:
        prompt, count = _first_prompt(group), len(group.suffixes)
        shortest = len(group.prefix) + min(map(len, group.suffixes), default=0)
        # A group of one prompt may share all of it but its last token.
        shared = len(prompt) - 1 if count == 1 else len(group.prefix)
        return cls((group,), _may_share(group), count, prompt, shared, shortest)

    @property
    def saved(self) -> int:
        """The tokens that are not computed again for each prompt."""
        return (self.count - 1) * self.shared

    def joined(self, other: _Run) -> _Run | None:
        """All prompts of both, if that saves tokens."""
        if not self.may_share or not other.may_share or self.groups[0].labels != other.groups[0].labels:
            return None
        shortest = min(self.shortest, other.shortest)
        shared = _alike(self.prompt, other.prompt, min(self.shared, other.shared, shortest - 1))
        found = _Run(self.groups + other.groups, True, self.count + other.count, self.prompt, shared, shortest)
        return found if found.shared >= LEAST and found.saved > self.saved + other.saved else None

    def group(self) -> PromptGroup:
        """All prompts as one group, in their order."""
        if len(self.groups) == 1:
            return self.groups[0]
        return PromptGroup(
            prefix=Segment(self.prompt[: self.shared]),
            suffixes=tuple(suffix for group in self.groups for suffix in _behind(group, self.shared)),
            truncated=(),
            labels=self.groups[0].labels,
        )


def _behind(group: PromptGroup, start: int) -> Sequence[Segment]:
    """The prompts of a group from place `start` on."""
    own = group.prefix.token_ids[start:]
    if not own and len(group.prefix) == start:
        return group.suffixes
    return [Segment(own + suffix.token_ids[max(start - len(group.prefix), 0) :]) for suffix in group.suffixes]


def _first_prompt(group: PromptGroup) -> list[int]:
    return group.prefix.token_ids + (group.suffixes[0].token_ids if group.suffixes else [])


def _may_share(group: PromptGroup) -> bool:
    """Whether a group has nothing but tokens behind a prefix."""
    special = group.windows is not None or group.outputs or group.tail or not group.suffixes
    segments = (group.prefix, *group.suffixes)
    return not special and not any(one.visuals or one.token_types or one.unseen for one in segments)


def _alike(a: list[int], b: list[int], most: int) -> int:
    """The number of first items that two lists share, `most` at most."""
    low, high = 0, min(len(a), len(b), most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return max(low, 0)
