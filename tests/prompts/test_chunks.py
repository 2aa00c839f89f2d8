"""Chunks of long documents: what they cover, what they share, and that each is what its text alone would be."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.core import Chunking, PromptGroup, RerankRequest, Side
from rerankd.models.recipes.encoders import BI_ENCODER, CROSS_ENCODER
from rerankd.models.recipes.qwen3 import QWEN3_RERANKER
from rerankd.prompts import LoadedPrompts, load_prompts
from rerankd.prompts.bi_encoder import BiEncoderPrompts
from rerankd.prompts.chunks import split
from rerankd.prompts.cross_encoder import CrossEncoderPrompts
from rerankd.prompts.decoder import DecoderPrompts
from rerankd.prompts.limits import Limits
from tests import checkpoints, texts
from tests.conftest import MakeCheckpoint
from tests.prompts import authors
from tests.prompts.conftest import refusal, request, whole

FAMILIES = ("qwen3", "qwen3_vl", "jinja", "xlmr", "roberta", "bert", "minilm", "embedder")
TEMPLATE = "{% for m in messages %}[{{ m.role | upper }}] {{ m.content | trim }}\n{% endfor %}Answer: "
SIDES: tuple[Side, ...] = ("left", "right")
PIECES = (
    *(
        "word",
        "words and",
        " ",
        "\n",
        "é",
        "e\u0301",
        "中文字符",
        "😀",
        "👩‍👩‍👧‍👦",
        "'s",
        "...",
        "123",
        "\r\n",
        "x" * 40,
    ),
    *("<|im_end|>", "</s>", "<s>", "[SEP]", "½", "ﬁ", "\u3000", "Ünï", "\u200b", "\ufffd"),
)
LONG = " ".join(texts.DOCUMENTS[:20]) + " </s> <|im_end|> [SEP] " + texts.words(150, 3)


@pytest.fixture(scope="module")
def served(
    qwen_folder: Path,
    qwen3: LoadedPrompts,
    qwen3_vl: LoadedPrompts,
    xlmr_folder: Path,
    roberta_folder: Path,
    minilm_path: Path,
    make_checkpoint: MakeCheckpoint,
) -> dict[str, LoadedPrompts]:
    prompts = {"query": "query: ", "document": "passage: "}
    embedder = make_checkpoint(checkpoints.xlmr_embedder, prompts=prompts)
    return {
        "qwen3": qwen3,
        "qwen3_vl": qwen3_vl,
        "jinja": load_prompts(qwen_folder, recipe=QWEN3_RERANKER, positions=40960, chat_template=TEMPLATE),
        "xlmr": load_prompts(xlmr_folder, recipe=CROSS_ENCODER, positions=512),
        "roberta": load_prompts(roberta_folder, recipe=CROSS_ENCODER, positions=512),
        "bert": load_prompts(minilm_path, recipe=CROSS_ENCODER, positions=512),
        "minilm": load_prompts(minilm_path, recipe=BI_ENCODER, positions=512),
        "embedder": load_prompts(embedder, recipe=BI_ENCODER, positions=512),
    }


def longest(group: PromptGroup, prompts: LoadedPrompts) -> int:
    """The most tokens that the model reads as one, which for a bi-encoder is a text."""
    if isinstance(prompts.builder, BiEncoderPrompts):
        return max(map(len, (group.prefix, *group.suffixes)))
    return max(map(len, whole(group)))


def chunked(
    query: str, documents: list[str], most: int | None = None, overlap: int = 0, **limits: Any
) -> RerankRequest:
    return replace(request(query, documents, **limits), chunking=Chunking(most, overlap))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100)
@given(
    document=st.lists(st.sampled_from(PIECES), max_size=150).map("".join),
    extra=st.integers(16, 50),
    overlap=st.integers(0, 12),
    most=st.none() | st.integers(1, 6),
    own=st.none() | st.integers(13, 60),
    side=st.sampled_from(SIDES),
)
def test_any_document(
    family: str,
    document: str,
    extra: int,
    overlap: int,
    most: int | None,
    own: int | None,
    side: Side,
    served: dict[str, LoadedPrompts],
) -> None:
    prompts, query = served[family], "What is it?"
    limit = longest(prompts.build(request(query, [""])), prompts) + extra
    limits: dict[str, Any] = {"max_tokens": limit, "max_tokens_per_doc": own, "side": side}
    group = prompts.build(chunked(query, ["short", document], most, overlap, **limits))
    assert longest(group, prompts) <= limit
    if not group.chunks:
        assert group == prompts.build(request(query, ["short", document]))
        return
    assert longest(prompts.build(request(query, [document])), prompts) > limit or own is not None
    unsplit, chunks = group.chunks
    assert unsplit == ()
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert most is None or len(chunks) <= most
    # What lies behind the last chunk, or before the first where the end is kept, is reported.
    assert all(document[slice(*chunk.characters)] == chunk.text for chunk in chunks)
    assert chunks[0].characters[0] == 0 or side == "left"
    assert chunks[-1].characters[1] == len(document) or side == "right"
    whole_text = (chunks[0].characters[0], chunks[-1].characters[1]) == (0, len(document))
    assert group.truncated == (False, not whole_text)
    assert group.ignored in ((), ("chunking.overlap_tokens",))
    # Tokens and characters say the same, and no token of a character lies outside its chunk.
    offsets = prompts.tokenizer.offsets(document)
    for chunk in chunks:
        (first, last), (start, stop) = chunk.tokens, chunk.characters
        assert all(start <= a and b <= stop for a, b in offsets[first:last])
        assert all(b <= start for _, b in offsets[:first])
        assert all(a >= stop for a, _ in offsets[last:])
    if whole_text:
        assert (chunks[0].tokens[0], chunks[-1].tokens[1]) == (0, len(offsets))
    for one, two in itertools.pairwise(chunks):
        assert one.characters[0] < two.characters[0] <= one.characters[1] < two.characters[1]
        # A character of several tokens is shared whole. A chunk whose text alone takes many more tokens, as one with a
        # special token's string does, may be too short to share as much and still bring something new.
        shortest = min(chunk.tokens[1] - chunk.tokens[0] for chunk in (one, two))
        assert min(overlap, shortest // 2) - 10 <= one.tokens[1] - two.tokens[0] <= overlap + 10
    # Each chunk's prompt is that of its text.
    alone = prompts.build(request(query, ["short", *(chunk.text for chunk in chunks)]))
    assert whole(group) == whole(alone)
    if own is not None:
        assert prompts.build(request(query, [c.text for c in chunks], max_tokens_per_doc=own)).truncated == (
            (False,) * len(chunks)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_side_that_is_cut_goes_first(family: str, served: dict[str, LoadedPrompts]) -> None:
    prompts = served[family]
    every = prompts.build(chunked("q", [LONG], None, 7, max_tokens_per_doc=40))
    first = prompts.build(chunked("q", [LONG], 3, 7, max_tokens_per_doc=40))
    last = prompts.build(chunked("q", [LONG], 3, 7, max_tokens_per_doc=40, side="left"))
    assert len(every.chunks[0]) > 10
    assert every.truncated == (False,)
    assert first.chunks[0] == every.chunks[0][:3]
    assert first.truncated == last.truncated == (True,)
    assert last.chunks[0][-1].characters[1] == len(LONG)
    assert len(last.chunks[0]) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_can_be_forbidden(family: str, served: dict[str, LoadedPrompts]) -> None:
    prompts = served[family]
    fitting = prompts.build(chunked("q", ["d", LONG], None, 5, max_tokens_per_doc=60, allowed=False))
    assert fitting.truncated == (False, False)
    count = len(fitting.chunks[1])
    assert prompts.build(chunked("q", ["d", LONG], count, 5, max_tokens_per_doc=60, allowed=False)) == fitting
    error = refusal(prompts, chunked("q", ["d", LONG], count - 1, 5, max_tokens_per_doc=60, allowed=False))
    assert (error.field, "more chunks" in error.problem) == ("documents[1]", True)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_that_cannot_be_are_refused(family: str, served: dict[str, LoadedPrompts]) -> None:
    prompts = served[family]
    for most, overlap, own, field in (
        (0, 0, None, "max_chunks_per_doc"),
        (-1, 0, None, "max_chunks_per_doc"),
        (None, -1, None, "overlap_tokens"),
    ):
        error = refusal(prompts, chunked("q", ["short"], most, overlap, max_tokens_per_doc=own))
        assert error.field == f"chunking.{field}"
        assert str(most if field == "max_chunks_per_doc" else overlap) in error.problem


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", SIDES)
def test_chunks_share_half_at_most(family: str, side: Side, served: dict[str, LoadedPrompts]) -> None:
    prompts = served[family]
    budget = 40
    limits: dict[str, Any] = {"max_tokens_per_doc": budget, "side": side}
    half = prompts.build(chunked("q", ["short", LONG], None, budget // 2, **limits))
    for asked in (budget // 2 + 1, budget - 1, budget, 80, 500_000):
        group = prompts.build(chunked("q", ["short", LONG], None, asked, **limits))
        assert group.ignored == ("chunking.overlap_tokens",)
        assert len(group.chunks[1]) <= 2 * len(half.chunks[1]) + 2
        for one, two in itertools.pairwise(group.chunks[1]):
            first = one if side == "right" else two
            shared = one.tokens[1] - two.tokens[0]
            assert 0 < shared <= (first.tokens[1] - first.tokens[0]) // 2 + 10  # a character is shared whole
    assert prompts.build(chunked("q", ["short", LONG], None, 5, **limits)).ignored == ()
    # What is not split shares nothing.
    assert prompts.build(chunked("q", ["short", LONG], 1, 80, **limits)).ignored == ()
    assert prompts.build(chunked("q", ["short"], None, 500_000, **limits)).ignored == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_where_nothing_fits_it_is_cut(family: str, served: dict[str, LoadedPrompts]) -> None:
    prompts = served[family]
    # One token a chunk, and characters that take several: none of them can be read.
    group = prompts.build(chunked("q", ["👩‍👩‍👧‍👦🏳️‍🌈" * 5, "a b c"], max_tokens_per_doc=1))
    assert [chunk.text.strip() for chunk in group.chunks[1]] == ["a", "b", "c"] or family == "roberta"
    if prompts.tokenizer.offsets("👩") != [(0, 1)]:
        assert group.truncated[0]
    # No tokens at all beside the query.
    limit = longest(prompts.build(request("q " * 30, [""])), prompts)
    full = prompts.build(chunked("q " * 30, [LONG], max_tokens=limit))
    assert longest(full, prompts) <= limit
    if isinstance(prompts.builder, DecoderPrompts):
        assert (full.query_truncated, full.truncated) == (True, (False,))  # The query leaves some.
    elif isinstance(prompts.builder, CrossEncoderPrompts):
        # Half of it is a chunk's, and the query is cut.
        assert (full.truncated, full.query_truncated) == ((False,), True)
        alone = [chunk.text for chunk in full.chunks[0]]
        assert full.suffixes == prompts.build(request("q " * 30, alone, max_tokens=limit)).suffixes
        refused = refusal(prompts, chunked("q " * 30, [LONG], max_tokens=limit, allowed=False))
        assert (refused.field, f"{limit} are allowed" in refused.problem) == ("documents[0]", True)


def test_chunks_share_the_prefix_of_a_decoder(qwen3: LoadedPrompts) -> None:
    query = texts.words(60, 1)
    group = qwen3.build(chunked(query, [LONG], max_tokens=250))
    bare = qwen3.build(request(query, ["a", "b"]))
    assert len(group.chunks[0]) > 3
    assert len(group.prefix) == len(bare.prefix) > 100


def test_a_templated_document_is_split_as_what_is_in_it(qwen3: LoadedPrompts) -> None:
    query = f"{authors.BEFORE}<Instruct>: {authors.QWEN3_TASK}\n<Query>: q\n"
    document = f"<Document>: {LONG}{authors.AFTER}"
    plain = qwen3.build(chunked("q", [LONG], None, 3, max_tokens_per_doc=50))
    assert qwen3.build(chunked(query, [document], None, 3, max_tokens_per_doc=50)) == plain


def test_tokens_that_stand_for_no_characters_make_no_chunks() -> None:
    limits = Limits.of(chunked("q", []), 100)
    found = split("ab  ", [(0, 1), (1, 1), (1, 2), (2, 2)], 2, limits, lambda piece: 0, "documents[0]")
    assert found is not None
    assert found.whole
    parted = [(chunk.text, chunk.tokens) for chunk in found.chunks]
    assert parted == [("a", (0, 1)), ("b", (1, 3)), ("  ", (3, 4))]
