"""Texts become the same tokens however many are read together."""

from __future__ import annotations

from pathlib import Path

from rerankd.prompts import LoadedPrompts, load_prompts
from rerankd.prompts.tokenizer import FEW_CHARACTERS
from tests.texts import DOCUMENTS


def test_few_texts_and_many_become_the_same_tokens(qwen3: LoadedPrompts, xlmr_folder: Path, minilm_path: Path) -> None:
    cross_encoders = [load_prompts(path, family="cross-encoder", positions=512) for path in (xlmr_folder, minilm_path)]
    texts = [*DOCUMENTS, "a </s> b", "[SEP] and <|im_end|>", " two  spaces ", "", "é\u0301 ＜"]
    many = texts * (FEW_CHARACTERS // len("".join(texts)) + 1)
    assert max(map(len, texts)) <= FEW_CHARACTERS < len("".join(many))
    for loaded in (qwen3, *cross_encoders):
        ids = loaded.tokenizer.ids(many)
        assert ids == [loaded.tokenizer.ids([text])[0] for text in many]
        assert len(set(map(tuple, ids))) == len(set(texts))
