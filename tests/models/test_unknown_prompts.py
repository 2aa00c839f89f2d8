"""Models whose prompt is another than the one that is built in, or unknown, are refused unless the user says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from sentence_transformers import CrossEncoder

from rerankd import Reranker
from rerankd.core import ModelError
from rerankd.loading import plan
from rerankd.options import LoadOptions
from tests import checkpoints, vocabularies
from tests.conftest import MakeCheckpoint
from tests.models.test_fallback import PAIRS, SIZES, own_scores, their_scores
from tests.models.test_modules import OTHER, TEMPLATE, edit
from tests.models.test_recipes import refusal

NAME = "Qwen3-Reranker-0.6B-legal"
TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
GENERATION = TEMPLATE.replace(TAIL, f"' }}}}{{%- if add_generation_prompt %}}{{{{- '{TAIL}{{%- endif %}}")
PARTS = "map(attribute='content') | map('first') | map(attribute='text') | first"


@pytest.fixture
def with_template(qwen3_checkpoint: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A merged fine-tune without a list of modules, whose chat template is the given one."""

    def make(template: str) -> Path:
        folder = Path(shutil.copytree(qwen3_checkpoint, tmp_path / NAME, dirs_exist_ok=True))
        (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        GENERATION,
        TEMPLATE.replace("map(attribute='content') | first", PARTS),
        checkpoints.QWEN_CHAT_TEMPLATE,
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{% broken",
    ],
    ids=[
        "the same",
        "the same for generation",
        "the same of parts",
        "Qwen's chats",
        "any role",
        "a refusal",
        "no template",
    ],
)
def test_templates_that_write_no_other_prompt(with_template: Callable[[str], Path], template: str) -> None:
    assert plan(LoadOptions(str(with_template(template)), device="cpu")).choice.recipe.name == "qwen3-reranker"


@pytest.mark.parametrize("template", [OTHER, OTHER.replace("map(attribute='content') | first", PARTS)])
def test_another_prompt_for_pairs_is_refused_unless_the_user_chooses(
    with_template: Callable[[str], Path], qwen3_checkpoint: Path, template: str
) -> None:
    folder = with_template(template)
    said = refusal(folder)
    assert "chat_template.jinja writes another prompt for a query and a document" in said
    assert "--chat-template" in said
    assert "--recipe" in said
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32") as reranker:
        built_in = reranker.score(PAIRS)
    assert own_scores(folder, recipe="qwen3-reranker") == pytest.approx(built_in, abs=1e-5)
    if template == OTHER:
        # sentence-transformers scores such a folder by its template, and by "yes" and "no".
        model = CrossEncoder(str(folder), device="cpu")
        theirs = [float(model.predict([pair])[0]) for pair in PAIRS]
        assert max(abs(a - b) for a, b in zip(theirs, built_in, strict=True)) > 1e-4
        given = folder / "given.jinja"
        given.write_text(OTHER)
        assert own_scores(folder, chat_template=given) == pytest.approx(theirs, abs=1e-5)


def llama(folder: Path) -> Path:
    """A classifier over a decoder, as reward models are, with a tokenizer that puts no token between two texts."""
    vocabulary = vocabularies.roberta()
    config = transformers.LlamaConfig(
        vocab_size=vocabularies.size(vocabulary), num_key_value_heads=2, num_labels=1, pad_token_id=1, **SIZES
    )
    model = transformers.LlamaForSequenceClassification(config)
    checkpoints.randomise(model, 1.0)
    checkpoints.store(model, folder, checkpoints.Storage())
    vocabularies.write(folder, vocabulary, tokenizer_class="PreTrainedTokenizerFast", pad_token="<pad>")
    return folder


def test_a_classifier_over_a_decoder_is_refused_unless_the_user_says_how_it_reads(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint(llama)
    said = refusal(folder)
    assert "'LlamaForSequenceClassification', a classifier over a language model" in said
    assert "--recipe cross-encoder" in said
    assert own_scores(folder, recipe="cross-encoder") == pytest.approx(their_scores(folder), abs=1e-5)
    # Of a folder of sentence-transformers the list of modules says how pairs are read.
    listed = Path(shutil.copytree(folder, tmp_path / "listed"))
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    modules = [{"idx": 0, "name": "0", "path": "", "type": kind}]
    (listed / "modules.json").write_text(json.dumps(modules))
    assert own_scores(listed) == pytest.approx(their_scores(listed), abs=1e-5)
    message = {"message": {"method": "forward", "method_output_name": "logits", "format": "flat"}}
    (listed / "sentence_bert_config.json").write_text(json.dumps({"modality_config": message}))
    assert "a classifier over a language model" in refusal(listed)


def test_a_rerankers_classifier_is_not_read_as_a_plain_pair(
    qwen3_seq_cls_checkpoint: Path, bert_checkpoint: Path, tmp_path: Path
) -> None:
    """Its own prompt is known to rerankd's own implementation alone."""
    said = refusal(qwen3_seq_cls_checkpoint, model_impl="transformers")
    assert "Without --model-impl transformers rerankd knows more of it." in said
    chats = Path(shutil.copytree(bert_checkpoint, tmp_path / "model"))
    edit(chats / "tokenizer_config.json", chat_template=checkpoints.QWEN_CHAT_TEMPLATE)
    assert "which prompt" in refusal(chats, model_impl="transformers")


MLX: list[dict[str, Any]] = [
    {"quantization": {"group_size": 64, "bits": 4}},
    {"quantization_config": {"group_size": 64, "bits": 8, "mode": "affine"}},
]


@pytest.mark.parametrize("entry", MLX)
def test_a_quantised_copy_of_mlx_is_named(qwen3_checkpoint: Path, tmp_path: Path, entry: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(qwen3_checkpoint, tmp_path / "Qwen3-Reranker-0.6B-4bit"))
    edit(folder / "config.json", **entry)
    with pytest.raises(ModelError, match="a checkpoint of MLX"):
        plan(LoadOptions(str(folder), device="cpu"))
