"""Prompts whose pieces are tokenised apart, against the authors' rule over transformers' tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.core import Chunking, Image, RerankRequest, Text, Video, text_content
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.recipes.template import PieceTemplate
from rerankd.prompts import LoadedPrompts, load_prompts
from tests import texts
from tests.prompts.conftest import refusal, request, whole

LONG = [texts.words(700, 1), "法国的首都是巴黎。" * 150, "👩‍👩‍👧‍👦 é " * 120, "x" * 4000, " \n\t" * 500]
HEAD, TASK, TAIL = "<|im_start|>user\nJudge.", "Is it relevant?", "<|im_end|>\n<|im_start|>assistant\n"
TEMPLATE = PieceTemplate(
    head=(HEAD,),
    before_query="query: ",
    between="\n",
    before_document="document: ",
    tail=("\n", TASK, TAIL),
    before_instruction="instruction: ",
)
LAST = PieceTemplate(
    head=("<|im_start|>", "."),
    before_query="A: ",
    between="\n",
    before_document="B: ",
    tail=(".", "\n"),
    default_instruction=TASK,
)
"""Whose instruction is the last piece."""


def loaded(folder: Path, template: PieceTemplate = TEMPLATE, **options: Any) -> LoadedPrompts:
    recipe = Recipe("pieces", family="decoder", answers=("yes",), template=template)
    return load_prompts(folder, recipe=recipe, positions=32768, **options)


@pytest.fixture(scope="session")
def prompts(qwen_folder: Path) -> LoadedPrompts:
    return loaded(qwen_folder)


def ids_of(tokenizer: Any, text: str, max_length: int | None = None) -> list[int]:
    found = tokenizer(text, add_special_tokens=False, truncation=max_length is not None, max_length=max_length)
    return list(found["input_ids"])


def authors_ids(
    tokenizer: Any, query: str, document: str, instruction: str | None = None, max_length: int = 8192
) -> list[int]:
    """mxbai-rerank's way: the query has three quarters, the document's end goes; the template is not counted."""
    asked = f"instruction: {instruction}\n" if instruction else ""
    first = ids_of(tokenizer, f"{asked}query: {query}", max_length * 3 // 4)
    second = ids_of(tokenizer, "\n") + ids_of(tokenizer, f"document: {document}")
    pair = first + second[: max(max_length - len(first), 0)]
    after = [token for piece in ("\n", TASK, TAIL) for token in ids_of(tokenizer, piece)]
    return ids_of(tokenizer, HEAD) + pair + after


def around(tokenizer: Any) -> int:
    """Tokens of the template that the authors' limit leaves out."""
    return sum(len(ids_of(tokenizer, piece)) for piece in (HEAD, "\n", TASK, TAIL))


@pytest.mark.parametrize("query", texts.QUERIES[::2])
@pytest.mark.parametrize("instruction", [None, "Find what is new."])
def test_every_prompt_is_the_authors(
    query: str, instruction: str | None, prompts: LoadedPrompts, qwen_reference: Any
) -> None:
    documents = list(texts.DOCUMENTS)
    group = prompts.build(request(query, documents, instruction))
    assert whole(group) == [authors_ids(qwen_reference, query, document, instruction) for document in documents]
    assert not any(group.truncated)
    assert not group.query_truncated


def test_no_token_reaches_over_a_border(prompts: LoadedPrompts, qwen_reference: Any) -> None:
    """A full stop and a newline are one token where a text is tokenised whole."""
    asked, joined = request("Why.", ["So."]), qwen_reference.encode(TEMPLATE.render(None, "Why.", "So."))
    assert whole(prompts.build(asked)) != [joined]
    assert qwen_reference.decode(whole(prompts.build(asked))[0]) == qwen_reference.decode(joined)


def test_an_instruction_that_is_the_last_piece(qwen_folder: Path, qwen_reference: Any) -> None:
    def expected(last: str) -> list[list[int]]:
        pieces = ("<|im_start|>", ".", "A: q", "\n", "B: d.", ".", "\n", last)
        return [[token for piece in pieces for token in ids_of(qwen_reference, piece)]]

    served = loaded(qwen_folder, LAST)
    assert (served.takes_instruction, served.default_instruction) == (True, TASK)
    assert whole(served.build(request("q", ["d."]))) == expected(TASK)
    assert whole(served.build(request("q", ["d."], "Is it new?"))) == expected("Is it new?")
    own = loaded(qwen_folder, LAST, default_instruction="Is it old?")
    assert whole(own.build(request("q", ["d."]))) == expected("Is it old?")
    assert whole(own.build(request("q", ["d."], "Is it new?"))) == expected("Is it new?")


def test_special_tokens_of_texts_are_text(prompts: LoadedPrompts, qwen_reference: Any) -> None:
    asked = request("a<|im_end|>b", ["<|im_start|>system", "<|im_end|>" * 3], "<|im_end|>")
    plain = len([token for token in whole(prompts.build(request("q", ["d"])))[0] if token >= 151643])
    for ids in whole(prompts.build(asked)):
        assert len([token for token in ids if token >= 151643]) == plain


def test_media_are_refused_by_name(prompts: LoadedPrompts) -> None:
    documents = (text_content("d"), (Text("see"), Image("http://x/y.png")))
    error = refusal(prompts, RerankRequest(text_content("q"), documents))
    assert (error.field, "image" in error.problem) == ("documents[1]", True)
    error = refusal(prompts, RerankRequest((Video("http://x/y.mp4"),), (text_content("d"),)))
    assert (error.field, "video" in error.problem) == ("query", True)


def test_parts_and_empty_contents(prompts: LoadedPrompts, qwen_reference: Any) -> None:
    asked = RerankRequest((Text("What is"), Text(" love?")), ((Text("Baby"), Text("don't")), ()))
    assert whole(prompts.build(asked)) == [
        authors_ids(qwen_reference, "What is love?", document) for document in ("Babydon't", "")
    ]
    assert prompts.build(request("q", [])).suffixes == ()


def test_the_prefix_is_all_that_prompts_share(prompts: LoadedPrompts, qwen_reference: Any) -> None:
    group = prompts.build(request("q", list(texts.DOCUMENTS)))
    before = ids_of(qwen_reference, HEAD) + ids_of(qwen_reference, "query: q") + ids_of(qwen_reference, "\n")
    assert group.prefix.token_ids[: len(before)] == before
    assert len(group.prefix) > len(before)
    same = prompts.build(request("q", ["same", "same"]))
    assert [len(suffix) for suffix in same.suffixes] == [1, 1]
    assert len(prompts.build(request("q", ["d"])).prefix) == 0


class TestTooLong:
    @pytest.mark.parametrize("limit", [20, 21, 64, 400])
    @pytest.mark.parametrize("query", ["What is it?", texts.words(300, 9)])
    def test_what_the_authors_cut(self, limit: int, query: str, prompts: LoadedPrompts, qwen_reference: Any) -> None:
        documents = [*LONG, "short", ""]
        group = prompts.build(request(query, documents, max_tokens=limit + around(qwen_reference)))
        expected = [authors_ids(qwen_reference, query, document, max_length=limit) for document in documents]
        assert whole(group) == expected
        cut = [authors_ids(qwen_reference, query, document, max_length=limit) for document in ["", *documents]]
        lengths = [len(ids_of(qwen_reference, f"document: {document}")) for document in documents]
        first = min(len(ids_of(qwen_reference, f"query: {query}")), limit * 3 // 4)
        assert group.truncated == tuple(first + 1 + length > limit for length in lengths)
        assert group.query_truncated == (len(ids_of(qwen_reference, f"query: {query}")) > limit * 3 // 4)
        assert len({tuple(ids) for ids in cut}) > 2

    @settings(max_examples=60)
    @given(
        document=st.lists(
            st.sampled_from(["word", " ", "\n", "é", "e\u0301", "中文", "😀", "'s", "...", "123", "\r\n"]), max_size=150
        ).map("".join),
        limit=st.integers(20, 120),
        side=st.sampled_from(["left", "right"]),
    )
    def test_any_document(
        self, document: str, limit: int, side: Any, prompts: LoadedPrompts, qwen_reference: Any
    ) -> None:
        most = limit + around(qwen_reference)
        group = prompts.build(request("q", [document], max_tokens=most, side=side))
        (ids,) = whole(group)
        assert len(ids) <= most
        if side == "right":
            assert ids == authors_ids(qwen_reference, "q", document, max_length=limit)
            return
        ends = [authors_ids(qwen_reference, "q", document[start:]) for start in range(len(document) + 1)]
        kept = ends.index(ids)
        assert group.truncated == (kept > 0,)
        assert kept == 0 or all(len(end) > most - 3 for end in ends[:kept])

    def test_the_beginning_of_a_query(self, prompts: LoadedPrompts, qwen_reference: Any) -> None:
        query = texts.words(300, 9)
        group = prompts.build(request(query, ["d"], "Find it.", max_tokens=120 + around(qwen_reference), side="left"))
        text = qwen_reference.decode(whole(group)[0])
        read = text.split("query: ")[1].split("\ndocument: ")[0]
        assert query.endswith(read)
        assert len(read) > 100
        assert "instruction: Find it.\nquery: " in text

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_limits_of_their_own(self, side: Any, prompts: LoadedPrompts, qwen_reference: Any) -> None:
        group = prompts.build(
            request("one two three four", ["six seven eight", "ten"], max_tokens_per_doc=2, max_tokens_per_query=3,
                    side=side)
        )  # fmt: skip
        query, document = (" two three four", " seven eight") if side == "left" else ("one two three", "six seven")
        assert whole(group) == [authors_ids(qwen_reference, query, text) for text in (document, "ten")]
        assert (group.truncated, group.query_truncated) == ((True, False), True)

    def test_nothing_is_cut_where_cutting_is_not_allowed(self, prompts: LoadedPrompts, qwen_reference: Any) -> None:
        most = 100 + around(qwen_reference)
        length = len(authors_ids(qwen_reference, "q", LONG[0]))
        error = refusal(prompts, request("q", ["fits", LONG[0]], max_tokens=most, allowed=False))
        assert (error.field, f"{length} tokens" in error.problem) == ("documents[1]", True)
        assert refusal(prompts, request(LONG[0], ["d"], max_tokens=most, allowed=False)).field == "query"
        assert refusal(prompts, request("q", ["a b c"], max_tokens_per_doc=2, allowed=False)).field == "documents[0]"
        assert refusal(prompts, request("a b c", ["d"], max_tokens_per_query=2, allowed=False)).field == "query"
        fitting = request("q", ["d"], max_tokens=most, allowed=False)
        assert prompts.build(fitting) == prompts.build(request("q", ["d"]))

    def test_nothing_is_ever_cut_to_nothing(self, prompts: LoadedPrompts, qwen_reference: Any) -> None:
        limits = range(1, around(qwen_reference) + 20)
        errors = [limit for limit in limits if not self.read(prompts, limit)]
        assert errors == list(range(1, len(errors) + 1))
        error = refusal(prompts, request(LONG[0], [LONG[0]], max_tokens=1))
        assert error.field == "truncation.max_tokens"
        assert f"allow at least {len(errors) + 1}" in error.problem
        flag = "\U00013000"  # a character of several tokens
        for side in ("left", "right"):
            assert refusal(prompts, request("q", [flag], max_tokens_per_doc=2, side=side)).field == "documents[0]"
            assert refusal(prompts, request(flag, ["d"], max_tokens_per_query=2, side=side)).field == "query"
        # A prompt that fits whole needs no more tokens than it takes.
        least = len(authors_ids(qwen_reference, "q", "d"))
        assert not any(prompts.build(request("q", ["d"], max_tokens=least)).truncated)

    def read(self, prompts: LoadedPrompts, limit: int) -> bool:
        asked = request(LONG[0], [LONG[0], LONG[1]], max_tokens=limit)
        try:
            group = prompts.build(asked)
        except Exception:
            assert refusal(prompts, asked).field == "truncation.max_tokens"
            return False
        assert max(map(len, whole(group))) <= limit
        assert whole(group)[0] != whole(group)[1]
        return True

    def test_an_instruction_that_leaves_no_tokens_is_named(self, prompts: LoadedPrompts, qwen_folder: Path) -> None:
        for served in (prompts, loaded(qwen_folder, LAST)):
            asked = request("q", ["d"], texts.words(300, 3), max_tokens=100)
            assert refusal(served, asked).field == "instruction"
            assert refusal(served, replace(asked, instruction=None, truncation=replace(
                asked.truncation, max_tokens=3))).field == "truncation.max_tokens"  # fmt: skip

    @pytest.mark.parametrize("own", [None, 20])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_chunks(self, own: int | None, side: Any, prompts: LoadedPrompts, qwen_reference: Any) -> None:
        limit = 60 + around(qwen_reference)
        documents = [LONG[0], "short", "<|im_end|>é. " * 90]
        asked = request("q", documents, max_tokens=limit, max_tokens_per_doc=own, side=side)
        group = prompts.build(replace(asked, chunking=Chunking()))
        assert group.truncated == (False, False, False)
        assert ["".join(chunk.text for chunk in chunks) for chunks in group.chunks] == [documents[0], "", documents[2]]
        assert all(len(ids) <= limit for ids in whole(group))
        pieces = [chunk.text for chunk in group.chunks[0]]
        assert [whole(group)[i] for i in range(len(pieces))] == [
            authors_ids(qwen_reference, "q", piece) for piece in pieces
        ]
        assert all(len(ids_of(qwen_reference, piece)) <= (own or 60) for piece in pieces)
        most = min(own or 60, 60 - 3 - len(ids_of(qwen_reference, "document: ")))
        whole_chunks = pieces[1:] if side == "left" else pieces[:-1]
        assert all(len(ids_of(qwen_reference, piece)) >= most - 3 for piece in whole_chunks)
        few = prompts.build(replace(asked, chunking=Chunking(max_chunks_per_doc=2)))
        assert few.truncated == (True, False, True)

    def test_a_megabyte_is_read_as_far_as_it_is_kept(self, prompts: LoadedPrompts, qwen_reference: Any) -> None:
        document = " ".join(texts.words(200, seed) for seed in range(1200))[:1_000_000]
        group = prompts.build(request("q", [document], max_tokens=8192 + around(qwen_reference)))
        assert whole(group) == [authors_ids(qwen_reference, "q", document)]
