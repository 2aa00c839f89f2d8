"""Tokenizers as checkpoints have them, by themselves, and what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from rerankd.core import InvalidRequest, PromptBuilder, PromptGroup, RerankRequest, Truncation, text_content
from rerankd.models.recipes.qwen3 import QWEN3_RERANKER, QWEN3_VL_RERANKER
from rerankd.prompts import LoadedPrompts, load_prompts
from tests import checkpoints, vocabularies


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    checkpoints.write_qwen_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    return folder


@pytest.fixture(scope="session")
def qwen_reference(qwen_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(qwen_folder)


@pytest.fixture(scope="session")
def qwen3(qwen_folder: Path) -> LoadedPrompts:
    return load_prompts(qwen_folder, recipe=QWEN3_RERANKER, positions=40960)


@pytest.fixture(scope="session")
def qwen3_vl(qwen_folder: Path) -> LoadedPrompts:
    return load_prompts(qwen_folder, recipe=QWEN3_VL_RERANKER, positions=262144)


@pytest.fixture(scope="session")
def xlmr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xlmr")
    checkpoints.write_roberta_tokenizer(folder, vocabularies.xlm_roberta(), "XLMRobertaTokenizer", 514)
    (folder / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    return folder


@pytest.fixture(scope="session")
def roberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roberta")
    checkpoints.write_roberta_tokenizer(folder, vocabularies.roberta(), "RobertaTokenizer", 514)
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    return folder


def request(query: str, documents: list[str], instruction: str | None = None, **limits: Any) -> RerankRequest:
    """A request of texts; `limits` are the fields of `Truncation`."""
    return RerankRequest(
        text_content(query),
        tuple(map(text_content, documents)),
        instruction,
        truncation=Truncation(**limits),
    )


def whole(group: PromptGroup) -> list[list[int]]:
    """Every document's whole prompt."""
    return [group.prefix.token_ids + suffix.token_ids for suffix in group.suffixes]


def refusal(prompts: LoadedPrompts | PromptBuilder, asked: RerankRequest) -> InvalidRequest:
    """The error that a request gets."""
    with pytest.raises(InvalidRequest) as caught:
        prompts.build(asked)
    return caught.value
