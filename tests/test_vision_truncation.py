"""Prompts with images and videos that are too long: text is cut as the authors cut it, what is shown stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from rerankd import Reranker
from rerankd.core import InvalidRequest, PromptGroup, RerankRequest, Text, Truncation
from tests import texts, vision
from tests.pairs import FRAMES, SQUARE, TALL, TINY, WIDE, Piece
from tests.prompts import authors
from tests.prompts.conftest import whole

LONG, OTHER = texts.words(500, 3), texts.words(500, 4)
QUERIES: dict[str, list[Piece]] = {
    "text": ["a dog at the beach"],
    "text and image": [texts.words(60, 5), TINY],
    "image and text": [SQUARE, texts.words(60, 6)],
    "long text": [texts.words(200, 7)],
    "long text around an image": [texts.words(100, 8), TINY, texts.words(100, 9)],
}
DOCUMENTS: dict[str, list[Piece]] = {
    "text": [LONG],
    "short": ["short"],
    "image": [TALL],
    "text and image": [LONG, TINY],
    "image and text": [WIDE, LONG],
    "text around an image": [LONG, SQUARE, OTHER],
    "short texts around": ["see ", WIDE, " and ", TINY, LONG],
    "text and video": [LONG, FRAMES],
    "video and text": [FRAMES, LONG],
    "video between": ["the film: ", FRAMES, OTHER, TALL],
}
LIMITS = (450, 500)


@pytest.fixture(scope="module")
def reranker(qwen3_vl_checkpoint: Path) -> Iterator[Reranker]:
    with Reranker(qwen3_vl_checkpoint, device="cpu", dtype="float32") as loaded:
        yield loaded


def build(
    reranker: Reranker, query: list[Piece], documents: list[list[Piece]], limit: int | None = None, **options: Any
) -> PromptGroup:
    asked = RerankRequest(
        vision.content(query),
        tuple(map(vision.content, documents)),
        truncation=Truncation(max_tokens=limit, **options),
    )
    assert reranker._media is not None
    return reranker._prompts.build(asked, reranker._media.load_blocking(asked).visuals)


def plain(ids: list[int]) -> int:
    return sum(token not in authors.QWEN3_VL_SPECIAL for token in ids)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("query", QUERIES)
def test_prompts_are_cut_as_the_authors_cut_them(query: str, limit: int, reranker: Reranker) -> None:
    documents = list(DOCUMENTS.values())
    full = whole(build(reranker, QUERIES[query], documents))
    # The authors' limit leaves out the last five tokens, ours counts the whole prompt.
    expected = [authors.qwen3_vl_cut(ids, limit - 5) for ids in full]
    assert sum(len(ids) > limit for ids in full) >= 6
    group = build(reranker, QUERIES[query], documents, limit)
    assert whole(group) == expected
    assert group.truncated == tuple(ids != cut for ids, cut in zip(full, expected, strict=True))
    # The query is cut where the prompt has fewer plain tokens than it would have without a document.
    bare = plain(whole(build(reranker, QUERIES[query], [[""]]))[0])
    assert group.query_truncated == any(plain(cut) < bare for cut in expected)
    if query.startswith("long"):
        assert group.query_truncated
    # Each by itself, nothing shared.
    for document, cut in zip(documents, expected, strict=True):
        assert whole(build(reranker, QUERIES[query], [document], limit)) == [cut]


def test_scores_are_transformers_on_the_authors_ids(qwen3_vl_checkpoint: Path, reranker: Reranker) -> None:
    processor, model = vision.processor(qwen3_vl_checkpoint), vision.load(qwen3_vl_checkpoint)
    documents, limit = list(DOCUMENTS.values()), LIMITS[0]
    spread = []
    for query in QUERIES.values():
        full = whole(build(reranker, query, documents))
        ids = [authors.qwen3_vl_cut(one, limit - 5) for one in full]
        expected = [
            vision.score(model, vision.inputs(processor, query, document, own))
            for document, own in zip(documents, ids, strict=True)
        ]
        result = reranker.rerank(
            vision.content(query), list(map(vision.content, documents)), truncation=Truncation(max_tokens=limit)
        )
        found = [document.score for document in result.in_request_order()]
        assert found == pytest.approx(expected, abs=1e-4)
        assert result.truncated == tuple(i for i, (one, own) in enumerate(zip(full, ids, strict=True)) if one != own)
        spread += expected
    assert max(spread) - min(spread) > 0.05


def test_a_small_image_behind_a_long_text(reranker: Reranker) -> None:
    """At a limit of 1,024 tokens, of which the image takes 4."""
    document = vision.content([texts.words(2000, 1), TINY])
    result = reranker.rerank("what is shown?", ["short", document], truncation=Truncation(max_tokens=1024))
    assert (result.truncated, result.query_truncated) == ((1,), False)
    assert result.in_request_order()[1].prompt_tokens == 1024


def test_a_query_that_leaves_no_tokens_keeps_its_image(reranker: Reranker) -> None:
    query: list[Piece] = [texts.words(900, 1), SQUARE, texts.words(900, 2)]
    group = build(reranker, query, [["short"], [LONG], [TINY]], 500)
    assert group.query_truncated
    assert group.truncated == (False, True, False)
    full, long = build(reranker, query, [["short"]]), whole(group)
    # What is left of the query, before the document's tag, is its first text's beginning and its image.
    tag = reranker._prompts.tokenizer.ids(["\n<Document>:short"])[0]
    ids = long[0][: len(long[0]) - 5 - len(tag)]
    visible = [token for token in ids if token in authors.QWEN3_VL_SPECIAL]
    assert visible.count(vision.IMAGE) == 9
    words = [token for token in ids if token not in authors.QWEN3_VL_SPECIAL]
    assert words == [token for token in whole(full)[0] if token not in authors.QWEN3_VL_SPECIAL][: len(words)]
    assert 300 < len(words) < 380
    # Documents share a quarter of the tokens that the template leaves.
    assert len(long[1]) == 500
    assert 90 < 500 - len(ids) < 130


@pytest.mark.parametrize(
    ("before", "shown", "behind"),
    [
        (LONG, [TINY], ""),
        ("", [WIDE], LONG),
        (LONG, [SQUARE], " at the end"),
        (LONG, [FRAMES], ""),
        ("", [FRAMES], LONG),
    ],
)
def test_losing_the_beginning(before: str, shown: list[Piece], behind: str, reranker: Reranker) -> None:
    query: list[Piece] = ["a dog"]
    group = build(reranker, query, [[before, *shown, behind], ["short"]], 450, side="left")
    assert group.truncated == (True, False)
    (ids, _), tokenizer = whole(group), reranker._prompts.tokenizer.tokenizer
    assert 447 <= len(ids) <= 450
    # It is the prompt of an end of the text that went.
    read = tokenizer.decode(ids, skip_special_tokens=False).split("<Document>:")[1]
    start = len(LONG) - max(size for size in range(1, 2500) if LONG[-size:] in read)
    left = [LONG[start:] if before else "", *shown, behind if before else LONG[start:]]
    assert start > 0
    assert whole(build(reranker, query, [left])) == [ids]


def test_the_query_loses_its_beginning_beside_a_large_image(reranker: Reranker) -> None:
    query: list[Piece] = [texts.words(300, 1)]
    group = build(reranker, query, [[LONG, FRAMES], ["short"]], 450, side="left")
    assert (group.truncated, group.query_truncated) == ((True, False), True)
    ids = whole(group)[0]
    assert 447 <= len(ids) <= 450
    read = reranker._prompts.tokenizer.tokenizer.decode(ids, skip_special_tokens=False)
    kept = read.split("<Query>:")[1].split("\n<Document>:")[0]
    assert len(kept) > 100
    assert texts.words(300, 1).endswith(kept)
    assert whole(build(reranker, [kept], [[FRAMES]])) == [ids]
    assert whole(group)[1] == whole(build(reranker, query, [["short"]], 450, side="left"))[0]


@pytest.mark.parametrize("side", ["left", "right"])
class TestRefused:
    """What is shown is never cut: the error names the field and the way out."""

    def refusal(self, reranker: Reranker, *asked: Any, **options: Any) -> InvalidRequest:
        with pytest.raises(InvalidRequest) as caught:
            build(reranker, *asked, **options)
        assert "max_pixels" in caught.value.problem
        return caught.value

    def test_a_document(self, side: Literal["left", "right"], reranker: Reranker) -> None:
        error = self.refusal(reranker, ["q"], [["fits"], [LONG, FRAMES]], 300, side=side)
        assert error.field == "documents[1]"
        assert "300 are allowed" in error.problem
        fits = len(whole(build(reranker, ["q"], [[FRAMES]]))[0])
        assert len(whole(build(reranker, ["q"], [[LONG, FRAMES]], fits + 1, side=side))[0]) <= fits + 1

    def test_a_query(self, side: Literal["left", "right"], reranker: Reranker) -> None:
        error = self.refusal(reranker, [LONG, FRAMES], [["fits"]], 300, side=side)
        assert error.field == "query"

    def test_a_limit_of_its_own(self, side: Literal["left", "right"], reranker: Reranker) -> None:
        documents: list[list[Piece]] = [[LONG, SQUARE, OTHER], ["fits"]]
        group = build(reranker, ["q"], documents, max_tokens_per_doc=31, side=side)
        assert group.truncated == (True, False)
        bare = len(whole(build(reranker, ["q"], [[SQUARE]]))[0])
        assert len(whole(group)[0]) == bare + 20
        kept = [" ".join(OTHER.split()[-3:])] if side == "left" else [" ".join(LONG.split()[:3])]
        text = reranker._prompts.tokenizer.tokenizer.decode(whole(group)[0], skip_special_tokens=False)
        assert kept[0] in text
        error = self.refusal(reranker, ["q"], documents, max_tokens_per_doc=8, side=side)
        assert (error.field, "11 tokens and 8 are allowed" in error.problem) == ("documents[0]", True)
        error = self.refusal(reranker, [SQUARE], [["fits"]], max_tokens_per_query=8, side=side)
        assert error.field == "query"

    def test_where_nothing_may_be_cut(self, side: Literal["left", "right"], reranker: Reranker) -> None:
        with pytest.raises(InvalidRequest, match="allow truncation") as caught:
            build(reranker, ["q"], [["fits"], [LONG, TINY]], 300, side=side, allowed=False)
        assert caught.value.field == "documents[1]"


def test_neighbouring_texts_are_one(reranker: Reranker) -> None:
    asked = RerankRequest(
        (Text("q"),),
        ((Text(LONG[:800]), Text(LONG[800:]), *vision.content([TINY])),),
        truncation=Truncation(max_tokens=200),
    )
    assert reranker._media is not None
    parted = reranker._prompts.build(asked, reranker._media.load_blocking(asked).visuals)
    assert whole(parted) == whole(build(reranker, ["q"], [[LONG, TINY]], 200))
