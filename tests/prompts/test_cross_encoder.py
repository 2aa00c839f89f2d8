"""Encoder pairs against transformers' tokenizers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.core import Image, RerankRequest, Side, Text, text_content
from rerankd.models.recipes.encoders import CROSS_ENCODER
from rerankd.prompts import LoadedPrompts, load_prompts
from rerankd.prompts.cross_encoder import longest_first
from tests import texts
from tests.prompts.conftest import refusal, request

POSITIONS = 512
SIDES: tuple[Side, ...] = ("left", "right")


@pytest.fixture(scope="module", params=["xlmr_folder", "roberta_folder", "minilm_path"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def prompts(folder: Path) -> LoadedPrompts:
    return load_prompts(folder, recipe=CROSS_ENCODER, positions=POSITIONS)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def pair(reference: Any, query: str, document: str, limit: int = POSITIONS) -> tuple[list[int], list[int]]:
    """Ids and types as transformers cuts them, from a batch: alone, a pair with an empty text is no pair to it."""
    encoded = reference([[query, document]], truncation=True, max_length=limit, return_token_type_ids=True)
    types = encoded["token_type_ids"][0]
    return encoded["input_ids"][0], types if any(types) else []


def test_every_pair_is_transformers(prompts: LoadedPrompts, reference: Any) -> None:
    for query in texts.QUERIES:
        group = prompts.build(request(query, list(texts.DOCUMENTS)))
        assert len(group.prefix) == 0
        for suffix, document, cut in zip(group.suffixes, texts.DOCUMENTS, group.truncated, strict=True):
            assert (suffix.token_ids, suffix.token_types) == pair(reference, query, document)
            assert cut == (len(pair(reference, query, document, 10**6)[0]) > POSITIONS)


@settings(max_examples=60)
@given(document=st.text(max_size=300), limit=st.integers(20, 60))
def test_any_document_at_any_limit(document: str, limit: int, prompts: LoadedPrompts, reference: Any) -> None:
    if any(token in document for token in reference.all_special_tokens):
        return
    group = prompts.build(request("what is it", [document], max_tokens=limit))
    assert (group.suffixes[0].token_ids, group.suffixes[0].token_types) == pair(
        reference, "what is it", document, limit
    )


def test_long_documents_are_cut(prompts: LoadedPrompts, reference: Any) -> None:
    documents = [texts.words(3000, 1), "x" * 20000, "法国的首都是巴黎。" * 900, "short", ""]
    group = prompts.build(request("what is it", documents))
    assert [suffix.token_ids for suffix in group.suffixes] == [
        pair(reference, "what is it", document)[0] for document in documents
    ]
    assert group.truncated[0]
    assert group.truncated[2:] == (True, False, False)


@settings(max_examples=100)
@given(query=st.integers(0, 60), document=st.integers(0, 60), limit=st.integers(6, 80), side=st.sampled_from(SIDES))
def test_a_pair_is_cut_as_transformers_cuts_it(
    query: int, document: int, limit: int, side: Side, prompts: LoadedPrompts, folder: Path
) -> None:
    cut = reference_of(folder, side)
    texts_of_words = texts.words(query, 1), texts.words(document, 2)
    group = prompts.build(request(texts_of_words[0], ["", texts_of_words[1]], max_tokens=limit, side=side))
    expected = [pair(cut, texts_of_words[0], text, limit) for text in ("", texts_of_words[1])]
    assert [(suffix.token_ids, suffix.token_types) for suffix in group.suffixes] == expected
    budget = limit - len(pair(cut, "", "")[0])
    tokens = [len(cut.encode(text, add_special_tokens=False)) for text in texts_of_words]
    kept = longest_first(tokens[0], tokens[1], budget)
    assert sum(kept) == min(sum(tokens), budget)
    assert all(kept) == all(tokens)
    assert group.truncated == (False, kept[1] < tokens[1])
    assert group.query_truncated == (tokens[0] > budget or kept[0] < tokens[0])


def test_both_keep_a_share(prompts: LoadedPrompts, reference: Any) -> None:
    query, short, long = texts.words(700, 1), texts.words(30, 2), texts.words(600, 3)
    group = prompts.build(request(query, [short, long, ""]))
    expected = [pair(reference, query, document) for document in (short, long, "")]
    assert [(suffix.token_ids, suffix.token_types) for suffix in group.suffixes] == expected
    assert (group.truncated, group.query_truncated) == ((False, True, False), True)
    # The query is whole in one prompt, and cut in another.
    group = prompts.build(request(texts.words(80, 1), [short, long]))
    assert (group.truncated, group.query_truncated) == ((False, True), False)
    group = prompts.build(request(texts.words(400, 1), ["hi", long]))
    assert (group.truncated, group.query_truncated) == ((False, True), True)


def test_the_flag_authors_rule_agrees_where_a_query_has_at_most_half(prompts: LoadedPrompts, reference: Any) -> None:
    """`BaseReranker` of FlagEmbedding: a query has 3/4 of the limit at most, and the document what is left."""
    special = len(pair(reference, "", "")[0])
    for words, limit in ((5, 40), (20, 128), (80, 512)):
        query = texts.words(words, 1)
        ids = reference.encode(query, add_special_tokens=False)[: limit * 3 // 4]
        assert len(ids) <= (limit - special) // 2
        for length in (1, words // 2, words, 3 * words, 10 * words):
            document = texts.words(length, 2)
            own = reference.encode(document, add_special_tokens=False)[: limit - special - len(ids)]
            suffix = prompts.build(request(query, [document], max_tokens=limit)).suffixes[0]
            assert len(suffix) == len(ids) + len(own) + special
            assert suffix.token_ids[1 : 1 + len(ids)] == ids
            assert suffix.token_ids[-1 - len(own) : -1] == own


def test_documents_and_query_have_limits_of_their_own(prompts: LoadedPrompts, reference: Any) -> None:
    asked = request("one two three", ["four five six", "four"], max_tokens_per_doc=1, max_tokens_per_query=2)
    group = prompts.build(asked)
    special = len(pair(reference, "", "")[0])
    query = reference.encode("one two three", add_special_tokens=False)[:2]
    document = reference.encode("four five six", add_special_tokens=False)[:1]
    ids = group.suffixes[0].token_ids
    assert (ids[1:3], ids[-2:-1], len(ids)) == (query, document, special + 3)
    assert (group.truncated[0], group.query_truncated) == (True, True)


def test_nothing_is_cut_where_cutting_is_not_allowed(prompts: LoadedPrompts, reference: Any) -> None:
    long = texts.words(600, 1)
    length = len(pair(reference, "q", long, 10**6)[0])
    error = refusal(prompts, request("q", ["d", long], allowed=False))
    assert (error.field, f"{length} tokens and {POSITIONS}" in error.problem) == ("documents[1]", True)
    length = len(pair(reference, long, "", 10**6)[0])
    error = refusal(prompts, request(long, ["d"], allowed=False))
    assert (error.field, f"{length} tokens and {POSITIONS}" in error.problem) == ("query", True)
    error = refusal(prompts, request("q", ["a b c d"], max_tokens_per_doc=2, allowed=False))
    assert (error.field, "and 2" in error.problem) == ("documents[0]", True)
    assert refusal(prompts, request("a b c", ["d"], max_tokens_per_query=1, allowed=False)).field == "query"


def test_a_limit_that_leaves_no_token_of_a_text_is_an_error(prompts: LoadedPrompts, reference: Any) -> None:
    special = len(pair(reference, "", "")[0])
    for limit in (special - 1, special, special + 1):
        error = refusal(prompts, request("q", ["d"], max_tokens=limit))
        assert error.field == "truncation.max_tokens"
        assert f"takes {special}; allow at least {special + 2}" in error.problem
    # The least that leaves each text a token.
    group = prompts.build(request("what is it", ["some words here"], max_tokens=special + 2))
    assert group.suffixes[0].token_ids == pair(reference, "what is it", "some words here", special + 2)[0]
    assert (group.truncated, group.query_truncated) == ((True,), True)


def test_parts_media_surrogates_and_no_documents(prompts: LoadedPrompts) -> None:
    joined = prompts.build(RerankRequest((Text("what "), Text("is it")), ((Text("a"), Text("\ud800")), ())))
    assert joined == prompts.build(request("what is it", ["a\ufffd", ""]))
    error = refusal(prompts, RerankRequest(text_content("q"), (text_content("d"), (Image("x.png"),))))
    assert error.field == "documents[1]"
    assert prompts.build(request("q", [])).suffixes == ()
    assert not prompts.takes_instruction
    assert prompts.build(request("q", ["d"], "instruction")) == prompts.build(request("q", ["d"]))


@settings(max_examples=60)
@given(document=st.text(max_size=300), limit=st.integers(20, 60))
def test_a_document_can_lose_its_beginning(document: str, limit: int, prompts: LoadedPrompts, folder: Path) -> None:
    left = reference_of(folder, "left")
    if any(token in document for token in left.all_special_tokens):
        return
    group = prompts.build(request("what is it", ["x", document], max_tokens=limit, side="left"))
    assert (group.suffixes[1].token_ids, group.suffixes[1].token_types) == pair(left, "what is it", document, limit)
    assert group.truncated == (False, len(pair(left, "what is it", document, 10**6)[0]) > limit)


def test_so_can_the_query_and_texts_far_too_long(prompts: LoadedPrompts, folder: Path) -> None:
    left = reference_of(folder, "left")
    documents = [texts.words(3000, 1), "x" * 20000, "法国的首都是巴黎。" * 900, "short", ""]
    group = prompts.build(request("what is it", documents, side="left"))
    assert [suffix.token_ids for suffix in group.suffixes] == [
        pair(left, "what is it", document)[0] for document in documents
    ]
    query = texts.words(300, 1)
    group = prompts.build(request(query, ["some words", ""], max_tokens=50, side="left"))
    assert [suffix.token_ids for suffix in group.suffixes] == [
        pair(left, query, document, 50)[0] for document in ("some words", "")
    ]
    assert (group.truncated, group.query_truncated) == ((False, False), True)
    group = prompts.build(request("one two three", ["four five six"], max_tokens_per_doc=1, side="left"))
    last = left.encode("four five six", add_special_tokens=False)[-1]
    ids = group.suffixes[0].token_ids
    assert ids == [*pair(left, "one two three", "")[0][:-1], last, ids[-1]]


@functools.cache
def reference_of(folder: Path, side: Side) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder, truncation_side=side)
