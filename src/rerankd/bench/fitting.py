"""The figures of a replica that come closest to what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from rerankd.bench.measured import Alone, Level, Work
from rerankd.bench.queueing import Replica

FULL = 0.9
"""Replicas have no pause at a rate of so much of the highest: the time between two batches counts as theirs then."""


def fitted(alone: Sequence[Alone], closed: Sequence[tuple[Level, Work]], replicas: int, machine: Replica) -> Replica:
    """What a replica does, by requests one at a time and by more and more of them at a time.

    machine: with its `most`, `network`, `threads` and `cores`; what is measured here takes the place of the rest

    Where two requests for each replica are in flight, all compute and requests wait, and a batch has about as many
    tokens as a request alone: so it shows how much longer batches take then. With more requests in flight batches are
    larger, and show how much longer larger batches take than their tokens say. Time that replicas lose because requests
    are read on their cores is not a batch's own.
    """
    parts: dict[float, Work] = {}
    for one in alone:
        parts[one.part] = parts.get(one.part, Work(0, 0, 0)) + one.work
    outside = median([one.outside(replicas) for one in alone if one.part == 1])
    near, singles = replace(fit([*parts.values()], machine), outside=outside), [one.work for one in alone]
    closed = [(level, _own(near, level, work, replicas)) for level, work in closed]
    crowds = [level.clients is not None and level.clients >= 2 * replicas for level, _ in closed]
    crowd = next((work for (_, work), is_one in zip(closed, crowds, strict=True) if is_one), closed[-1][1])
    crowded = crowding(near, singles, [crowd])
    best = max(level.answered for level, _ in closed)
    works, large = [*parts.values()], list[Work]()
    for (level, work), is_one in zip(closed, crowds, strict=True):
        # Replicas that never wait take all the time there is, and not only the time of their batches.
        took = work.seconds / level.busy if level.answered >= FULL * best else work.seconds
        works.append(replace(work, seconds=took / crowded if is_one else took))
        if is_one and work is not crowd:
            large.append(works[-1])
    found = replace(fit(works, machine), outside=outside, crowded=crowded)
    whole = parts[1.0].tokens / parts[1.0].batches
    sizes = {one.tokens / one.batches: _times(found, [one]) / _times(found, singles) for one in large}
    larger = sorted((tokens, times) for tokens, times in sizes.items() if tokens > whole)
    found = replace(found, sizes=((whole, 1.0), *larger))
    return replace(found, trace=trace(found, alone, replicas))


def _own(near: Replica, level: Level, work: Work, replicas: int) -> Work:
    """Without the time that replicas lost to requests; not less than the replica's figures say, or than was seen.

    While all wait for the same cores, requests are read in less time than alone.
    """
    lost = level.requests * near.lost(replicas) * level.busy
    return replace(work, seconds=max(work.seconds - lost, min(work.seconds, _said(near, work))))


def crowding(replica: Replica, alone: Sequence[Work], crowd: Sequence[Work]) -> float:
    """How many times as long batches took in a crowd as alone, for what the replica's figures say of them."""
    return max(_times(replica, crowd) / _times(replica, alone), 1.0)


def _times(replica: Replica, works: Sequence[Work]) -> float:
    """How many times as long they took as the replica's figures say."""
    return sum(one.seconds for one in works) / sum(_said(replica, one) for one in works)


def trace(replica: Replica, alone: Sequence[Alone], replicas: int) -> list[tuple[float, float]]:
    """The seconds that requests alone took one after the other, each with the seconds by the replica's figures.

    Figures that are too low or high for requests of one size are corrected, to say of all sizes what they say of whole
    requests: what is left is how the machine's speed varied.
    """
    said = [_said(replica, one.work) + replica.outside for one in alone]
    rows = [(one.part, one.work.seconds + one.outside(replicas), says) for one, says in zip(alone, said, strict=True)]
    slower = {
        part: sum(took for size, took, _ in rows if size == part) / sum(says for size, _, says in rows if size == part)
        for part in {size for size, _, _ in rows}
    }
    return [(round(took, 6), round(says * slower[part] / slower[1.0], 6)) for part, took, says in rows]


def _said(replica: Replica, work: Work) -> float:
    return work.batches * replica.seconds(work.tokens / work.batches) if work.batches else 0.0


def fit(observed: Sequence[Work], machine: Replica) -> Replica:
    """The replica whose seconds of a batch and of a token come closest to what was observed, by the least relative
    squares."""
    rows = [(one.batches / one.seconds, one.tokens / one.seconds) for one in observed if one.seconds > 0]
    batches, tokens = sum(b * b for b, _ in rows), sum(t * t for _, t in rows)
    both, of_batches, of_tokens = sum(b * t for b, t in rows), sum(b for b, _ in rows), sum(t for _, t in rows)
    if (apart := batches * tokens - both * both) > 1e-9 * batches * tokens:
        fixed = (of_batches * tokens - of_tokens * both) / apart
        per_token = (of_tokens * batches - of_batches * both) / apart
        if fixed >= 0 and per_token > 0:
            return replace(machine, fixed=fixed, per_token=per_token)
    # All batches are alike, or a time would be below 0: tokens take all of it.
    return replace(machine, fixed=0.0, per_token=of_tokens / tokens)
