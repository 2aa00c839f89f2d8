"""Decoders whose authors tokenise a prompt in pieces, against transformers' logits under their rule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rerankd import Reranker
from rerankd.core import ModelError
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.options import LoadOptions
from tests import checkpoints, decoder_checkpoints
from tests.conftest import MakeCheckpoint
from tests.prompts.conftest import request
from tests.texts import DOCUMENTS, QUERIES

PAIRS = [(query, document) for query in QUERIES[::4] for document in DOCUMENTS[::2]]
INSTRUCTION = "Prefer what is new."
JUDGEMENT = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 "
    "for not relevant, 1 for relevant).\nRelevance:"
)


def mxbai_pieces(query: str, document: str, instruction: str | None) -> list[str]:
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    return [
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        (f"instruction: {instruction}\n" if instruction else "") + f"query: {query}",
        "\n",
        f"document: {document}",
        "\n",
        JUDGEMENT,
        "<|im_end|>\n<|im_start|>assistant\n",
    ]


def gemma_pieces(query: str, document: str, instruction: str | None) -> list[str]:
    question = (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
        "prediction of either 'Yes' or 'No'."
    )
    return ["<bos>", f"A: {query}", "\n", f"B: {document}", "\n", instruction or question]


@dataclass(frozen=True)
class Rule:
    """An authors' rule: the pieces of a prompt, and the tokens whose logits make the score.

    most: tokens of the query, the document, which loses its end, and what is between
    counted: whether `<bos>` is counted among these, and what is behind them allows as many more
    """

    make: Callable[..., Path]
    pieces: Callable[[str, str, str | None], list[str]]
    positive: str
    negative: str | None
    name: str
    architecture: str
    most: int
    counted: bool = False

    def ids(self, tokenizer: Any, query: str, document: str, instruction: str | None) -> list[int]:
        pieces = self.pieces(query, document, instruction)
        ids = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
        ids[1], ids[3] = ids[1][: self.most * 3 // 4], ids[3][: self.most]
        beside = sum(map(len, ids[4:])) - len(ids[0]) if self.counted else 0
        ids[3] = ids[3][: self.most + beside - len(ids[1]) - len(ids[2])]
        return [token for piece in ids for token in piece]

    @cache  # noqa: B019 - of a few rules, each there until the end
    @torch.inference_mode()
    def scores(self, folder: Path, instruction: str | None = None, whole: bool = False) -> list[float]:
        """The scores of PAIRS in float32; whole: of prompts that are tokenised as one text."""
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        scores = []
        for query, document in PAIRS:
            ids = self.ids(tokenizer, query, document, instruction)
            if whole:
                text = "".join(self.pieces(query, document, instruction))
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            logits = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
            score = logits[tokenizer.convert_tokens_to_ids(self.positive)]
            if self.negative is not None:
                score = score - logits[tokenizer.convert_tokens_to_ids(self.negative)]
            scores.append(float(score))
        return scores


RULES = {
    "mxbai-rerank": Rule(
        decoder_checkpoints.qwen2, mxbai_pieces, "1", "0", "mxbai-rerank-base-v2", "Qwen2ForCausalLM", 8192
    ),
    "bge-reranker-gemma": Rule(
        decoder_checkpoints.gemma, gemma_pieces, "Yes", None, "bge-reranker-v2-gemma", "GemmaForCausalLM", 512, True
    ),
}


def found(folder: Path, recipe: str | None, dtype: str = "float32", **options: Any) -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype, recipe=recipe, **options) as reranker:
        return reranker.score(PAIRS)


def differ(first: Sequence[float], second: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_the_authors(make_checkpoint: MakeCheckpoint, name: str, tied: bool) -> None:
    folder = make_checkpoint(RULES[name].make, tied=tied)
    expected = RULES[name].scores(folder)
    assert len(PAIRS) >= 40
    assert max(expected) - min(expected) >= 0.2
    assert found(folder, name) == pytest.approx(expected, abs=1e-5)
    # Neither that of a prompt tokenised whole nor a sigmoid is their score.
    assert differ(RULES[name].scores(folder, whole=True), expected) > 1e-3


@pytest.mark.parametrize("name", RULES)
def test_a_request_of_many_documents(make_checkpoint: MakeCheckpoint, name: str) -> None:
    """Which share a prefix."""
    folder = make_checkpoint(RULES[name].make, tied=True)
    query = QUERIES[0]
    expected = [score for pair, score in zip(PAIRS, RULES[name].scores(folder), strict=True) if pair[0] == query]
    documents = [document for asked, document in PAIRS if asked == query]
    with Reranker(folder, device="cpu", dtype="float32", recipe=name) as reranker:
        ranked = reranker.rerank(query, documents)
    assert len(documents) > 5
    assert [item.score for item in sorted(ranked.documents, key=lambda item: item.index)] == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("name", RULES)
def test_an_instruction(make_checkpoint: MakeCheckpoint, name: str) -> None:
    folder = make_checkpoint(RULES[name].make, tied=True)
    expected = RULES[name].scores(folder, INSTRUCTION)
    assert differ(RULES[name].scores(folder), expected) > 1e-3
    with Reranker(folder, device="cpu", dtype="float32", recipe=name) as reranker:
        assert reranker.score(PAIRS, INSTRUCTION) == pytest.approx(expected, abs=1e-5)
    assert found(folder, name, default_instruction=INSTRUCTION) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_bfloat16(make_checkpoint: MakeCheckpoint, name: str) -> None:
    folder = make_checkpoint(RULES[name].make, tied=True, storage=checkpoints.Storage(dtype="bfloat16"))
    assert found(folder, name, "bfloat16") == pytest.approx(RULES[name].scores(folder), abs=1e-2)


@pytest.mark.parametrize("name", RULES)
def test_its_name_is_known_and_a_chat_model_is_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str
) -> None:
    rule = RULES[name]
    source = make_checkpoint(rule.make, tied=True)
    named, other = tmp_path / rule.name, tmp_path / "my-chat-model"
    named.symlink_to(source)
    choice = plan(LoadOptions(str(named), device="cpu")).choice
    assert (choice.recipe.name, choice.certain) == (name, True)
    assert rule.name in choice.why
    shutil.copytree(source, other)
    with pytest.raises(ModelError) as raised:
        plan(LoadOptions(str(other), device="cpu"))
    said = str(raised.value)
    assert rule.architecture in said
    assert f"--recipe {name}" in said
    assert "\n" not in said
    # That a folder is a Qwen3-Reranker says nothing of another class.
    with pytest.raises(ModelError):
        plan(LoadOptions(str(other), device="cpu", hf_overrides={"is_original_qwen3_reranker": True}))
    # A renamed copy with the authors' prompt as its chat template is known.
    (other / "chat_template.jinja").write_text("".join(rule.pieces("{{ q }}", "{{ d }}", None)))
    choice = plan(LoadOptions(str(other), device="cpu")).choice
    assert choice.recipe.name == name
    assert "its chat template" in choice.why


@pytest.mark.parametrize("name", RULES)
def test_an_inspection(make_checkpoint: MakeCheckpoint, name: str) -> None:
    rule, folder = RULES[name], make_checkpoint(RULES[name].make, tied=True)
    inspection = inspect(plan(LoadOptions(str(folder), device="cpu", recipe=name)))
    assert inspection.architecture == rule.architecture
    assert list(inspection.tokens) == [token for token in (rule.negative, rule.positive) if token]
    assert inspection.activation == "identity"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = rule.ids(tokenizer, "what is panda?", "The giant panda is a bear.", None)
    assert inspection.prompts == (tokenizer.decode(ids),)


def test_vllms_override_has_its_sigmoid(make_checkpoint: MakeCheckpoint) -> None:
    rule = RULES["mxbai-rerank"]
    folder = make_checkpoint(rule.make, tied=True)
    overrides = {
        "architectures": ["Qwen2ForSequenceClassification"],
        "classifier_from_token": ["0", "1"],
        "method": "from_2_way_softmax",
    }
    expected = torch.tensor(rule.scores(folder)).sigmoid().tolist()
    assert found(folder, "mxbai-rerank", hf_overrides=overrides) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_conversion_to_a_classifier(make_checkpoint: MakeCheckpoint, rows: int) -> None:
    rule = RULES["mxbai-rerank"]
    folder = make_checkpoint(rule.make, rows=rows)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    with torch.inference_mode():
        for pair in PAIRS:
            logits = model(torch.tensor([rule.ids(tokenizer, *pair, None)])).logits[0]
            expected.append(float(logits.sigmoid()[0] if rows == 1 else logits.softmax(0)[1]))
    assert max(expected) - min(expected) >= 0.2
    assert found(folder, "mxbai-rerank") == pytest.approx(expected, abs=1e-5)


def test_a_chain_of_sentence_transformers(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """It tokenises the prompt whole, and its score is a sigmoid."""
    source = tmp_path / "source"
    shutil.copytree(make_checkpoint(RULES["mxbai-rerank"].make, tied=True), source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    template = "".join(mxbai_pieces("{{ messages[-2].content }}", "{{ messages[-1].content }}", None))
    (source / "chat_template.jinja").write_text(template + "\n")
    modules = [Transformer(str(source), transformer_task="text-generation"), LogitScore(16, 15)]
    folder = tmp_path / "model"
    model = CrossEncoder(modules=modules, device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    expected = [float(score) for score in model.predict(PAIRS, batch_size=1)]
    assert plan(LoadOptions(str(folder), device="cpu")).choice.certain
    assert found(folder, None) == pytest.approx(expected, abs=1e-5)


def test_gemma_as_it_was_released(make_checkpoint: MakeCheckpoint) -> None:
    old = make_checkpoint(decoder_checkpoints.gemma, tied=True, hidden_act="gelu", hidden_activation=None)
    expected = RULES["bge-reranker-gemma"].scores(old)
    assert found(old, "bge-reranker-gemma") == pytest.approx(expected, abs=1e-5)
    other = make_checkpoint(decoder_checkpoints.gemma, tied=True, hidden_act="silu")
    with pytest.raises(ModelError, match="hidden_act"):
        plan(LoadOptions(str(other), device="cpu", recipe="bge-reranker-gemma")).load()


@pytest.mark.parametrize("name", RULES)
def test_the_default_limit_is_the_authors(make_checkpoint: MakeCheckpoint, name: str) -> None:
    folder, rule = make_checkpoint(RULES[name].make, tied=True), RULES[name]
    planned = plan(LoadOptions(str(folder), device="cpu", recipe=name))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert planned.prompts.max_tokens == len(rule.ids(tokenizer, "word " * 12_000, "word " * 12_000, None))
    # One is cut for its own limit, one for that of both, and one not at all.
    for asked, told in ((1, 12_000), (12_000, 12_000), (12_000, 1)):
        query, document = "word " * asked, "word " * told
        group = planned.prompts.build(request(query, [document]))
        ids = group.prefix.token_ids + group.suffixes[0].token_ids
        assert list(ids) == rule.ids(tokenizer, query, document, None)
        assert (group.query_truncated, group.truncated) == (asked > 1, (told > 1,))
    assert plan(LoadOptions(str(folder), device="cpu", recipe=name, max_model_len=700)).prompts.max_tokens == 700
