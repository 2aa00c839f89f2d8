"""Settings of sentence-transformers' folders, in the newer and the older places: what sentence-transformers makes of
them, so do we."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import CrossEncoder

from rerankd import Reranker
from rerankd.core import ModelError
from tests.models.test_modules import edit, saved
from tests.texts import DOCUMENTS, QUERIES

PAIRS = [(query, document) for query in QUERIES[:12:3] for document in DOCUMENTS[-12:]]
IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
Change = Callable[[Path], object]


def config(**entries: Any) -> Change:
    return lambda folder: edit(folder / "config.json", **entries)


def beside(**entries: Any) -> Change:
    return lambda folder: edit(folder / "config_sentence_transformers.json", **entries)


def transformer(**entries: Any) -> Change:
    return lambda folder: edit(folder / "sentence_bert_config.json", **entries)


def tokenizer(**entries: Any) -> Change:
    return lambda folder: edit(folder / "tokenizer_config.json", **entries)


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def older(folder: Path) -> None:
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")


CASES: dict[str, tuple[Change, ...]] = {
    "nothing": (),
    "activation beside": (beside(activation_fn=IDENTITY),),
    "activation beside comes first": (
        beside(activation_fn=IDENTITY),
        config(sentence_transformers={"activation_fn": SIGMOID}),
    ),
    "no activation beside": (
        beside(activation_fn=None),
        config(sentence_transformers={"activation_fn": IDENTITY}),
    ),
    "the old place": (beside(activation_fn=None), config(sbert_ce_default_activation_function=IDENTITY)),
    "the newer place before the old one": (
        beside(activation_fn=None),
        config(sentence_transformers={"activation_fn": SIGMOID}, sbert_ce_default_activation_function=IDENTITY),
    ),
    "the newer place of null before the old one": (
        beside(activation_fn=None),
        config(sentence_transformers={"activation_fn": None}, sbert_ce_default_activation_function=IDENTITY),
    ),
    "the newer place without an activation": (
        beside(activation_fn=None),
        config(sentence_transformers={"version": "4"}, sbert_ce_default_activation_function=IDENTITY),
    ),
    "no modules": (beside(activation_fn=IDENTITY), without("modules.json")),
    "no modules, and the old place": (
        beside(activation_fn=SIGMOID),
        config(sbert_ce_default_activation_function=IDENTITY),
        without("modules.json"),
    ),
    "another kind": (
        beside(activation_fn=IDENTITY, model_type="SentenceTransformer", prompts={"a": "b"}, default_prompt_name="a"),
        transformer(max_seq_length=40),
    ),
    "a default prompt": (beside(prompts={"a": "find what is said of: "}, default_prompt_name="a"),),
    "an empty default prompt": (beside(prompts={"a": ""}, default_prompt_name="a"),),
    "prompts without a default": (beside(prompts={"query": "query: "}),),
    "a default prompt, and a limit": (
        beside(prompts={"a": "find what is said of: "}, default_prompt_name="a"),
        transformer(max_seq_length=30),
    ),
    "a limit": (transformer(max_seq_length=40),),
    "a limit in an older file": (transformer(max_seq_length=40), older),
    "a limit above the tokenizer's": (transformer(max_seq_length=200), tokenizer(model_max_length=40)),
    "a limit among the tokenizer's arguments": (
        transformer(max_seq_length=100, processor_kwargs={"model_max_length": 40}),
    ),
    "a limit by the older name": (transformer(tokenizer_args={"model_max_length": 40}),),
    "a limit of the call": (transformer(max_seq_length=100, processing_kwargs={"text": {"max_length": 40}}),),
    "a limit without modules": (transformer(max_seq_length=40), without("modules.json")),
    "lower case": (transformer(do_lower_case=True),),
}


@pytest.fixture(scope="module")
def folder(bert_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(CrossEncoder(str(bert_checkpoint), device="cpu"), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[float]:
    return reference(folder)


def reference(folder: Path) -> list[float]:
    model = CrossEncoder(str(folder), device="cpu")
    return [float(model.predict([pair], batch_size=1, show_progress_bar=False)[0]) for pair in PAIRS]


SAME = {"nothing", "no modules", "an empty default prompt", "prompts without a default", "another kind"}
SAME |= {"a limit without modules", "the newer place before the old one", "lower case"}
SAME |= {"the newer place of null before the old one"}
"""Settings that change no score."""


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_sentence_transformers(folder: Path, tmp_path: Path, plain: list[float], case: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    for change in CASES[case]:
        change(copy)
    expected = reference(copy)
    assert (expected == pytest.approx(plain, abs=1e-4)) == (case in SAME)
    with Reranker(copy, device="cpu", dtype="float32") as reranker:
        assert reranker.score(PAIRS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (beside(prompts=["a"]), "prompts"),
        (beside(prompts={"a": 1}), "prompts"),
        (beside(default_prompt_name="x"), "default_prompt_name"),
        (beside(default_prompt_name=3), "default_prompt_name"),
        (beside(activation_fn="torch.nn.modules.activation.Tanh"), "Tanh"),
        (transformer(max_seq_length="40"), "max_seq_length"),
        (transformer(max_seq_length=0), "max_seq_length"),
        (transformer(processing_kwargs=[]), "processing_kwargs"),
        (transformer(processing_kwargs={"text": 3}), "text"),
        (transformer(processing_kwargs={"text": {"max_length": -1}}), "max_length"),
        (transformer(processor_kwargs="x"), "processor_kwargs"),
    ],
)
def test_settings_that_cannot_be_read(folder: Path, tmp_path: Path, change: Change, said: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    change(copy)
    with pytest.raises(ModelError) as raised:
        Reranker(copy, device="cpu", dtype="float32")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_prompt_is_the_beginning_of_the_query(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    beside(prompts={"a": "find: "}, default_prompt_name="a")(copy)
    with Reranker(copy, device="cpu") as prompted, Reranker(folder, device="cpu") as plain:
        result, written = prompted.rerank("what?", ["a b", "c"]), plain.rerank("find: what?", ["a b", "c"])
    assert [(one.index, one.prompt_tokens) for one in result.documents] == [
        (one.index, one.prompt_tokens) for one in written.documents
    ]
    assert json.loads((copy / "config_sentence_transformers.json").read_text())["default_prompt_name"] == "a"
