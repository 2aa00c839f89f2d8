"""Folders of sentence-transformers: served where its score is ours, by test, and refused in one line where not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling

from rerankd import Reranker
from rerankd.core import ModelError
from rerankd.models.recipes.qwen3 import QWEN3_RERANKER
from tests import checkpoints
from tests.conftest import MakeCheckpoint
from tests.references import QWEN3_INSTRUCTION
from tests.texts import DOCUMENTS, QUERIES

PAIRS = [(query, document) for query in QUERIES[::4] for document in DOCUMENTS[::3]]
TEMPLATE = (
    "{{- '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n\' }}'
    "{%- set system = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first %}"
    "{%- set query = messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first %}"
    "{%- set document = messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first %}"
    "{{- '<|im_start|>user\n<Instruct>: ' + (system or 'DEFAULT') + '\n<Query>: ' + query }}"
    "{{- '\n<Document>: ' + document + '<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
).replace("DEFAULT", QWEN3_INSTRUCTION)


def reason(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as raised:
        Reranker(folder, device="cpu", dtype="float32", **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def expect_scores(folder: Path, expected: Sequence[float], **options: Any) -> None:
    assert max(expected) - min(expected) > 0.05
    with Reranker(folder, device="cpu", dtype="float32", **options) as reranker:
        assert reranker.score(PAIRS) == pytest.approx(list(expected), abs=1e-5)


def edit(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def language_model(
    source: Path, to: Path, template: str | None = TEMPLATE, tokens: tuple[int, int | None] = (9693, 2152), **own: Any
) -> CrossEncoder:
    """A cross-encoder of sentence-transformers over a language model, whose chat template is `template`."""
    source = Path(shutil.copytree(source, to / "source"))
    if template is not None:
        (source / "chat_template.jinja").write_text(template)
    first = Transformer(str(source), transformer_task="text-generation")
    modules = [first, LogitScore(true_token_id=tokens[0], false_token_id=tokens[1])]
    return CrossEncoder(modules=modules, device="cpu", **own)  # type: ignore[arg-type]


def scores(model: CrossEncoder) -> list[float]:
    return [float(model.predict([pair], batch_size=1)[0]) for pair in PAIRS]


@pytest.mark.parametrize("maker", [checkpoints.bert, checkpoints.xlmr, checkpoints.roberta])
@pytest.mark.parametrize("activation", [None, torch.nn.Identity(), torch.nn.Sigmoid()])
def test_a_saved_cross_encoder(make_checkpoint: MakeCheckpoint, tmp_path: Path, maker: Any, activation: Any) -> None:
    model = CrossEncoder(str(make_checkpoint(maker)), device="cpu", activation_fn=activation)
    folder = saved(model, tmp_path / "model")
    assert (folder / "modules.json").is_file()
    expect_scores(folder, scores(CrossEncoder(str(folder), device="cpu")))


def test_the_activation_beside_the_config_comes_first(bert_checkpoint: Path, tmp_path: Path) -> None:
    folder = saved(CrossEncoder(str(bert_checkpoint), device="cpu"), tmp_path / "model")
    edit(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"})
    edit(folder / "config_sentence_transformers.json", activation_fn="torch.nn.modules.linear.Identity")
    expected = scores(CrossEncoder(str(folder), device="cpu"))
    assert min(expected) < 0
    expect_scores(folder, expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tokens", [(9693, 2152), (2152, 9693), (4, 7), (9693, None)])
def test_a_saved_yes_no_reranker(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, tied: bool, tokens: tuple[int, int | None]
) -> None:
    model = language_model(make_checkpoint(checkpoints.qwen3, tied=tied), tmp_path, tokens=tokens)
    folder = saved(model, tmp_path / "model")
    expect_scores(folder, scores(model))


def test_its_activation_and_its_default_prompt(qwen3_checkpoint: Path, tmp_path: Path) -> None:
    prompt = "Find what contradicts the query"
    own = {"prompts": {"find": prompt}, "default_prompt_name": "find", "activation_fn": torch.nn.Identity()}
    model = language_model(qwen3_checkpoint, tmp_path, **own)
    folder = saved(model, tmp_path / "model")
    expected = scores(model)
    assert min(expected) < 0
    expect_scores(folder, expected)
    expect_scores(
        folder,
        [float(model.predict([pair], prompt=QWEN3_INSTRUCTION)[0]) for pair in PAIRS],
        default_instruction=QWEN3_INSTRUCTION,
    )


def test_vllms_overrides_and_tokens_of_ones_own_still_apply(qwen3_checkpoint: Path, tmp_path: Path) -> None:
    folder = saved(language_model(qwen3_checkpoint, tmp_path, tokens=(4, 7)), tmp_path / "model")
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32") as reranker:
        expected = reranker.score(PAIRS)
    expect_scores(folder, expected, hf_overrides=overrides)


def test_a_template_for_chats_makes_no_pairs_there_and_the_built_in_prompt_is_used(
    qwen3_checkpoint: Path, tmp_path: Path
) -> None:
    chat = (
        "{%- for message in messages %}{%- if message.role in ('user', 'system', 'assistant') %}"
        "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    )
    model = language_model(qwen3_checkpoint, tmp_path, template=chat)
    folder = saved(model, tmp_path / "model")
    with pytest.raises(ValueError, match="cannot carry"):
        model.predict(PAIRS[:1])
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32") as reranker:
        expect_scores(folder, reranker.score(PAIRS))


OTHER = TEMPLATE.replace("<Query>: ", "<Query>:")


@pytest.mark.parametrize("template", [OTHER, TEMPLATE.replace(QWEN3_INSTRUCTION, "Another")])
@pytest.mark.parametrize("prompt", [None, "Find what contradicts the query"])
def test_another_prompt_is_written_by_the_folders_own_template(
    qwen3_checkpoint: Path, tmp_path: Path, template: str, prompt: str | None
) -> None:
    own = {} if prompt is None else {"prompts": {"find": prompt}, "default_prompt_name": "find"}
    model = language_model(qwen3_checkpoint, tmp_path, template=template, **own)
    folder = saved(model, tmp_path / "model")
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32") as reranker:
        built_in = reranker.score(PAIRS, prompt)
    expected = scores(model)
    if prompt is None or template == OTHER:
        assert max(abs(a - b) for a, b in zip(expected, built_in, strict=True)) > 1e-4
    expect_scores(folder, expected)
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        asked = reranker.score(PAIRS, "Another instruction")
    assert asked == pytest.approx(
        [float(model.predict([pair], prompt="Another instruction")[0]) for pair in PAIRS], abs=1e-5
    )


def test_pairs_without_a_prompt_are_refused_unless_it_is_given(qwen3_checkpoint: Path, tmp_path: Path) -> None:
    folder = saved(language_model(qwen3_checkpoint, tmp_path, template=None), tmp_path / "model")
    assert "--chat-template" in reason(folder)
    (tmp_path / "given.jinja").write_text("{{ query }}{{ document }}")
    Reranker(folder, device="cpu", dtype="float32", chat_template=tmp_path / "given.jinja").close()


@pytest.mark.parametrize("structured", [False, True])
def test_a_structured_template_is_rendered_as_there(qwen3_checkpoint: Path, tmp_path: Path, structured: bool) -> None:
    parts = "map(attribute='content') | map('first') | map(attribute='text') | first"
    template = TEMPLATE.replace("map(attribute='content') | first", parts)
    folder = saved(language_model(qwen3_checkpoint, tmp_path), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template if structured else TEMPLATE)
    path = folder / "sentence_bert_config.json"
    forms = json.loads(path.read_text())["modality_config"]
    forms["message"]["format"] = "structured" if structured else "flat"
    edit(path, modality_config=forms)
    expected = scores(CrossEncoder(str(folder), device="cpu"))
    expect_scores(folder, expected)


def test_the_test_template_is_the_built_in_prompt() -> None:
    assert QWEN3_RERANKER.template is not None
    assert QWEN3_RERANKER.template.default_instruction == QWEN3_INSTRUCTION


def test_an_embedding_model_over_other_decoders_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = make_checkpoint(checkpoints.qwen3)
    modules = [Transformer(str(source)), Pooling(64, pooling_mode="lasttoken"), Normalize()]
    folder = saved(SentenceTransformer(modules=modules, device="cpu"), tmp_path / "model")  # type: ignore[arg-type]
    edit(folder / "config.json", architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    said = reason(folder)
    assert "lists Transformer, Pooling, Normalize, so this is an embedding model" in said
    assert "serve a reranker" in said


def encoder_chain(source: Path, *modules: Any) -> SentenceTransformer:
    return SentenceTransformer(modules=[Transformer(str(source)), *modules], device="cpu")  # type: ignore[list-item]


def test_an_encoder_with_a_classifiers_name_and_pooling_is_refused(bert_checkpoint: Path, tmp_path: Path) -> None:
    folder = saved(encoder_chain(bert_checkpoint, Pooling(64)), tmp_path / "model")
    edit(folder / "config.json", architectures=["BertForSequenceClassification"])
    assert "an embedding model" in reason(folder)


def test_chains_of_other_modules_are_refused_by_name(bert_checkpoint: Path, tmp_path: Path) -> None:
    dense = Dense(64, 8)
    for i, chain in enumerate(([dense], [])):
        folder = saved(encoder_chain(bert_checkpoint, *chain), tmp_path / str(i))
        said = reason(folder)
        assert "lists Transformer" in said
        assert ("lists Transformer, Dense;" in said) == bool(chain)


def test_pooling_to_a_score_is_refused_by_name(bert_checkpoint: Path, tmp_path: Path) -> None:
    dense = Dense(64, 1, module_output_name="scores")
    modules = [Transformer(str(bert_checkpoint)), Pooling(64, pooling_mode="cls"), dense]
    folder = saved(CrossEncoder(modules=modules, device="cpu"), tmp_path / "model")  # type: ignore[arg-type]
    edit(folder / "config.json", architectures=["BertForSequenceClassification"])
    assert "Transformer, Pooling, Dense" in reason(folder)


CHAINS: list[tuple[Any, str]] = [
    ([{"type": "sentence_transformers.models.Transformer"}, {"type": "my_package.Transformer"}], "my_package"),
    ([{"type": "custom_st.Transformer", "path": ""}], "custom_st"),
    ([{"type": "sentence_transformers.models.Transformer", "path": "../other"}], "outside"),
    ([{"type": "sentence_transformers.models.Transformer", "path": "/etc"}], "outside"),
    ([{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}], "0_Transformer"),
    ([{"type": "sentence_transformers.models.Transformer", "path": 3}], "a `path`"),
    ([{"path": ""}], "a `type`"),
    ([], "lists no modules"),
    ({}, "list of objects"),
    ([1], "list of objects"),
    ("x", "list of objects"),
    (None, "list of objects"),
    ([{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "LayerNorm")], "LayerNorm"),
    ([{"type": "sentence_transformers.models.Router"}], "Router"),
]


@pytest.mark.parametrize(("chain", "said"), CHAINS)
@pytest.mark.parametrize("maker", [checkpoints.bert, checkpoints.xlmr_embedder])
def test_lists_of_modules_that_are_none(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, chain: Any, said: str, maker: Any
) -> None:
    folder = Path(shutil.copytree(make_checkpoint(maker), tmp_path / "model"))
    (folder / "modules.json").write_text(json.dumps(chain))
    message = reason(folder)
    assert "modules.json" in message
    if maker is checkpoints.bert:
        assert said in message


@pytest.mark.parametrize(
    ("file", "entries", "said"),
    [
        ("1_LogitScore/config.json", {"true_token_id": "yes"}, "true_token_id"),
        ("1_LogitScore/config.json", {"true_token_id": -1}, "true_token_id"),
        ("1_LogitScore/config.json", {"true_token_id": None}, "true_token_id"),
        ("1_LogitScore/config.json", {"true_token_id": 10**6}, "are beyond"),
        ("1_LogitScore/config.json", {"false_token_id": [1]}, "false_token_id"),
        ("1_LogitScore/config.json", {"module_input_name": "logits"}, "module_input_name"),
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "transformer_task"),
        ("sentence_bert_config.json", {"modality_config": []}, "modality_config"),
        ("sentence_bert_config.json", {"processing_kwargs": {"chat_template": "x"}}, "chat_template"),
        ("config_sentence_transformers.json", {"default_prompt_name": 3}, "default_prompt_name"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name"),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.activation.Tanh"}, "Tanh"),
        ("config_sentence_transformers.json", {"activation_fn": 3}, "activation_fn"),
        ("config_sentence_transformers.json", {"activation_fn": "evil.Sigmoid"}, "evil"),
        ("config.json", {"architectures": ["Qwen3ForSequenceClassification"]}, None),
    ],
)
def test_odd_files_of_a_yes_no_reranker(
    tmp_path: Path, yes_no_folder: Path, file: str, entries: dict[str, Any], said: str | None
) -> None:
    folder = Path(shutil.copytree(yes_no_folder, tmp_path / "model"))
    edit(folder / file, **entries)
    if said is None:
        Reranker(folder, device="cpu", dtype="float32").close()
    else:
        assert said in reason(folder)


@pytest.fixture(scope="module")
def yes_no_folder(qwen3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("yes-no")
    return saved(language_model(qwen3_checkpoint, to), to / "model")


def test_a_classifier_with_a_logit_score_is_refused(
    qwen3_seq_cls_checkpoint: Path, yes_no_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(yes_no_folder, tmp_path / "model"))
    shutil.copy(qwen3_seq_cls_checkpoint / "model.safetensors", folder)
    assert "LogitScore" in reason(folder)


@pytest.mark.parametrize("keep", [False, True])
def test_an_adapter_is_no_model(bert_checkpoint: Path, tmp_path: Path, keep: bool) -> None:
    folder = Path(shutil.copytree(bert_checkpoint, tmp_path / "model"))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x", "peft_type": "LORA"}')
    if not keep:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    said = reason(folder)
    assert "adapter" in said
    assert "merge_and_unload" in said


def test_token_classification_is_no_reranker(bert_checkpoint: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(bert_checkpoint)
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path)
    shutil.copy(bert_checkpoint / "tokenizer.json", tmp_path)
    assert "BertForTokenClassification" in reason(tmp_path)


LABELS: list[tuple[dict[str, Any], str | None]] = [
    ({"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}, "scale of relevance"),
    ({"id2label": {"0": "entailment", "1": "not_entailment"}}, "scale of relevance"),
    ({"id2label": {"0": "relevant", "1": "irrelevant"}}, "scale of relevance"),
    ({"id2label": {"0": "yes", "1": "no"}}, "scale of relevance"),
    ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
    ({"id2label": {"0": "not_relevant", "1": "Relevant"}}, None),
    ({"id2label": {"0": "no", "1": "yes"}}, None),
    ({"id2label": {"1": "yes", "0": "no"}}, None),
    ({"problem_type": "multi_label_classification"}, "problem_type"),
    ({"problem_type": "single_label_classification"}, None),
    ({"problem_type": "x"}, "problem_type"),
    ({"num_labels": 1}, "num_labels"),
    ({"num_labels": 3}, "num_labels"),
    ({"num_labels": 2}, None),
    ({"id2label": {"0": "LABEL_0"}}, "num_labels"),
    ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
    ({"id2label": {"0": 1, "1": 2}}, "id2label"),
    ({"id2label": ["a", "b"]}, "id2label"),
    ({"id2label": {}}, "id2label"),
    ({"id2label": 2}, "id2label"),
]


@pytest.mark.parametrize(("entries", "said"), LABELS, ids=str)
@pytest.mark.parametrize("maker", [checkpoints.bert, checkpoints.xlmr, checkpoints.qwen3])
def test_what_two_labels_mean(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, maker: Any, entries: dict[str, Any], said: str | None
) -> None:
    variant: dict[str, Any] = {"head": "two-rows"} if maker is checkpoints.qwen3 else {"labels": 2}
    folder = Path(shutil.copytree(make_checkpoint(maker, **variant), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config.pop("id2label", None)
    config["num_labels"] = 2
    (folder / "config.json").write_text(json.dumps(config | entries))
    if said is None:
        Reranker(folder, device="cpu", dtype="float32").close()
    else:
        assert said in reason(folder)


def test_an_override_says_what_labels_mean(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(checkpoints.bert, labels=2), tmp_path / "model"))
    edit(folder / "config.json", id2label={"0": "NEGATIVE", "1": "POSITIVE"})
    said = reason(folder)
    override = json.loads(said.split("--hf-overrides ")[1].strip("'."))
    Reranker(folder, device="cpu", dtype="float32", hf_overrides=override).close()
    assert "num_labels" in reason(folder, hf_overrides={"num_labels": 1})
