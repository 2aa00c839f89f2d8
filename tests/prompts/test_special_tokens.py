"""No text becomes a special token, whatever it holds."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from rerankd.models.recipes.encoders import BI_ENCODER, CROSS_ENCODER
from rerankd.prompts import LoadedPrompts, load_prompts
from rerankd.prompts.added_tokens import AddedTokens, pattern_of
from tests import vocabularies
from tests.prompts.conftest import request, whole

QWEN = [*vocabularies.QWEN_SPECIAL, *vocabularies.QWEN_ADDED]
ENCODERS = ["<s>", "</s>", "<pad>", "<mask>", "<unk>", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"]
WIDE = ["＜/s＞", "＜|im_end|＞", "\u212a", "e\u0301"]


def texts_with(tokens: list[str]) -> st.SearchStrategy[str]:
    """Whole special tokens, their pieces, and anything else, in any order."""
    pieces = sorted({token[i:] for token in tokens for i in range(1, 4)} | {token[:-1] for token in tokens})
    part = st.sampled_from(tokens) | st.sampled_from(pieces) | st.sampled_from(WIDE) | st.text(max_size=4)
    return st.lists(part, max_size=12).map("".join)


def special(loaded: LoadedPrompts, ids: list[int]) -> Counter[int]:
    added = loaded.tokenizer.tokenizer.get_added_tokens_decoder()
    return Counter(token for token in ids if token in added and added[token].content not in ("<unk>", "[UNK]"))


def check(loaded: LoadedPrompts, query: str, document: str, instruction: str | None = None) -> None:
    group = loaded.build(request(query, [document], instruction))
    plain = loaded.build(request("q", ["d"], instruction and "i"))
    assert special(loaded, whole(group)[0]) == special(loaded, whole(plain)[0])


@pytest.mark.parametrize("token", QWEN)
def test_each_token_of_qwen(token: str, qwen3: LoadedPrompts, qwen3_vl: LoadedPrompts) -> None:
    for loaded in (qwen3, qwen3_vl):
        check(loaded, f"a{token}b", token, f"{token} c")
        prompt = whole(loaded.build(request("q", [f"a{token}b"])))[0]
        written = loaded.tokenizer.tokenizer.decode(prompt, skip_special_tokens=False)
        assert f"a{token[0]} {token[1:]}b" in written


@pytest.mark.slow
@settings(max_examples=150)
@given(query=texts_with(QWEN), document=texts_with(QWEN), instruction=st.none() | texts_with(QWEN))
@example(query="<|im_<|im_end|>end|>", document="<<think>think>", instruction="<|im_end|")
def test_any_text_of_qwen(
    query: str, document: str, instruction: str | None, qwen3: LoadedPrompts, qwen3_vl: LoadedPrompts
) -> None:
    for loaded in (qwen3, qwen3_vl):
        check(loaded, query, document, instruction)


@settings(max_examples=100)
@given(text=texts_with(QWEN))
def test_escaping_adds_spaces_and_only_where_needed(text: str, qwen3: LoadedPrompts) -> None:
    added = AddedTokens(qwen3.tokenizer.tokenizer)
    escaped = added.escape(text)
    assert escaped.replace(" ", "") == text.replace(" ", "")
    assert (escaped == text) == (not any(token in text for token in QWEN))
    assert added.escape(escaped) == escaped


@pytest.fixture(scope="module")
def encoders(xlmr_folder: Path, roberta_folder: Path, minilm_path: Path) -> list[LoadedPrompts]:
    return [
        load_prompts(xlmr_folder, recipe=CROSS_ENCODER, positions=512),
        load_prompts(roberta_folder, recipe=CROSS_ENCODER, positions=512),
        load_prompts(minilm_path, recipe=CROSS_ENCODER, positions=512),
        load_prompts(minilm_path, recipe=BI_ENCODER, positions=512),
    ]


@pytest.mark.slow
@settings(max_examples=150)
@given(query=texts_with(ENCODERS), document=texts_with(ENCODERS))
@example(query="a</s>b", document="</s></s>")
@example(query=" <mask> ", document="<s>")
def test_any_text_of_encoders(query: str, document: str, encoders: list[LoadedPrompts]) -> None:
    for loaded in encoders:
        check(loaded, query, document)


def test_a_parted_token_keeps_its_characters(encoders: list[LoadedPrompts]) -> None:
    for loaded, token in zip(encoders, ["</s>", "</s>", "[SEP]", "[SEP]"], strict=True):
        ids = loaded.build(request("q", [f"left {token} right"])).suffixes[0].token_ids
        written = loaded.tokenizer.tokenizer.decode(ids).lower().replace(" ", "")
        assert f"left{token.lower()}right" in written


def test_a_token_within_a_token() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens(["<<x>", "<x>", "x>>", "y"])
    escaped = AddedTokens(tokenizer).escape("a <<x>> b")
    assert escaped.replace(" ", "") == "a<<x>>b"
    assert not any(token in escaped for token in ("<<x>", "<x>", "x>>"))
    # A token of one character cannot be parted.
    assert AddedTokens(tokenizer).escape("y") == "y"


def test_tokens_of_white_space_are_not_parted() -> None:
    """A space more would make two of them, and so on without end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens(["  ", "    ", " <x>", "\n\n", "a"])
    added = AddedTokens(tokenizer)
    assert added.escape("a     b") == "a     b"
    assert added.escape("b <x>b") == "b < x>b"
    assert added.escape("b\n\nb") == "b\n \nb"


@given(st.sets(st.text("ab|<>(\n", min_size=1, max_size=5), max_size=12), st.text("ab|<>(\n", max_size=30))
def test_a_pattern_finds_the_longest_of_its_strings(strings: set[str], text: str) -> None:
    longest_first = "|".join(map(re.escape, sorted(strings, key=len, reverse=True))) or r"(?!)"
    assert re.findall(pattern_of(sorted(strings)), text) == re.findall(longest_first, text)


def test_strings_that_begin_alike_are_compared_together() -> None:
    """Else a text of such beginnings is compared with one after the other, while no other thread runs."""
    pattern = pattern_of([f"<|reserved_special_token_{number}|>" for number in range(1000)])
    assert pattern.count("reserved") == 1
    assert re.fullmatch(pattern, "<|reserved_special_token_999|>")


def test_bert_reads_its_special_tokens_as_their_characters(encoders: list[LoadedPrompts]) -> None:
    for loaded in encoders[2:]:
        ids = loaded.build(request("q", ["left [SEP] right"])).suffixes[0].token_ids
        words = [loaded.token_id(word) for word in ("left", "[", "sep", "]", "right", "[SEP]")]
        assert ids[-6:] == words
