"""Texts become the same tokens however many are read together."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerankd import work
from rerankd.core import EngineClosed, InvalidRequest
from rerankd.limits import RequestLimits
from rerankd.models.recipes.encoders import CROSS_ENCODER
from rerankd.prompts import LoadedPrompts, load_prompts, tokenizer
from tests.texts import DOCUMENTS


def test_few_texts_and_many_become_the_same_tokens(qwen3: LoadedPrompts, xlmr_folder: Path, minilm_path: Path) -> None:
    cross_encoders = [load_prompts(path, recipe=CROSS_ENCODER, positions=512) for path in (xlmr_folder, minilm_path)]
    texts = [*DOCUMENTS, "a </s> b", "[SEP] and <|im_end|>", " two  spaces ", "", "é\u0301 ＜"]
    many = texts * 20
    for loaded in (qwen3, *cross_encoders):
        ids = loaded.tokenizer.ids(many)
        assert ids == [loaded.tokenizer.ids([text])[0] for text in many]
        assert len(set(map(tuple, ids))) == len(set(texts))


def test_reading_ends_between_two_slices_when_nobody_waits_for_it(
    qwen3: LoadedPrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def look() -> None:
        looks.append(len(looks))
        if len(looks) == 3:
            raise EngineClosed("Nobody waits.")

    monkeypatch.setattr(work, "check", look)
    monkeypatch.setattr(tokenizer, "SLICE_CHARACTERS", 8192)
    with pytest.raises(EngineClosed):
        qwen3.tokenizer.ids(["a word " * 4096] * 100)
    assert len(looks) == 3


def test_reading_ends_at_far_more_tokens_than_a_request_may_have(qwen3: LoadedPrompts) -> None:
    texts = ["a word " * 100] * 10
    tokens = sum(map(len, qwen3.tokenizer.ids(texts)))
    with work.bounded(RequestLimits(tokens=tokens // work.SPARE)):
        qwen3.tokenizer.ids(texts)
    with work.bounded(RequestLimits(tokens=tokens // work.SPARE - 1)), pytest.raises(InvalidRequest, match="tokens"):
        qwen3.tokenizer.ids(texts)
