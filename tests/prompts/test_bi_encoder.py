"""Bi-encoder texts against sentence-transformers' own preprocessing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput

from rerankd.models.recipes.encoders import BI_ENCODER
from rerankd.prompts import LoadedPrompts, load_prompts
from tests import checkpoints, texts
from tests.conftest import MakeCheckpoint
from tests.prompts.conftest import refusal, request

LONG = [texts.words(900, 1), "x" * 9000, "法国的首都是巴黎。" * 300]


def reference_ids(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[[str], list[int]], Callable[[list[str]], list[list[int]]]]:
    """What sentence-transformers feeds its model in `encode_query` and in `encode_document`."""
    model = SentenceTransformer(str(folder), device="cpu")
    hidden = model[0].model.config.hidden_size
    seen: list[list[int]] = []

    def spy(**inputs: Any) -> Any:
        seen.extend(inputs["input_ids"].tolist())
        return BaseModelOutput(last_hidden_state=torch.ones(*inputs["input_ids"].shape, hidden))

    monkeypatch.setattr(model[0].model, "forward", spy)

    def query(text: str) -> list[int]:
        seen.clear()
        model.encode_query(text)
        return seen[0]

    def documents(given: list[str]) -> list[list[int]]:
        seen.clear()
        for text in given:
            model.encode_document([text])
        return list(seen)

    return query, documents


def check(folder: Path, positions: int, monkeypatch: pytest.MonkeyPatch) -> LoadedPrompts:
    loaded = load_prompts(folder, recipe=BI_ENCODER, positions=positions)
    query, documents = reference_ids(folder, monkeypatch)
    given = [*texts.DOCUMENTS, *LONG, ""]
    expected = documents(given)
    for text in (*texts.QUERIES[:4], LONG[0]):
        group = loaded.build(request(text, given))
        assert group.prefix.token_ids == query(text)
        assert [suffix.token_ids for suffix in group.suffixes] == expected
        assert group.query_truncated == (text == LONG[0])
        assert not group.prefix.token_types
    return loaded


def test_minilm(minilm_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = check(minilm_path, 512, monkeypatch)
    assert loaded.max_tokens == 256
    group = loaded.build(request("q", [texts.words(100, 1), *LONG]))
    assert group.truncated == (False, True, False, True)  # One word of 9,000 letters is one unknown token.


def test_prompts_are_put_before_texts(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(
        checkpoints.xlmr_embedder, prompts={"query": "query: ", "document": "passage: "}, max_seq_length=100
    )
    loaded = check(folder, 1024, monkeypatch)
    assert loaded.max_tokens == 100
    plain = make_checkpoint(checkpoints.xlmr_embedder, max_seq_length=100)
    without = load_prompts(plain, recipe=BI_ENCODER, positions=1024)
    assert loaded.build(request("q", ["d"])) == without.build(request("query: q", ["passage: d"]))


def test_only_the_names_that_sentence_transformers_reaches(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint(checkpoints.xlmr_embedder, prompts={"passage": "passage: ", "s": "summary: "})
    folder = Path(shutil.copytree(source, tmp_path / "copy"))
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"default_prompt_name": "s"}))
    check(folder, 1024, monkeypatch)


def test_lower_casing_is_the_folders_word(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(make_checkpoint(checkpoints.xlmr_embedder), tmp_path / "copy"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": null, "do_lower_case": true}')
    loaded = check(folder, 1024, monkeypatch)
    assert loaded.build(request("WHAT", ["Ünï"])) == loaded.build(request("what", ["ünï"]))
    assert loaded.max_tokens == 1024


def test_limits(minilm_path: Path) -> None:
    loaded = load_prompts(minilm_path, recipe=BI_ENCODER, positions=512)
    long = "word " * 50
    group = loaded.build(request(long, ["one", long], max_tokens=10))
    assert [len(group.prefix), *map(len, group.suffixes)] == [10, 3, 10]
    assert (group.truncated, group.query_truncated) == ((False, True), True)
    group = loaded.build(request(long, ["one", long], max_tokens_per_doc=5, max_tokens_per_query=7))
    assert [len(group.prefix), *map(len, group.suffixes)] == [9, 3, 7]
    assert refusal(loaded, request("q", ["one", long], max_tokens=10, allowed=False)).field == "documents[1]"
    assert refusal(loaded, request(long, ["one"], max_tokens=10, allowed=False)).field == "query"
    assert refusal(loaded, request("q", ["d"], max_tokens=1)).field == "truncation.max_tokens"


def test_a_documents_own_limit_leaves_its_prompt(make_checkpoint: MakeCheckpoint) -> None:
    prompts = {"query": "query: ", "document": "passage: "}
    loaded = load_prompts(
        make_checkpoint(checkpoints.xlmr_embedder, prompts=prompts), recipe=BI_ENCODER, positions=1024
    )
    limited = loaded.build(request("one two", ["one two"], max_tokens_per_doc=1, max_tokens_per_query=1))
    short = loaded.build(request("one", ["one"]))
    assert (limited.prefix, limited.suffixes) == (short.prefix, short.suffixes)
    assert (limited.truncated, limited.query_truncated) == ((True,), True)


def test_a_text_can_lose_its_beginning(minilm_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    loaded = load_prompts(minilm_path, recipe=BI_ENCODER, positions=512, max_model_len=64)
    reference = AutoTokenizer.from_pretrained(minilm_path, truncation_side="left")
    documents = [*texts.DOCUMENTS, *LONG]
    group = loaded.build(request(LONG[0], documents, side="left"))
    expected = [reference(text, truncation=True, max_length=64)["input_ids"] for text in (LONG[0], *documents)]
    assert [group.prefix.token_ids, *(suffix.token_ids for suffix in group.suffixes)] == expected
    assert group.query_truncated
    # The prompt before a text stays.
    prompts = {"query": "query: ", "document": "passage: "}
    prompted = load_prompts(
        make_checkpoint(checkpoints.xlmr_embedder, prompts=prompts), recipe=BI_ENCODER, positions=1024
    )
    long = " ".join(["one"] * 5000)
    limited = prompted.build(request("three two one", [long], max_tokens=20, max_tokens_per_query=1, side="left"))
    short = prompted.build(request("one", [long], max_tokens=20))
    assert (limited.prefix, limited.suffixes) == (short.prefix, short.suffixes)
    assert (limited.truncated, limited.query_truncated) == ((True,), True)
