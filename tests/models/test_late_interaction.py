"""Late interaction scores as its authors' rule and sentence-transformers 6 do."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder
from transformers import AutoModel, AutoTokenizer

from rerankd import Reranker, Truncation
from rerankd.core import ModelError
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.models.checkpoint.files import needed_files
from rerankd.options import LoadOptions
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.late_checkpoints import multi_vector, pylate, stanford
from tests.references import Pair
from tests.test_scores import PAIRS, largest_difference, spread

SOME = PAIRS[::2]
FIXED = {"strategy": "fixed", "length": 24}
NATIVE: dict[str, Any] = {
    "transformer": {"query_expansion": FIXED, "document_length": 90},
    "mask": {"skiplist_words": list(string.punctuation)},
    "prompts": {"query": "search: ", "document": "text: "},
}
FOLDERS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "stanford": (stanford, {}),
    "stanford, attending": (stanford, {"attend_to_mask_tokens": True, "mask_punctuation": False, "query_maxlen": 20}),
    "pylate": (pylate, {}),
    "pylate that says so, attending": (
        pylate,
        {"model_type": "ColBERT", "attend_to_expansion_tokens": True, "skiplist_words": ...},
    ),
    "pylate without expansion": (pylate, {"do_query_expansion": False, "query_length": 12}),
    "multi-vector": (multi_vector, NATIVE),
    "multi-vector of a floor, mean": (
        multi_vector,
        {
            "transformer": {"query_expansion": {"strategy": "min", "length": 6, "token": "[UNK]"}},
            "mask": {"skiplist_words": ["the", "what", "[CLS]", "[SEP]"], "skiplist_tasks": ["query", "document"]},
            "similarity_fn_name": "meanmaxsim",
        },
    ),
    "multi-vector that is plain": (multi_vector, {"transformer": {"query_length": 10}, "mask": {}}),
}


def reference(folder: Path, pairs: Sequence[Pair] = SOME) -> list[float]:
    """sentence-transformers' scores."""
    model = MultiVectorEncoder(str(folder), device="cpu")
    queries, documents = (list(texts) for texts in zip(*pairs, strict=True))
    embedded, others = model.encode_query(queries), model.encode_document(documents)
    found: list[float] = model.similarity_pairwise(embedded, others).tolist()
    return found


@torch.inference_mode()
def authors_scores(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    """ColBERT's rule by transformers' BERT and numpy, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    linear = tensors["linear.weight"].float().numpy()
    punctuation = {tokenizer.convert_tokens_to_ids(mark) for mark in string.punctuation}

    def vectors(text: str, marker: str, length: int, expanded: bool) -> tuple[Any, list[int]]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: length - 3]
        first = tokenizer.convert_tokens_to_ids(marker)
        ids = [tokenizer.cls_token_id, first, *ids, tokenizer.sep_token_id]
        seen = [1] * len(ids)
        if expanded:
            seen += [0] * (length - len(ids))
            ids += [tokenizer.mask_token_id] * (length - len(ids))
        states = model(torch.tensor([ids]), attention_mask=torch.tensor([seen])).last_hidden_state[0].numpy()
        projected = states @ linear.T
        return projected / numpy.linalg.norm(projected, axis=1, keepdims=True), ids

    scores = []
    for query, document in pairs:
        asked, _ = vectors(query, "[unused0]", 32, True)
        found, ids = vectors(document, "[unused1]", 100, False)
        kept = found[[token not in punctuation for token in ids]]
        scores.append(float((asked @ kept.T).max(1).sum()))
    return scores


def scores_of(folder: Path, dtype: str = "float32", **options: Any) -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype, **options) as reranker:
        return reranker.score(SOME)


def expect(found: Sequence[float], expected: Sequence[float], near: float = 1e-5) -> None:
    """Scores are sums over some 30 tokens: `near` is of one token's part, or of the spread."""
    assert len(SOME) >= 40
    assert spread(expected) >= 0.2
    assert largest_difference(found, expected) <= near * max(1.0, spread(expected))


@pytest.mark.parametrize(("maker", "options"), FOLDERS.values(), ids=list(FOLDERS))
def test_scores_equal_sentence_transformers(
    make_checkpoint: MakeCheckpoint, maker: Callable[..., Path], options: dict[str, Any]
) -> None:
    folder = make_checkpoint(maker, **options)
    expect(scores_of(folder), reference(folder))


def test_scores_follow_the_authors_rule(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(stanford)
    expect(scores_of(folder), authors_scores(folder, SOME))


@pytest.mark.parametrize(("maker", "options"), [(stanford, {"size": "two-heads"}), (pylate, {})])
def test_bfloat16_scores_are_near(
    make_checkpoint: MakeCheckpoint, maker: Callable[..., Path], options: dict[str, Any]
) -> None:
    folder = make_checkpoint(maker, storage=Storage(dtype="bfloat16"), **options)
    expect(scores_of(folder, "bfloat16"), scores_of(folder), 0.01)


def test_inspection(make_checkpoint: MakeCheckpoint) -> None:
    found = inspect(plan(LoadOptions(str(make_checkpoint(stanford)), device="cpu")))
    assert (found.architecture, found.recipe, found.max_tokens) == ("HF_ColBERT", "late-interaction", 100)
    assert found.head == (
        "sum over the query's tokens of the largest product with a document's tokens; queries filled to 32 tokens; "
        "32 tokens that do not count"
    )
    assert found.prompts[0] == "[CLS] [unused0] what is panda? [SEP]" + " [MASK]" * 25
    assert found.prompts[1] == "[CLS] [unused1] the giant panda is a bear. [SEP]"
    assert found.not_understood == ()
    found = inspect(plan(LoadOptions(str(make_checkpoint(pylate)), device="cpu")))
    assert (found.recipe, found.not_understood) == ("late-interaction", ())
    found = inspect(plan(LoadOptions(str(make_checkpoint(multi_vector, **NATIVE)), device="cpu")))
    assert (found.recipe, found.other_files, found.not_understood) == ("late-interaction", ("source/",), ())


def test_the_query_is_read_once_and_cuts_are_told(make_checkpoint: MakeCheckpoint) -> None:
    long = "word " * 120
    with Reranker(make_checkpoint(stanford), device="cpu") as reranker:
        result = reranker.rerank("what is panda?", ["a bear", "another bear", long])
        assert result.computed_tokens == 32 + 5 + 5 + 100
        assert (result.truncated, result.query_truncated) == ((2,), False)
        assert reranker.rerank(long, ["a bear"]).query_truncated
        with pytest.raises(ValueError, match="query"):
            reranker.rerank(long, ["a bear"], truncation=Truncation(allowed=False))
        whole, special = (reranker.rerank("what is panda?", [text]) for text in ("a [MASK] bear", "a [ MASK ] bear"))
    assert whole.documents[0].score == pytest.approx(special.documents[0].score, abs=0.2)
    with Reranker(make_checkpoint(stanford), device="cpu", max_model_len=130) as reranker:
        assert reranker.rerank("what is panda?", [long]).truncated == ()


def test_a_hubs_files_hold_the_settings() -> None:
    files = ["config.json", "artifact.metadata", "model.safetensors", "colbert_linear", "1_Dense/model.safetensors"]
    assert set(needed_files(files)) == set(files) - {"colbert_linear"}


ODD: list[tuple[Any, str, dict[str, Any], str]] = [
    (stanford, "artifact.metadata", {"query_maxlen": 0}, "query_maxlen"),
    (stanford, "artifact.metadata", {"doc_token_id": 3}, "doc_token_id"),
    (pylate, "config_sentence_transformers.json", {"skiplist_words": "."}, "skiplist_words"),
    (pylate, "config_sentence_transformers.json", {"similarity_fn_name": "xtr"}, "similarity_fn_name"),
    (pylate, "config_sentence_transformers.json", {"query_length": 40}, "as far"),
    (pylate, "1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "module_input_name"),
    (multi_vector, "sentence_bert_config.json", {"query_expansion": {"strategy": "all"}}, "strategy"),
    (multi_vector, "sentence_bert_config.json", {"query_expansion": {"strategy": "min"}}, "length"),
    (multi_vector, "2_MultiVectorMask/config.json", {"keep_only_token_ids": [3]}, "keep_only_token_ids"),
]


@pytest.mark.parametrize(("maker", "name", "entries", "said"), ODD)
def test_odd_settings_are_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, maker: Any, name: str, entries: dict[str, Any], said: str
) -> None:
    options = NATIVE if maker is multi_vector else {}
    folder = Path(shutil.copytree(make_checkpoint(maker, **options), tmp_path / "model"))
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(ModelError, match=said):
        Reranker(folder, device="cpu")


def test_other_modules_are_refused_by_name(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(multi_vector, **NATIVE), tmp_path / "model"))
    path = folder / "modules.json"
    kind = "sentence_transformers.multi_vector_encoder.modules.token_pooling.HierarchicalTokenPooling"
    path.write_text(json.dumps([*json.loads(path.read_text()), {"idx": 9, "name": "9", "path": "9_P", "type": kind}]))
    with pytest.raises(ModelError, match="HierarchicalTokenPooling; for late interaction, only Transformer"):
        Reranker(folder, device="cpu")
