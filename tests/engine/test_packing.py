"""The packer and the batcher: nothing lost, nothing twice, nothing out of order, never over budget."""

from __future__ import annotations

from concurrent.futures import Future

import torch
from hypothesis import given
from hypothesis import strategies as st

from rerankd.core import PromptGroup, Segment
from rerankd.engine.batcher import Batcher, Job
from rerankd.engine.packing import pack

CPU = torch.device("cpu")

segments = st.lists(st.integers(0, 99), min_size=1, max_size=6)


@st.composite
def prompt_groups(draw: st.DrawFn, typed: bool = False) -> PromptGroup:
    def segment(ids: list[int]) -> Segment:
        return Segment(ids, [i % 2 for i in range(len(ids))] if typed else [])

    prefix = segment(draw(st.lists(st.integers(0, 99), max_size=5)))
    suffixes = tuple(segment(ids) for ids in draw(st.lists(segments, min_size=1, max_size=6)))
    return PromptGroup(prefix, suffixes, (False,) * len(suffixes))


@given(st.lists(prompt_groups(), min_size=1, max_size=4), st.booleans())
def test_spans_hold_the_tokens_and_positions_of_their_segments(groups: list[PromptGroup], shares_prefix: bool) -> None:
    batch = pack(groups, shares_prefix, CPU)
    end = 0
    for group, packed in zip(groups, batch.groups, strict=True):
        for segment, span, first in [
            (group.prefix, packed.prefix, 0),
            *(
                (suffix, span, len(group.prefix) if shares_prefix else 0)
                for suffix, span in zip(group.suffixes, packed.suffixes, strict=True)
            ),
        ]:
            assert span.start == end
            end = span.stop
            assert batch.token_ids[span.start : span.stop].tolist() == segment.token_ids
            assert batch.positions[span.start : span.stop].tolist() == list(range(first, first + len(segment)))
    assert end == len(batch.token_ids) == len(batch.positions)
    assert batch.token_types is None


@given(st.lists(prompt_groups(typed=True), min_size=1, max_size=3), prompt_groups())
def test_token_types_lie_beside_their_tokens(groups: list[PromptGroup], untyped: PromptGroup) -> None:
    laid = [*groups, untyped]
    batch = pack(laid, False, CPU)
    expected = [
        kind
        for group in laid
        for segment in (group.prefix, *group.suffixes)
        for kind in segment.token_types or [0] * len(segment)
    ]
    if batch.token_types is None:
        assert not any(expected)
    else:
        assert batch.token_types.tolist() == expected


@given(st.lists(prompt_groups(), min_size=1, max_size=6), st.integers(1, 40))
def test_every_document_is_taken_once_and_in_order(groups: list[PromptGroup], budget: int) -> None:
    batcher = Batcher(budget)
    jobs = [Job(group, Future()) for group in groups]
    for job in jobs:
        batcher.add(job)
    taken: dict[Job, list[Segment]] = {job: [] for job in jobs}
    while batcher:
        batch = batcher.next_batch()
        assert batch
        cost = sum(piece.cost for piece in batch)
        assert cost == sum(len(s) for p in batch for s in (p.group.prefix, *p.group.suffixes))
        suffixes = batch[0].group.suffixes
        assert cost <= budget or (len(batch) == 1 and (len(suffixes) == 1 or sum(map(len, suffixes)) <= budget // 2))
        for piece in batch:
            taken[piece.job].extend(piece.group.suffixes)
    assert [tuple(taken[job]) for job in jobs] == [group.suffixes for group in groups]


def plain(documents: int, length: int = 4) -> Job:
    return Job(PromptGroup(Segment([1, 2]), (Segment([3] * length),) * documents, (False,) * documents), Future())


def test_a_batch_carries_documents_of_several_requests() -> None:
    batcher = Batcher(100)
    jobs = [plain(2), plain(3)]
    for job in jobs:
        batcher.add(job)
    assert [piece.job for piece in batcher.next_batch()] == jobs


def test_a_long_prefix_is_not_computed_for_each_of_its_documents() -> None:
    batcher = Batcher(100)
    batcher.add(Job(PromptGroup(Segment([1] * 300), (Segment([2] * 10),) * 8, (False,) * 8), Future()))
    batcher.add(plain(1))
    batches = [batcher.next_batch() for _ in range(2)]
    assert [[len(piece.group.suffixes) for piece in batch] for batch in batches] == [[5], [1]]
    assert [len(piece.group.suffixes) for piece in batcher.next_batch()] == [3]


def test_a_long_request_delays_a_short_one_by_one_batch() -> None:
    batcher = Batcher(22)
    long, short = plain(50), plain(1)
    batcher.add(long)
    batcher.add(short)
    assert [piece.job for piece in batcher.next_batch()] == [long]
    assert [piece.job for piece in batcher.next_batch()] == [short, long]


def test_a_cancelled_request_leaves_the_queue() -> None:
    batcher = Batcher(22)
    jobs = [plain(50), plain(1)]
    for job in jobs:
        batcher.add(job)
    batcher.next_batch()
    jobs[0].future.cancel()
    assert [piece.job for piece in batcher.next_batch()] == [jobs[1]]
    assert not batcher
