"""Decoder prompts against the authors' scripts over transformers' tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rerankd.core import Image, InvalidRequest, RerankRequest, Text, Video, text_content
from rerankd.models.recipes.qwen3 import QWEN3_RERANKER
from rerankd.prompts import LoadedPrompts, load_prompts
from tests import texts
from tests.prompts import authors
from tests.prompts.conftest import refusal, request, whole

LONG = [
    texts.words(700, 1),
    "法国的首都是巴黎。" * 150,
    "👩‍👩‍👧‍👦 é " * 120,
    "x" * 4000,
    " \n\t" * 500,
    "a\nb c\r\n" * 300,
]


@pytest.mark.parametrize("query", texts.QUERIES)
def test_every_prompt_is_the_authors(query: str, qwen3: LoadedPrompts, qwen_reference: Any) -> None:
    documents = list(texts.DOCUMENTS)
    expected = [authors.qwen3_ids(qwen_reference, query, document) for document in documents]
    assert whole(qwen3.build(request(query, documents))) == expected


@pytest.mark.parametrize("query", texts.QUERIES[::3])
def test_every_vl_prompt_is_the_authors(query: str, qwen3_vl: LoadedPrompts, qwen_reference: Any) -> None:
    documents = list(texts.DOCUMENTS)
    expected = [authors.qwen3_vl_ids(qwen_reference, [query], [document]) for document in documents]
    assert whole(qwen3_vl.build(request(query, documents))) == expected


def test_an_instruction_stands_in_place_of_the_default(
    qwen3: LoadedPrompts, qwen3_vl: LoadedPrompts, qwen_reference: Any
) -> None:
    task = "Retrieve code that does what the comment says."
    asked = request("reverse a list", ["xs[::-1]", "len(xs)"], task)
    documents = ["xs[::-1]", "len(xs)"]
    assert whole(qwen3.build(asked)) == [
        authors.qwen3_ids(qwen_reference, "reverse a list", document, task) for document in documents
    ]
    assert whole(qwen3_vl.build(asked)) == [
        authors.qwen3_vl_ids(qwen_reference, ["reverse a list"], [document], task) for document in documents
    ]


def test_an_empty_instruction_stands_for_the_default(qwen3: LoadedPrompts) -> None:
    assert qwen3.build(request("q", ["d"], "")) == qwen3.build(request("q", ["d"]))


def test_parts_follow_each_other_with_nothing_between(
    qwen3: LoadedPrompts, qwen3_vl: LoadedPrompts, qwen_reference: Any
) -> None:
    query, document = (Text("What is"), Text(" love?")), (Text("Baby"), Text("don't"), Text("hurt me"))
    asked = RerankRequest(query, (document,))
    assert whole(qwen3.build(asked)) == [authors.qwen3_ids(qwen_reference, "What is love?", "Babydon'thurt me")]
    assert whole(qwen3_vl.build(asked)) == [
        authors.qwen3_vl_ids(qwen_reference, ["What is", " love?"], ["Baby", "don't", "hurt me"])
    ]


def test_a_content_without_parts_is_null_to_the_vl_model(qwen3_vl: LoadedPrompts, qwen_reference: Any) -> None:
    nothing = qwen3_vl.build(RerankRequest(text_content("q"), ((),)))
    assert whole(nothing) == [authors.qwen3_vl_ids(qwen_reference, ["q"], [])]
    empty = qwen3_vl.build(request("q", [""]))
    assert whole(empty) == [authors.qwen3_vl_ids(qwen_reference, ["q"], [""])]
    assert whole(empty) != whole(nothing)


def test_lone_surrogates_are_replacement_characters(qwen3: LoadedPrompts) -> None:
    broken = qwen3.build(request("a\ud800b", ["\udfff", "\ud83d\ude00 pair"], "x\udc00"))
    assert broken == qwen3.build(request("a\ufffdb", ["\ufffd", "😀 pair"], "x\ufffd"))


def test_media_are_refused_by_name(qwen3: LoadedPrompts) -> None:
    documents = (text_content("d"), (Text("see"), Image("http://x/y.png")))
    error = refusal(qwen3, RerankRequest(text_content("q"), documents))
    assert (error.field, "image" in error.problem, "Qwen3-VL-Reranker" in error.problem) == ("documents[1]", True, True)
    error = refusal(qwen3, RerankRequest((Video("http://x/y.mp4"),), (text_content("d"),)))
    assert (error.field, "video" in error.problem) == ("query", True)


class TestPrefix:
    def test_it_is_the_longest_that_all_share(self, qwen3: LoadedPrompts) -> None:
        group = qwen3.build(request("q", list(texts.DOCUMENTS)))
        assert len({suffix.token_ids[0] for suffix in group.suffixes}) > 1
        assert len(group.prefix) > 60

    def test_equal_documents_keep_a_token_each(self, qwen3: LoadedPrompts) -> None:
        group = qwen3.build(request("q", ["same", "same"]))
        assert [len(suffix) for suffix in group.suffixes] == [1, 1]

    def test_a_document_that_another_begins_with(self, qwen3: LoadedPrompts) -> None:
        documents = ["one two three", "one two three four", "one two"]
        group = qwen3.build(request("q", documents))
        assert whole(group) == [prompt for d in documents for prompt in whole(qwen3.build(request("q", [d])))]

    def test_a_single_document_has_none(self, qwen3: LoadedPrompts) -> None:
        assert len(qwen3.build(request("q", ["d"])).prefix) == 0

    def test_no_documents_make_no_prompts(self, qwen3: LoadedPrompts) -> None:
        group = qwen3.build(request("q", []))
        assert (len(group.prefix), group.suffixes) == (0, ())


class TestTooLong:
    @pytest.mark.parametrize("limit", [80, 81, 97, 128, 500])
    def test_the_document_is_cut_as_the_authors_cut_it(
        self, limit: int, qwen3: LoadedPrompts, qwen_reference: Any
    ) -> None:
        documents = [*LONG, "short", "", *(document + " " for document in LONG)]
        group = qwen3.build(request("What is it?", documents, max_tokens=limit))
        expected = [authors.qwen3_ids(qwen_reference, "What is it?", d, max_length=limit) for d in documents]
        assert whole(group) == expected
        assert group.truncated == tuple(
            ids != authors.qwen3_ids(qwen_reference, "What is it?", document)
            for ids, document in zip(expected, documents, strict=True)
        )
        assert not group.query_truncated

    def test_the_vl_document_is_cut_as_the_authors_cut_it(self, qwen3_vl: LoadedPrompts, qwen_reference: Any) -> None:
        # The authors' limit leaves out the last five tokens, ours counts the whole prompt.
        group = qwen3_vl.build(request("What is it?", LONG, max_tokens=105))
        assert whole(group) == [
            authors.qwen3_vl_ids(qwen_reference, ["What is it?"], [document], max_length=100) for document in LONG
        ]

    @settings(max_examples=60)
    @given(
        document=st.lists(
            st.sampled_from(["word", " ", "\n", "é", "e\u0301", "中文", "😀", "'s", "...", "123", "Zoë", "\r\n", "—"])
            | st.text(max_size=5).filter(lambda text: text.isprintable() and "<" not in text),
            max_size=200,
        ).map("".join),
        limit=st.integers(75, 140),
    )
    def test_any_document_at_any_limit(
        self, document: str, limit: int, qwen3: LoadedPrompts, qwen_reference: Any
    ) -> None:
        group = qwen3.build(request("q", [document], max_tokens=limit))
        assert whole(group) == [authors.qwen3_ids(qwen_reference, "q", document, max_length=limit)]

    def test_a_query_that_leaves_no_tokens_is_cut_once(self, qwen3: LoadedPrompts, qwen_reference: Any) -> None:
        documents = [*LONG, "short", ""]
        query = texts.words(300, 9)
        group = qwen3.build(request(query, documents, max_tokens=200))
        tail = qwen_reference.encode(authors.AFTER)
        assert group.query_truncated
        budget = 200 - len(authors.qwen3_ids(qwen_reference, "", ""))
        read = qwen_reference.decode(group.prefix.token_ids).split("<Query>: ")[1].split("\n<Document>:")[0]
        assert query.startswith(read)
        assert 0 <= budget - budget // 4 - len(qwen_reference.encode(read)) <= 1
        # The rest is the documents', cut as the authors cut them behind such a query.
        assert whole(group) == [authors.qwen3_ids(qwen_reference, read, d, max_length=200) for d in documents]
        assert all(ids[-len(tail) :] == tail for ids in whole(group))
        assert len({tuple(ids) for ids in whole(group)}) == len(documents)
        assert group.truncated == (True,) * len(LONG) + (False, False)

    def test_a_query_that_leaves_a_token_stays(self, qwen3: LoadedPrompts, qwen_reference: Any) -> None:
        query, documents = texts.words(100, 9), [*LONG, "short"]
        alone = len(authors.qwen3_ids(qwen_reference, query, ""))
        for limit in (alone + 1, alone + 2, alone + 20):
            group = qwen3.build(request(query, documents, max_tokens=limit))
            assert whole(group) == [
                authors.qwen3_ids(qwen_reference, query, document, max_length=limit) for document in documents
            ]
            assert not group.query_truncated
        group = qwen3.build(request(query, documents, max_tokens=alone))
        assert group.query_truncated
        # The prompt of an empty document is the same in any company.
        for limit in (alone - 20, alone, alone + 1):
            prompts = [whole(qwen3.build(request(query, own, max_tokens=limit)))[0] for own in ([""], ["", "x"])]
            assert prompts[0] == prompts[1]

    def test_a_query_cut_between_the_bytes_of_a_character_loses_the_character(
        self, qwen3: LoadedPrompts, qwen_reference: Any
    ) -> None:
        for limit in range(85, 100):
            group = qwen3.build(request("👩‍👩‍👧‍👦🏳️‍🌈" * 30, ["d"], max_tokens=limit))
            assert "\ufffd" not in qwen_reference.decode(whole(group)[0])

    def test_the_models_own_limit_holds(self, qwen_folder: Any, qwen_reference: Any) -> None:
        small = load_prompts(qwen_folder, recipe=QWEN3_RERANKER, positions=40960, max_model_len=100)
        expected = [authors.qwen3_ids(qwen_reference, "q", LONG[0], max_length=100)]
        assert small.max_tokens == 100
        assert whole(small.build(request("q", LONG[:1]))) == expected
        assert whole(small.build(request("q", LONG[:1], max_tokens=5000))) == expected

    def test_documents_and_query_have_limits_of_their_own(self, qwen3: LoadedPrompts, qwen_reference: Any) -> None:
        group = qwen3.build(
            request(
                "one two three four five", ["six seven eight nine", "ten"], max_tokens_per_doc=2, max_tokens_per_query=3
            )
        )
        assert whole(group) == [
            authors.qwen3_ids(qwen_reference, "one two three", document) for document in ("six seven", "ten")
        ]
        assert (group.truncated, group.query_truncated) == ((True, False), True)

    @pytest.mark.parametrize("document", LONG)
    def test_a_documents_own_limit_is_never_exceeded(
        self, document: str, qwen3: LoadedPrompts, qwen_reference: Any
    ) -> None:
        for limit in (1, 2, 7, 50):
            group = qwen3.build(request("q", [document], max_tokens_per_doc=limit))
            read = qwen_reference.decode(whole(group)[0]).split("<Document>: ")[1].split("<|im_end|>")[0]
            assert len(qwen_reference.encode(read)) <= limit
            assert document.replace("e\u0301", "é").startswith(read)
            assert group.truncated == (True,)

    def test_nothing_is_cut_where_cutting_is_not_allowed(self, qwen3: LoadedPrompts) -> None:
        length = len(whole(qwen3.build(request("q", [LONG[0]])))[0])
        error = refusal(qwen3, request("q", ["fits", LONG[0]], max_tokens=100, allowed=False))
        assert error.field == "documents[1]"
        assert f"{length} tokens" in error.problem
        assert "100" in error.problem
        assert "truncation" in error.problem
        error = refusal(qwen3, request(LONG[0], ["d"], max_tokens=100, allowed=False))
        assert error.field == "query"
        error = refusal(qwen3, request("q", ["one", "one two three"], max_tokens_per_doc=2, allowed=False))
        assert (error.field, "3 tokens and 2" in error.problem) == ("documents[1]", True)
        error = refusal(qwen3, request("one two three", ["d"], max_tokens_per_query=2, allowed=False))
        assert error.field == "query"
        fitting = request("q", ["d"], max_tokens=100, allowed=False)
        assert qwen3.build(fitting) == qwen3.build(request("q", ["d"]))

    def test_a_limit_below_the_template_is_an_error(self, qwen3: LoadedPrompts) -> None:
        needed = len(whole(qwen3.build(request("", [""])))[0])
        error = refusal(qwen3, request("q", ["d"], max_tokens=needed - 1))
        assert error.field == "truncation.max_tokens"
        assert str(needed) in error.problem
        assert len(whole(qwen3.build(request("", [""], max_tokens=needed)))[0]) == needed
        # A query and a document need a token each.
        for limit in (needed, needed + 1):
            assert refusal(qwen3, request("many words here", ["and here too"], max_tokens=limit)).field == error.field
        group = qwen3.build(request("many words here", ["and here too"], max_tokens=needed + 2))
        assert len(whole(group)[0]) == needed + 2
        assert (group.truncated, group.query_truncated) == ((True,), True)
        read = qwen3.tokenizer.tokenizer.decode(whole(group)[0], skip_special_tokens=False)
        assert "<Query>: many\n<Document>: and here<|im_end|>" in read

    def test_nothing_is_ever_cut_to_nothing(self, qwen3: LoadedPrompts) -> None:
        needed = len(whole(qwen3.build(request("", [""])))[0])
        flag = "\U00013000"  # a character of several tokens
        assert len(qwen3.tokenizer.ids([flag])[0]) > 2
        asked = request(flag, ["d"], max_tokens=needed + 2)
        assert refusal(qwen3, asked).field == "query"
        asked = request("q", ["fits", flag * 9], max_tokens=needed + 2, side="left")
        assert refusal(qwen3, asked).field == "documents[1]"
        for side in ("left", "right"):
            asked = request("q", ["fits", flag], max_tokens_per_doc=2, side=side)
            assert refusal(qwen3, asked).field == "documents[1]"
            asked = request(flag, ["d"], max_tokens_per_query=2, side=side)
            assert refusal(qwen3, asked).field == "query"

    def test_an_instruction_that_leaves_no_tokens_is_named(self, qwen3: LoadedPrompts) -> None:
        assert refusal(qwen3, request("q", ["d"], texts.words(300, 3), max_tokens=100)).field == "instruction"

    @pytest.mark.parametrize("limit", ["max_tokens", "max_tokens_per_doc", "max_tokens_per_query"])
    def test_limits_are_positive(self, limit: str, qwen3: LoadedPrompts) -> None:
        assert refusal(qwen3, request("q", ["d"], **{limit: 0})).field == f"truncation.{limit}"


class TestLosingTheBeginning:
    """`side="left"`: the prompt is that of an end of the document, and all of the template stands."""

    @settings(max_examples=60)
    @given(
        document=st.lists(
            st.sampled_from(["word", " ", "\n", "é", "e\u0301", "中文", "😀", "'s", "...", "123", "Zoë", "\r\n", "—"])
            | st.text(max_size=5).filter(lambda text: text.isprintable() and "<" not in text),
            max_size=200,
        ).map("".join),
        limit=st.integers(76, 140),
    )
    @example(document="word \U00013000", limit=76)  # whose last character takes more than the two tokens that are left
    def test_any_document_at_any_limit(
        self, document: str, limit: int, qwen3: LoadedPrompts, qwen_reference: Any
    ) -> None:
        ends = [authors.qwen3_ids(qwen_reference, "q", document[start:]) for start in range(len(document) + 1)]
        asked = request("q", [document], max_tokens=limit, side="left")
        try:
            group = qwen3.build(asked)
        except InvalidRequest:
            error = refusal(qwen3, asked)
            assert (error.field, "its last character alone" in error.problem) == ("documents[0]", True)
            # A character may be composed of some.
            assert max(map(len, ends[-4:-1])) > limit
            return
        (ids,) = whole(group)
        assert len(ids) <= limit
        kept = ends.index(ids)
        assert group.truncated == (kept > 0,)
        # Nothing is left of none but an empty document.
        assert kept < len(document) or not document
        # Of the longer ends none fits, but for what tokens merging differently may leave over.
        assert kept == 0 or all(len(end) > limit - 2 for end in ends[:kept])

    def test_the_query_loses_its_beginning_too(self, qwen3: LoadedPrompts, qwen_reference: Any) -> None:
        query = texts.words(300, 9)
        group = qwen3.build(request(query, ["d"], max_tokens=120, side="left"))
        read = qwen_reference.decode(whole(group)[0]).split("<Query>: ")[1].split("\n<Document>:")[0]
        assert query.endswith(read)
        assert len(read) > 100
        group = qwen3.build(request("one two three", ["four five six"], max_tokens_per_query=2, side="left"))
        assert whole(group) == [authors.qwen3_ids(qwen_reference, " two three", "four five six")]

    def test_a_documents_own_limit(self, qwen3: LoadedPrompts, qwen_reference: Any) -> None:
        group = qwen3.build(request("q", ["one two three four", "ten"], max_tokens_per_doc=2, side="left"))
        assert whole(group) == [authors.qwen3_ids(qwen_reference, "q", document) for document in (" three four", "ten")]
        assert group.truncated == (True, False)
        assert refusal(qwen3, request("q", ["a b c"], max_tokens_per_doc=2, side="left", allowed=False)).field

    def test_another_template(self, qwen_folder: Any, qwen_reference: Any) -> None:
        template = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}Answer:"
        served = load_prompts(qwen_folder, recipe=QWEN3_RERANKER, positions=40960, chat_template=template)
        document = texts.words(400, 2)
        group = served.build(request("q", [document], max_tokens=60, side="left"))
        text = qwen_reference.decode(whole(group)[0])
        assert text.startswith("query: q\ndocument: ")
        assert text.endswith("\nAnswer:")
        kept = text.removeprefix("query: q\ndocument: ").removesuffix("\nAnswer:")
        assert document.endswith(kept)
        assert len(kept) > 150

    def test_a_side_that_is_none(self, qwen3: LoadedPrompts) -> None:
        assert refusal(qwen3, request("q", ["d"], side="top")).field == "truncation.side"


def test_a_megabyte_can_lose_its_beginning(qwen3: LoadedPrompts, qwen_reference: Any) -> None:
    document = " ".join(texts.words(200, seed) for seed in range(1200))[:1_000_000]
    group = qwen3.build(request("q", [document], max_tokens=8192, side="left"))
    text = qwen_reference.decode(whole(group)[0])
    kept = text.split("<Document>: ")[1].split("<|im_end|>")[0]
    assert document.endswith(kept)
    assert 8188 <= len(whole(group)[0]) <= 8192


def test_a_megabyte_is_read_as_far_as_it_is_kept(qwen3: LoadedPrompts, qwen_reference: Any) -> None:
    document = " ".join(texts.words(200, seed) for seed in range(1200))[:1_000_000]
    group = qwen3.build(request("q", [document], max_tokens=8192))
    assert whole(group) == [authors.qwen3_ids(qwen_reference, "q", document)]
