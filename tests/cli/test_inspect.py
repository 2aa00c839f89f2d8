"""`rerankd inspect`: what it says of every kind of folder, held against what a loaded model does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rerankd import Reranker
from rerankd.cli.main import _rerankd
from rerankd.models.checkpoint.tensors import Checkpoint
from tests import checkpoints
from tests.conftest import MakeCheckpoint
from tests.models.test_modules import edit
from tests.references import QWEN3_INSTRUCTION, QWEN3_PROMPT

QUERY, DOCUMENT = "what is panda?", "The giant panda is a bear."
PROMPT = QWEN3_PROMPT.format(instruction=QWEN3_INSTRUCTION, query=QUERY, document=DOCUMENT)
SENTENCE = "[CLS] what is panda? [SEP] the giant panda is a bear. [SEP]"
SPACED = "[CLS] what is panda ? [SEP] the giant panda is a bear . [SEP]"
TWO_LABELS = "classifier of 2 labels: the share of the second"

KINDS: dict[str, tuple[Callable[..., Path], dict[str, Any], dict[str, Any]]] = {
    "qwen3": (
        checkpoints.qwen3,
        {},
        {
            "recipe": "qwen3-reranker",
            "head": "logit of 'yes' minus logit of 'no'",
            "tokens": {"no": 2152, "yes": 9693},
            "activation": "sigmoid",
            "template": "built in for qwen3-reranker",
            "default_instruction": QWEN3_INSTRUCTION,
            "prompts": [PROMPT],
            "max_tokens": 8192,
            "positions": 40960,
        },
    ),
    "qwen3 of pickled weights": (
        checkpoints.qwen3,
        {"storage": checkpoints.Storage(weights="bin")},
        {"recipe": "qwen3-reranker", "tokens": {"no": 2152, "yes": 9693}},
    ),
    "one row": (
        checkpoints.qwen3,
        {"head": "one-row"},
        {"recipe": "qwen3-reranker", "head": "classifier of 1 label", "tokens": {}, "prompts": [PROMPT]},
    ),
    "two rows": (
        checkpoints.qwen3,
        {"head": "two-rows"},
        {"head": TWO_LABELS, "tokens": {}},
    ),
    "qwen3-vl": (
        checkpoints.qwen3_vl,
        {},
        {"recipe": "qwen3-vl-reranker", "tokens": {"no": 2152, "yes": 9693}, "max_tokens": 10245, "positions": 262144},
    ),
    "bert": (
        checkpoints.bert,
        {},
        {
            "recipe": "cross-encoder",
            "head": "classifier of 1 label",
            "activation": "sigmoid",
            "template": None,
            "default_instruction": None,
            "prompts": [SENTENCE],
            "max_tokens": 512,
        },
    ),
    "bert of two labels": (
        checkpoints.bert,
        {"labels": 2},
        {"head": TWO_LABELS},
    ),
    "bert with a vocab.txt": (checkpoints.bert, {"vocab_txt_only": True}, {"prompts": [SPACED]}),
    "xlmr": (checkpoints.xlmr, {}, {"recipe": "cross-encoder", "architecture": "XLMRobertaForSequenceClassification"}),
    "roberta": (checkpoints.roberta, {}, {"recipe": "cross-encoder", "max_tokens": 1024, "positions": 1024}),
    "embedder": (
        checkpoints.xlmr_embedder,
        {"prompts": {"query": "query: "}, "pooling": "mean", "max_seq_length": 99},
        {"recipe": "bi-encoder", "head": "cosine of embeddings by mean pooling", "max_tokens": 99},
    ),
}


def run(*arguments: str) -> Any:
    return CliRunner().invoke(_rerankd(), ["inspect", *arguments], catch_exceptions=False)


def look(folder: Path, *arguments: str) -> dict[str, Any]:
    done = run(str(folder), "--json", "--device", "cpu", *arguments)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_checkpoint(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    maker, variant, expected = KINDS[kind]
    folder = make_checkpoint(maker, **variant)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "read", None)  # no weight is read
        patch.setattr(Checkpoint, "read_rows", None)
        found = look(folder)
        text = run(str(folder), "--device", "cpu").stdout
    assert found == found | expected
    assert found["not_understood"] == []
    assert (found["model"], found["folder"]) == (str(folder), str(folder))
    assert f"recipe:       {found['recipe']}: {found['why']}\n" in text
    assert f"head:         {found['head']}\n" in text
    assert "".join(f"    {line}\n" for line in found["prompts"][0].split("\n")) in text
    with Reranker(folder, device="cpu") as reranker:
        info = reranker.info
        backend = type(reranker._engine.model.transformer).__module__.split(".")[2]  # type: ignore[attr-defined]
    said = (
        found["architecture"],
        found["max_tokens"],
        found["dtype"],
        found["device"],
        found["backend"].partition(";")[0],
    )
    assert info.backend.split("/")[0] == backend
    assert said == (info.architecture, info.max_model_len, info.dtype, info.device, info.backend)


def test_flags_say_otherwise(qwen3_checkpoint: Path, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ instruction }}|{{ messages[0].content }}|{{ messages[1].content }}")
    found = look(
        qwen3_checkpoint,
        *("--chat-template", str(template), "--default-instruction", "Find.", "--max-model-len", "1k"),
        *("--dtype", "float32", "--backend", "torch", "--recipe", "qwen3-reranker"),
        *("--hf-overrides", '{"classifier_from_token": ["Yes"]}'),
    )
    assert found["prompts"] == [f"Find.|{QUERY}|{DOCUMENT}"]
    assert found["template"] == "--chat-template"
    assert (found["head"], found["tokens"]) == ("logit of 'Yes'", {"Yes": 9454})
    assert (found["max_tokens"], found["dtype"], found["backend"]) == (1000, "float32", "torch")
    assert found["why"] == "--recipe says qwen3-reranker"


def test_what_is_not_understood_is_listed(qwen3_checkpoint: Path, bert_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen3_checkpoint, tmp_path / "model"))
    edit(folder / "config.json", auto_map={"AutoModel": "modeling.Own"}, router_scale=2.0, num_experts=8)
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "extra").mkdir()
    (folder / "README.md").write_text("# Mine")
    (folder / "config_sentence_transformers.json").write_text('{"activation_fn": "torch.nn.Identity"}')
    found = look(folder)
    assert found["other_files"] == ["extra/", "modeling.py (not run)"]
    assert found["not_understood"] == [
        "config.json: `auto_map` names code of the folder's own, which is not run",
        "config.json: `num_experts` has no effect",
        "config.json: `router_scale` has no effect",
        "config_sentence_transformers.json: not read, for want of modules.json or since its `model_type` is not "
        "CrossEncoder",
    ]
    folder = Path(shutil.copytree(bert_checkpoint, tmp_path / "bert"))
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer", "path": ""}]')
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder", "temperature": 2}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "other": 1}')
    found = look(folder)
    assert found["max_tokens"] == 64
    assert found["not_understood"] == [
        "config_sentence_transformers.json: `temperature` has no effect",
        "sentence_bert_config.json: `other` has no effect",
    ]


@pytest.mark.parametrize("count", [10**9, 2**31 - 1, 1001])
def test_layers_that_no_model_has_are_not_built(bert_checkpoint: Path, tmp_path: Path, count: int) -> None:
    folder = Path(shutil.copytree(bert_checkpoint, tmp_path / "model"))
    edit(folder / "config.json", num_hidden_layers=count)
    done = run(str(folder), "--device", "cpu")
    assert done.exit_code == 1
    assert "`num_hidden_layers` must be an integer from 1 to 1000" in done.stderr


def a_chat_model(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=checkpoints.QWEN_CHAT_TEMPLATE)
    edit(folder / "config.json", vocab_size=151936)


def no_pooling(folder: Path) -> None:
    (folder / "modules.json").unlink()


def three_labels(folder: Path) -> None:
    edit(folder / "config.json", id2label={"0": "contradiction", "1": "entailment", "2": "neutral"}, num_labels=3)


def an_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


REFUSED: list[tuple[Callable[..., Path], Callable[[Path], object], str]] = [
    (checkpoints.qwen3, a_chat_model, "--recipe qwen3-reranker"),
    (checkpoints.xlmr_embedder, no_pooling, "no modules.json beside it that says how to pool"),
    (checkpoints.bert, three_labels, "3 labels"),
    (checkpoints.bert, an_adapter, "merge_and_unload"),
]


@pytest.mark.parametrize(("maker", "change", "said"), REFUSED)
def test_what_must_be_refused_is_in_one_line(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, maker: Any, change: Callable[[Path], object], said: str
) -> None:
    folder = Path(shutil.copytree(make_checkpoint(maker), tmp_path / "model"))
    change(folder)
    for form in ([], ["--json"]):
        done = run(str(folder), *form)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith("rerankd: error: ")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr


def test_a_model_in_parts_is_looked_over_without_its_processes(bert_checkpoint: Path) -> None:
    found = look(bert_checkpoint, "--tensor-parallel-size", "2")
    assert (found["tensor_parallel_size"], found["backend"]) == (2, "torch")
    said = run(str(bert_checkpoint), "--device", "cpu", "-tp", "2").stdout
    assert re.search(r"^ranks: +2, each a part of every layer$", said, re.MULTILINE)
    refused = run(str(bert_checkpoint), "--device", "cpu", "--tp-size", "3")
    assert refused.exit_code == 1
    assert "does not support 4 heads in 3 equal parts" in refused.stderr
