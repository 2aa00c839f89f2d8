"""Bi-encoders score as sentence-transformers does: pooling, modules behind, prompts, similarity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from rerankd import InvalidRequest, Reranker
from rerankd.core import ModelError
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.models.recipes.encoders import INSTRUCTED
from rerankd.options import LoadOptions
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.embedding_checkpoints import BACKBONES, QWEN3_EMBEDDING_PROMPT, embedder
from tests.prompts.conftest import request
from tests.test_scores import PAIRS, largest_difference, spread

SOME = PAIRS[::2]
QWEN3: dict[str, Any] = {
    "backbone": "qwen3", "pooling": "lasttoken", "prompts": {"query": QWEN3_EMBEDDING_PROMPT, "document": ""},
}  # fmt: skip
CHAINS: dict[str, dict[str, Any]] = {
    "qwen3-embedding": QWEN3,
    "max": {"pooling": "max"},
    "weighted mean": {"pooling": "weightedmean"},
    "mean by the root of the length, dot": {
        "pooling": "mean_sqrt_len_tokens",
        "backbone": "roberta", "normalize": False, "similarity_fn_name": "dot",
    },
    "three at once": {"pooling": ("mean", "cls", "lasttoken"), "similarity_fn_name": "dot"},
    "first and last": {"pooling": ("lasttoken", "cls"), "backbone": "modernbert"},
    "dense": {"dense": [{"out_features": 48}, {"out_features": 32, "bias": False, "activation_function": None}]},
    "dense with residuals": {
        "dense": [{"out_features": 64, "use_residual": True}, {"out_features": 32, "use_residual": True}],
    },
    "first values": {"truncate_dim": 24},
    "e5's prompts": {
        "prompts": {"query": "query: ", "document": "passage: "}, "pooling": "mean",
    },
}  # fmt: skip


def reference(folder: Path, **prompts: str) -> list[float]:
    """Scores by sentence-transformers; `query`, `document`: prompts in place of the folder's."""
    model = SentenceTransformer(str(folder), device="cpu")
    queries, documents = (list(texts) for texts in zip(*SOME, strict=True))
    embedded = model.encode_query(queries, prompt=prompts.get("query"), convert_to_tensor=True)
    others = model.encode_document(documents, prompt=prompts.get("document"), convert_to_tensor=True)
    found: list[float] = model.similarity_pairwise(embedded, others).tolist()
    return found


def scores_of(folder: Path, dtype: str = "float32", instruction: str | None = None, **options: Any) -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype, **options) as reranker:
        return reranker.score(SOME, instruction)


def expect(found: Sequence[float], expected: Sequence[float], near: float = 1e-5) -> None:
    assert len(SOME) >= 40
    assert spread(expected) >= 0.2
    assert largest_difference(found, expected) <= near * max(1.0, spread(expected))


@pytest.mark.parametrize("options", CHAINS.values(), ids=list(CHAINS))
def test_chains(make_checkpoint: MakeCheckpoint, options: dict[str, Any]) -> None:
    folder = make_checkpoint(embedder, **options)
    expect(scores_of(folder), reference(folder))


@pytest.mark.parametrize("backbone", sorted(set(BACKBONES) - {"qwen3", "roberta", "bert", "modernbert"}))
def test_backbones(make_checkpoint: MakeCheckpoint, backbone: str) -> None:
    folder = make_checkpoint(embedder, backbone=backbone)
    expect(scores_of(folder), reference(folder))


@pytest.mark.parametrize("options", [QWEN3, CHAINS["dense"]], ids=["qwen3", "dense"])
def test_bfloat16_scores_are_near(make_checkpoint: MakeCheckpoint, options: dict[str, Any]) -> None:
    folder = make_checkpoint(embedder, storage=Storage(dtype="bfloat16"), **options)
    expect(scores_of(folder, "bfloat16"), scores_of(folder), 0.01)


NAMED = {
    "e5-base-v2": ("e5", "query: ", "passage: "),
    "multilingual-e5-large-instruct": ("e5-instruct", INSTRUCTED, ""),
    "bge-small-en-v1.5": ("bge-en", "Represent this sentence for searching relevant passages: ", ""),
    "bge-large-zh": ("bge-zh", "为这个句子生成表示以用于检索相关文章：", ""),
    "bge-m3": ("bi-encoder", "", ""),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_model_without_prompts_has_its_authors(make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str) -> None:
    recipe, query, document = NAMED[name]
    folder = Path(shutil.copytree(make_checkpoint(embedder), tmp_path / name))
    planned, plain = (plan(LoadOptions(str(folder), device="cpu", recipe=asked)) for asked in (None, "bi-encoder"))
    assert planned.choice.recipe.name == recipe
    assert planned.prompts.build(request("a", ["b"])) == plain.prompts.build(request(f"{query}a", [f"{document}b"]))
    if name == "e5-base-v2":
        expect(scores_of(folder), reference(folder, query=query, document=document))
        assert largest_difference(scores_of(folder, recipe="bi-encoder"), reference(folder)) <= 1e-5
        path = folder / "config_sentence_transformers.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": {"query": "ask: "}}))
        assert plan(LoadOptions(str(folder), device="cpu")).choice.recipe.name == "bi-encoder"


def test_an_instruction_takes_the_place_of_the_prompts_own(make_checkpoint: MakeCheckpoint) -> None:
    folder, instruction = make_checkpoint(embedder, **QWEN3), "Find what contradicts the query: strictly"
    expected = reference(folder, query=f"Instruct: {instruction}\nQuery:")
    assert largest_difference(expected, reference(folder)) > 1e-3
    assert largest_difference(scores_of(folder, instruction=instruction), expected) <= 1e-5
    assert largest_difference(scores_of(folder, default_instruction=instruction), expected) <= 1e-5
    planned = plan(LoadOptions(str(folder), device="cpu"))
    assert planned.prompts.default_instruction is not None
    assert planned.prompts.default_instruction in QWEN3_EMBEDDING_PROMPT
    plain = make_checkpoint(embedder)
    with pytest.raises(ModelError, match="default instruction"):
        plan(LoadOptions(str(plain), device="cpu", default_instruction=instruction))
    with Reranker(plain, device="cpu") as reranker:
        assert reranker.rerank("q", ["d"], instruction).ignored == ("instruction",)


def test_inspection(make_checkpoint: MakeCheckpoint) -> None:
    found = inspect(plan(LoadOptions(str(make_checkpoint(embedder, **QWEN3)), device="cpu")))
    assert (found.architecture, found.recipe) == ("Qwen3Model", "bi-encoder")
    assert found.head == "cosine of embeddings by lasttoken pooling"
    assert found.prompts[0] == f"{QWEN3_EMBEDDING_PROMPT}what is panda?</s>"
    found = inspect(plan(LoadOptions(str(make_checkpoint(embedder, **CHAINS["dense"])), device="cpu")))
    assert found.head == "cosine of embeddings by mean pooling, then Dense, Dense"
    assert (found.other_files, found.not_understood) == (("source/",), ())
    found = inspect(plan(LoadOptions(str(make_checkpoint(embedder, **CHAINS["three at once"])), device="cpu")))
    assert found.head == "dot product of embeddings by mean and cls and lasttoken pooling"
    found = inspect(plan(LoadOptions(str(make_checkpoint(embedder, truncate_dim=24)), device="cpu")))
    assert found.head == "cosine of embeddings by mean pooling, of 24 values"


def test_the_published_names_of_qwen3_embedding(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(embedder, **QWEN3), tmp_path / "Qwen3-Embedding-0.6B"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["Qwen3ForCausalLM"]}))
    assert largest_difference(scores_of(folder), reference(folder)) <= 1e-5


def test_a_text_without_any_token_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(embedder, **QWEN3), tmp_path / "model"))
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    path.write_text(json.dumps(tokenizer | {"post_processor": None}))
    with Reranker(folder, device="cpu") as reranker:
        with pytest.raises(InvalidRequest, match=r"documents\[1\].*is empty"):
            reranker.rerank("q", ["d", ""])
        kept = reranker.rerank("q", ["d", ""], on_error="skip")
        assert [document.index for document in kept] == [0]
        assert list(kept.failed) == [1]


@pytest.mark.parametrize(
    ("name", "entries", "said"),
    [
        ("config_sentence_transformers.json", {"similarity_fn_name": "manhattan"}, "cosine and dot"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pools by"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "pools by"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
        ("2_Dense/config.json", {"module_output_name": "scores"}, "stands behind"),
        ("2_Dense/config.json", {"module_output_name": "other"}, "module_output_name"),
        ("2_Dense/config.json", {"use_residual": True}, "residual.weight"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Mish"}, "activation_function"),
    ],
)
def test_what_is_not_computed_is_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str, entries: dict[str, Any], said: str
) -> None:
    folder = Path(shutil.copytree(make_checkpoint(embedder, **CHAINS["dense"]), tmp_path / "model"))
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(ModelError, match=said):
        Reranker(folder, device="cpu")


def test_pooling_of_texts_of_one_token() -> None:
    from rerankd.core import Span
    from rerankd.models.pooling import Pooling

    states, spans = torch.arange(8.0).reshape(4, 2), (Span(0, 1), Span(1, 4))
    pooling = Pooling(("cls", "lasttoken"))
    assert pooling.rows(spans) == [0, 1, 3]
    found = pooling(states[torch.tensor([0, 1, 3])], spans)
    assert found.tolist() == [[0, 1, 0, 1], [2, 3, 6, 7]]
