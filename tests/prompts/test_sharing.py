"""What prompts share is tokenised once, and every prompt has the ids that it has when it is tokenised whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from rerankd.core import InvalidRequest, Labels, RerankRequest
from rerankd.prompts import LoadedPrompts
from rerankd.prompts.seams import Seams
from rerankd.prompts.sharing import Around, SharedIds
from rerankd.prompts.tokenizer import LoadedTokenizer, load_tokenizer
from rerankd.prompts.verbatim import VerbatimPrompts
from tests import texts
from tests.labels import label_request
from tests.prompts import authors
from tests.prompts.conftest import request, whole

# Letters, signs and what may join them: marks that compose with a sign or a letter, contractions, runs of white space.
PIECES = (
    *("a", "Word", "word", "K", "s", "'s", "'", "'re", "'l", "’ſ", "é", "e", "\u0301", "\u0338", "\u0327", "<", ">"),
    *("<Document>:", "<Document>: ", "\n<Document>", "<Query>: ", ": ", ":", ".", "?!", "=", "-", "_", "{", "~", "[1]"),
    *(" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u2028", "\u3000", "\u200d", "1", "23", "½", "Ⅷ", "中文", "ा"),
    *(
        "क",
        "가",
        "\u1100",
        "\u1161",
        "😀",
        "👩‍👩‍👧‍👦",
        "\u212b",
        "\u1e9b\u0323",
        "<|im_end|>",
        "<|im_",
        "end|>",
        "im",
        "|>",
    ),
    *(
        "end|>",
        "im",
        "|>",
        "<|",
        "<think>",
        "</think",
        "</",
        "think>",
        "<|image_pad|>",
        "pad",
        "<tool",
        "_call>",
        "\ufffd",
        "\x00",
    ),
)
TEXT = (
    st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12)
    .map("".join)
    .map(lambda text: text.encode("utf-8", "replace").decode())
)


@pytest.fixture(scope="module")
def qwen(qwen_folder: Path) -> LoadedTokenizer:
    return load_tokenizer(qwen_folder)


@pytest.fixture(scope="module")
def seams(qwen: LoadedTokenizer) -> Seams:
    return Seams(qwen.tokenizer)


def prompts(ids: SharedIds) -> list[list[int]]:
    return [ids.prompt(i) for i in range(len(ids.rest))]


class TestSeams:
    @pytest.mark.slow
    @settings(max_examples=1000)
    @given(before=TEXT, behind=TEXT)
    def test_parts_have_the_ids_of_the_whole(
        self, before: str, behind: str, qwen: LoadedTokenizer, seams: Seams
    ) -> None:
        last, first = seams.last(before), seams.first(behind)
        both, left, right = qwen.ids([before + behind, before[:last], before[last:] + behind])
        assert left + right == both
        left, right = qwen.ids([before + behind[:first], behind[first:]])
        assert left + right == both

    def test_they_are_found(self, seams: Seams) -> None:
        for tag in ("\n<Document>: ", "\n<Document>:"):
            before = authors.BEFORE + "<Instruct>: i\n<Query>: 中文" + tag
            assert before[: seams.last(before)].endswith("<Document")
        assert seams.first(" the query. Answer:") == len(" the query")
        assert (seams.last("中文\n"), seams.first("中文\n")) == (0, 3)
        # The sign must not be an added token's, whatever is put around the text.
        assert seams.last("see: <|im_end|>") == len("see")
        assert seams.last("see: <|im_end") == len("see")
        assert seams.first("im_end|> so.") == len("im_end|> so")
        assert seams.last("x" * 10 + "." + " " * 300) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "change",
        [
            lambda it: setattr(it, "normalizer", normalizers.NFKC()),
            lambda it: setattr(it, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False)),
            lambda it: setattr(it, "pre_tokenizer", None),
            lambda it: it.add_tokens([AddedToken("zebra", single_word=True)]),
            lambda it: it.add_tokens([AddedToken("zebra", normalized=True)]),
            lambda it: setattr(it.model, "dropout", 0.5),
        ],
    )
    def test_a_tokenizer_of_another_make_has_none(self, change: Any, qwen: LoadedTokenizer) -> None:
        other = Tokenizer.from_str(qwen.tokenizer.to_str())
        assert Seams(other).last("a. ") == 1
        change(other)
        assert (Seams(other).last("a. "), Seams(other).first("a. ")) == (0, 3)

    def test_other_families_have_none(self, xlmr_folder: Path, roberta_folder: Path, minilm_path: Path) -> None:
        for folder in (xlmr_folder, roberta_folder, minilm_path):
            assert Seams(load_tokenizer(folder).tokenizer).last("a. ") == 0


class TestAround:
    @pytest.mark.slow
    @settings(max_examples=300)
    @given(before=TEXT, after=TEXT, inside=st.lists(TEXT, max_size=4), others=st.lists(TEXT, max_size=3))
    def test_any_texts(
        self, before: str, after: str, inside: list[str], others: list[str], qwen: LoadedTokenizer, seams: Seams
    ) -> None:
        listed = [before + text + after for text in inside] + others + [before, after, before + "x", "x" + after]
        # They have what is tokenised once, and go on otherwise than the text that the seam was found in.
        listed += [before[: seams.last(before)] + "ing", "ing" + after[seams.first(after) :]]
        around = Around(qwen.ids, seams, before, after)
        for some in (listed, listed[::-1]):
            ids = around.ids(some)
            assert prompts(ids) == qwen.ids(some)
            assert [ids.length(i) for i in range(len(some))] == list(map(len, qwen.ids(some)))
            shared = ids.common()
            assert {tuple(ids.prompt(i)[:shared]) for i in range(len(some))} == {tuple(ids.prompt(0)[:shared])}
            assert shared == longest_shared(qwen.ids(some))
            assert [ids.prompt(0)[:shared] + own for own in ids.behind(shared)] == qwen.ids(some)

    def test_without_seams(self, minilm_path: Path) -> None:
        tokenizer = load_tokenizer(minilm_path)
        around = Around(tokenizer.ids, Seams(tokenizer.tokenizer), "the same words. ", " at the end.")
        listed = [f"the same words. {text} at the end." for text in ("one", "two three", "")]
        ids = around.ids(listed)
        assert prompts(ids) == tokenizer.ids(listed)
        assert max(map(len, ids.rest)) <= 6

    def test_what_is_shared_is_tokenised_once(self, qwen: LoadedTokenizer, seams: Seams) -> None:
        read: list[int] = []

        def encode(some: Sequence[str]) -> list[list[int]]:
            read.extend(map(len, some))
            return qwen.ids(some)

        long = texts.words(2000, 1)
        ids = Around(encode, seams, f"{long} <Document>: ", f"\nNow. {long}").ids(
            f"{long} <Document>: {i}\nNow. {long}" for i in range(500)
        )
        assert sum(read) < 3 * len(long)
        assert len({id(token) for own in ids.rest for token in own[-1000:]}) <= 1000


def longest_shared(listed: list[list[int]]) -> int:
    """One token at a time."""
    shared = 0
    while len(listed) > 1 and all(len(ids) > shared + 1 for ids in listed):
        if len({ids[shared] for ids in listed}) > 1:
            break
        shared += 1
    return shared


@settings(max_examples=100)
@given(query=TEXT, documents=st.lists(TEXT, min_size=1, max_size=5), limit=st.integers(120, 150))
def test_prompts_are_the_authors(
    query: str, documents: list[str], limit: int, qwen3: LoadedPrompts, qwen_reference: Any
) -> None:
    spelled = [text.replace("<", "‹").replace("|", "¦") for text in (query, *documents)]
    assert whole(qwen3.build(request(spelled[0], spelled[1:]))) == [
        authors.qwen3_ids(qwen_reference, spelled[0], document) for document in spelled[1:]
    ]
    long = [document * 9 for document in spelled[1:]]
    group = qwen3.build(request("q", long, max_tokens=limit))
    assert whole(group) == [authors.qwen3_ids(qwen_reference, "q", document, max_length=limit) for document in long]


class TestVerbatim:
    """Requests with labels: the prompts are those that the client would have put together."""

    @pytest.fixture
    def verbatim(self, qwen: LoadedTokenizer) -> VerbatimPrompts:
        return VerbatimPrompts(qwen, 100_000, 1_000_000, 151_936, set())

    @pytest.mark.slow
    @settings(max_examples=300)
    @given(shared=TEXT, items=st.lists(TEXT, max_size=4), last=st.booleans())
    def test_texts(self, shared: str, items: list[str], last: bool, qwen: LoadedTokenizer) -> None:
        verbatim = VerbatimPrompts(qwen, 100_000, 1_000_000, 151_936, set())
        joined = tuple(item + shared if last else shared + item for item in items)
        labels = Labels((1, 2))
        if not all(joined):
            return
        apart = verbatim.build(label_request(tuple(items), labels, shared, last))
        assert apart == verbatim.build(label_request(joined, labels))

    @pytest.mark.parametrize("last", [False, True])
    def test_surrogates_that_meet(self, last: bool, verbatim: VerbatimPrompts) -> None:
        shared, item = ("\ude00 a.", "b. \ud83d") if last else ("a. \ud83d", "\ude00 b.")
        joined = item + shared if last else shared + item
        assert "😀" in joined.encode("utf-16", "surrogatepass").decode("utf-16")
        apart = verbatim.build(label_request((item, item), Labels((1,)), shared, last))
        assert apart == verbatim.build(label_request((joined, joined), Labels((1,))))

    @pytest.mark.parametrize("last", [False, True])
    def test_ids(self, last: bool, verbatim: VerbatimPrompts) -> None:
        items, shared = ((1, 2), (1, 3, 4), (1,)), (7, 8, 9)
        joined = tuple(item + shared if last else shared + item for item in items)
        apart = verbatim.build(label_request(items, Labels((1,)), shared, last))
        assert apart == verbatim.build(label_request(joined, Labels((1,))))
        assert whole(apart) == list(map(list, joined))
        mixed = verbatim.build(label_request(("a b", (1, 2)), Labels((1,))))
        assert whole(mixed) == [[64, 293], [1, 2]]

    @pytest.mark.parametrize(
        ("asked", "field"),
        [
            (label_request(("a", (1,)), Labels((1,)), "q"), "documents[1]"),
            (label_request(((1,), "a"), Labels((1,)), (1,)), "documents[1]"),
            (label_request(((1,),), Labels((1,)), (151_936,)), "query"),
            (label_request(((1,), (-1,)), Labels((1,)), (1,)), "documents[1]"),
            (label_request(("",), Labels((1,)), ""), "documents[0]"),
            (label_request(("a", "a " * 60_000), Labels((1,)), "b " * 60_000), "documents[1]"),
        ],
    )
    def test_refusals(self, asked: RerankRequest, field: str, verbatim: VerbatimPrompts) -> None:
        with pytest.raises(InvalidRequest) as caught:
            verbatim.build(asked)
        assert caught.value.field == field


MANY = """
import asyncio, gc, resource, sys
from rerankd import Reranker
from rerankd.core import Labels, RerankRequest, text_content
from tests import texts
from tests.labels import label_request

query, documents = texts.words(30_000, 1), [texts.words(1, i) for i in range(2000)]
asked = RerankRequest(text_content(query), tuple(map(text_content, documents)))
with Reranker(sys.argv[1], device="cpu", dtype="float32", max_model_len=300) as short:
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 500_000_000,) * 2)
    result = short.rerank(query, documents, show_progress=False)
    assert result.query_truncated and result.scored == 2000, result
    scores = {}
    for document in result.documents:
        scores.setdefault(documents[document.index], []).append(document.score)
    # Equal documents of several batches differ in their last digits.
    assert max(max(own) - min(own) for own in scores.values()) < 1e-6
    assert len({round(own[0], 6) for own in scores.values()}) > len(scores) * 0.9, scores
    whole = short._load_prompts(chat_template=None, max_model_len=40960)
    template = "Q: {{ query }}\\nDocument: {{ document }}\\nAnswer:"
    for prompts in (whole, short._load_prompts(chat_template=template, max_model_len=40960)):
        group = prompts.build(asked)
        assert len(group.prefix) > 35_000 and max(map(len, group.suffixes)) < 20, len(group.prefix)
        assert not group.query_truncated
    verbatim = whole.verbatim(151_936, False)
    labelled = verbatim.build(label_request(tuple(documents), Labels((1, 2)), query + "\\n"))
    assert len(labelled.prefix) > 35_000 and max(map(len, labelled.suffixes)) < 300
    few = verbatim.build(label_request(tuple(documents[:500]), Labels((1, 2)), query, shared_last=True))
    assert min(map(len, few.suffixes)) > 35_000
print("done")
"""


def test_a_long_query_and_many_documents_take_little_memory(qwen3_checkpoint: Path) -> None:
    """190 KB that would be 380 MB of text and gigabytes of ids, were the query written out for each document."""
    ran = subprocess.run(
        [sys.executable, "-c", MANY, str(qwen3_checkpoint)], capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.stdout.strip() == "done", ran.stderr[-3000:]
