"""Requests of one batch that begin alike: the same prompts in the same order, in fewer tokens."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd import Reranker
from rerankd.core import Labels, PackedBatch, PromptGroup, RerankRequest, Segment, Text
from rerankd.core.prompts import Windows
from rerankd.engine import engine as engines
from rerankd.engine.batcher import Job, Slice
from rerankd.engine.merging import LEAST, merged, side_by_side
from tests import checkpoints, decoder_checkpoints, layerwise_checkpoints, visual_checkpoints
from tests.conftest import MakeCheckpoint

HEADS = (list(range(20)), list(range(40)), [*range(30), 7, 7, 7], [5] * 25, [5] * 60, [])


def group_of(prefix: list[int], *suffixes: list[int]) -> PromptGroup:
    return PromptGroup(Segment(prefix), tuple(map(Segment, suffixes)), (False,) * len(suffixes))


def prompts(groups: list[PromptGroup]) -> list[list[int]]:
    return [group.prefix.token_ids + suffix.token_ids for group in groups for suffix in group.suffixes]


def tokens(groups: list[PromptGroup]) -> int:
    return sum(len(group.prefix) + sum(map(len, group.suffixes)) for group in groups)


@st.composite
def groups(draw: st.DrawFn) -> PromptGroup:
    """As prompts are built: a prefix for several documents, and none for one."""
    head = draw(st.sampled_from(HEADS)) + draw(st.lists(st.integers(0, 2), max_size=3))
    rest = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=4))
    return group_of(head, *rest) if len(rest) > 1 or draw(st.booleans()) else group_of([], head + rest[0])


@given(st.lists(groups(), max_size=12))
def test_prompts_and_their_order_stay(given: list[PromptGroup]) -> None:
    found = merged(given)
    assert prompts(found) == prompts(given)
    assert tokens(found) <= tokens(given)
    assert all(len(suffix) for group in found for suffix in group.suffixes), "a head reads each suffix's last token"


@given(st.lists(groups(), max_size=12))
def test_neighbours_begin_alike(given: list[PromptGroup]) -> None:
    batch = [Slice(Job(group, Future()), group, 1) for group in given]
    found = side_by_side(batch)
    assert sorted(map(id, found)) == sorted(map(id, batch))
    first = [prompts([piece.group])[0] for piece in found]
    assert first == sorted(first)


def test_documents_in_requests_of_their_own_share_all_they_have_in_common() -> None:
    """System prompt, instruction and query; and requests of other queries what is before it."""
    system, query, other = list(range(50)), [60] * 10, [61] * 10
    alone = [group_of([], system + query + [70 + n, 1, 2]) for n in range(5)]
    (one,) = merged(alone)
    assert one.prefix.token_ids == system + query
    assert [suffix.token_ids for suffix in one.suffixes] == [[70 + n, 1, 2] for n in range(5)]
    (pair,) = merged([alone[0], group_of([], [*system, *other, 9])])
    assert pair.prefix.token_ids == system
    several = group_of(system + query, *([80 + n] for n in range(3)))
    (all_,) = merged([alone[0], several, alone[1]])
    assert (all_.prefix.token_ids, len(all_.suffixes)) == (system + query, 5)


def test_equal_requests_keep_a_last_token_each() -> None:
    """Also where one is the beginning of another."""
    short, long = group_of([], list(range(30))), group_of([], list(range(40)))
    (found,) = merged([short, short, long])
    assert found.prefix.token_ids == list(range(29))
    assert [suffix.token_ids for suffix in found.suffixes] == [[29], [29], list(range(29, 40))]


def test_nothing_is_merged_that_would_cost_more() -> None:
    """Ten documents each with a query of their own, whose prefix is longer than what the two have in common."""
    system = list(range(20))
    many = [group_of(system + [query] * 20, *([n] for n in range(10))) for query in (60, 61)]
    assert merged(many) == many
    short = [group_of([], [*range(LEAST - 1), n]) for n in (90, 91)]
    assert merged(short) == short
    assert len(merged([group_of([], [*range(LEAST), n]) for n in (90, 91)])) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"labels": Labels((1, 2))},
        {"tail": 1},
        {"outputs": 3},
        {"windows": Windows((1,), 4)},
        {"prefix": Segment(list(range(30)), unseen=2)},
        {"suffixes": (Segment([1], visuals=(None,)),)},  # type: ignore[arg-type]
        {"suffixes": (Segment([1], token_types=[1]),)},
        {"suffixes": ()},
    ],
)
def test_what_is_more_than_tokens_stays_apart(change: dict[str, object]) -> None:
    plain = group_of(list(range(30)), [1])
    special = replace(plain, **change)  # type: ignore[arg-type]
    assert merged([plain, special, plain]) == [plain, special, plain]
    assert len(merged([plain, plain])) == 1


def test_equal_labels_are_shared() -> None:
    groups = [replace(group_of([], [*range(30), n]), labels=Labels((1, 2))) for n in (4, 5)]
    (found,) = merged(groups)
    assert found.labels == Labels((1, 2))
    assert found.values == 2


@pytest.mark.parametrize(
    ("make", "recipe", "instruction", "share"),
    [
        (checkpoints.qwen3, None, None, 0.6),
        (checkpoints.qwen3, None, "Given a question, find passages that answer it", 0.6),
        (checkpoints.qwen3_vl, None, None, 0.6),
        (decoder_checkpoints.qwen2, "mxbai-rerank", None, 0.8),
        (decoder_checkpoints.gemma, "bge-reranker-gemma", None, 0.9),
        (layerwise_checkpoints.minicpm, None, None, 0.9),
        (visual_checkpoints.jina_m0, None, None, 0.9),
        # Documents of the first may be compressed, and tokens of the second see later tokens: requests stay apart.
        (layerwise_checkpoints.gemma2, None, None, 1.0),
        (decoder_checkpoints.nemotron, None, None, 1.0),
    ],
)
def test_scores_are_those_of_requests_alone(
    make: Callable[..., Path],
    recipe: str | None,
    instruction: str | None,
    share: float,
    make_checkpoint: MakeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of several kinds in one batch: one document and several, of one query and of others.

    share: of the tokens of requests alone, how many are computed at most
    """
    packed: list[PackedBatch] = []
    pack = engines.pack

    def spied(*arguments: object) -> PackedBatch:
        packed.append(pack(*arguments))  # type: ignore[arg-type]
        return packed[-1]

    asked = [
        ("what is a giant panda, where does it live and what does it eat?", ["a bear"]),
        ("bread", ["it rises in the oven", "stone", "a bear"]),
        ("what is a giant panda, where does it live and what does it eat?", ["bread rises", "it eats bamboo"]),
        ("what is a giant panda, where does it live and what does it eat?", ["it eats bamboo"]),
        ("where is it?", ["in the oven"]),
        ("what is a giant panda, where does it live and what does it eat?", ["a bear"]),
    ]
    requests = [
        RerankRequest((Text(query),), tuple((Text(one),) for one in documents), instruction)
        for query, documents in asked
    ]
    with Reranker(make_checkpoint(make), device="cpu", dtype="float32", recipe=recipe) as reranker:
        alone = [reranker.collect(reranker.submit(request)) for request in requests]
        prepared = [reranker.prepare(request) for request in requests]
        monkeypatch.setattr(engines, "pack", spied)
        found = [reranker.collect(submitted) for submitted in reranker.submit_together(prepared)]
    scores, expected = ([[one.score for one in result.documents] for result in results] for results in (found, alone))
    assert len({round(score, 4) for each in expected for score in each}) > 5
    for own, own_alone in zip(scores, expected, strict=True):
        assert own == pytest.approx(own_alone, abs=1e-5)
    computed = sum(len(batch.token_ids) for batch in packed)
    assert computed <= share * sum(result.computed_tokens for result in alone)
