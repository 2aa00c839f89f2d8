"""Which recipe a folder is scored by: by its name, its content or the user's word, else it is refused in one line."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from rerankd import Reranker
from rerankd.core import ModelError
from rerankd.loading import plan
from rerankd.options import LoadOptions
from tests import checkpoints
from tests.conftest import MakeCheckpoint
from tests.models.test_modules import edit
from tests.prompts.conftest import request
from tests.references import QWEN3_INSTRUCTION, QWEN3_PROMPT
from tests.texts import DOCUMENTS, QUERIES

PAIRS = [(query, document) for query in QUERIES[:2] for document in DOCUMENTS[:4]]
VLLM = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}
TEMPLATE = QWEN3_PROMPT.replace("{instruction}", QWEN3_INSTRUCTION)
TEMPLATE = TEMPLATE.replace("{query}", "{{ messages[0].content }}").replace("{document}", "{{ messages[1].content }}")
TEMPLATE += "\n"  # Jinja drops a file's last newline
Change = Callable[[Path], object]


def config(**entries: Any) -> Change:
    return lambda folder: edit(folder / "config.json", **entries)


def chats(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=checkpoints.QWEN_CHAT_TEMPLATE)


def chats_beside(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(checkpoints.QWEN_CHAT_TEMPLATE)


def chats_in_json(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": checkpoints.QWEN_CHAT_TEMPLATE}))


def card(heading: str) -> Change:
    return lambda folder: (folder / "README.md").write_text(f"---\nlicense: mit\n---\n\n# {heading}\n\n# More\n")


def samples(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6}))


def script(folder: Path, name: str = "reranker") -> None:
    (folder / "scripts").mkdir()
    (folder / "scripts" / f"qwen3_vl_{name}.py").write_text("")


def appends(folder: Path) -> None:
    """What Qwen3-Embedding's tokenizer does."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 151643)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


PADDED = config(vocab_size=151936)
"""As Qwen's chat models have it."""
PUBLISHED = config(hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8)
Q, V = "qwen3", "qwen3_vl"

KNOWN: dict[str, tuple[str, str, tuple[Change, ...], str]] = {
    "no name at all": (Q, "model", (), "151,669 tokens"),
    "a classifier without a name": ("one-row", "model", (), "151,669 tokens"),
    "two rows without a name": ("two-rows", "model", (), "151,669 tokens"),
    "the first revision, renamed": (Q, "model", (chats, PUBLISHED), "sizes are those of"),
    "a converted one, renamed": ("one-row", "model", (chats, PUBLISHED), "sizes are those of"),
    "a folder of its name": (Q, "Qwen3-Reranker-0.6B", (chats, PADDED), "its name is 'Qwen3-Reranker-0.6B'"),
    "ModelScope's cache": (Q, "Qwen3-Reranker-0___6B", (chats, PADDED), "its name is"),
    "a conversion": ("one-row", "qwen3-reranker-0.6b-seq-cls", (chats,), "its name is"),
    "a fine-tuned one": (Q, "legal_Qwen3_Reranker-4B", (chats,), "its name is"),
    "the hub's cache": (Q, "models--Qwen--Qwen3-Reranker-8B/snapshots/0123abc", (chats, PADDED), "folder's name"),
    "its config's name": (
        Q, "model", (chats, PADDED, config(_name_or_path="/x/Qwen3-Reranker-0.6B")), "`_name_or_path`"
    ),
    "its card": (Q, "model", (chats, PADDED, card("Qwen3-Reranker-0.6B")), "heading of README.md"),
    "a vision model without a name": (V, "model", (), "no tools"),
    "a vision model's name": (V, "Qwen3-VL-Reranker-2B", (chats_in_json, samples), "its name is"),
    "a vision model's card": (V, "model", (chats_in_json, card("Qwen3-VL-Reranker-8B")), "heading of README.md"),
    "a vision model's script": (V, "model", (chats_in_json, script), "scripts/qwen3_vl_reranker.py"),
}  # fmt: skip

UNKNOWN: dict[str, tuple[str, str, tuple[Change, ...]]] = {
    "a chat model": (Q, "model", (chats, PADDED)),
    "a chat model by name": (Q, "Qwen3-0.6B", (chats_beside, PADDED)),
    "a base model": (Q, "Qwen3-0.6B-Base", (PADDED,)),
    "a chat template and other sizes": (Q, "model", (chats,)),
    "a chat template in a file of its own": (Q, "model", (chats_in_json,)),
    "zerank, renamed": (Q, "model", (chats, PADDED)),
    "jina-reranker": (Q, "jina-reranker-v3", ()),
    "Qwen3-Embedding": (Q, "Qwen3-Embedding-0.6B", ()),
    "Qwen3-Embedding, renamed": (Q, "model", (PUBLISHED, appends)),
    "a reward model": ("one-row", "Skywork-Reward-V2-Qwen3-0.6B", (chats, PADDED)),
    "a vision model for chats": (V, "model", (chats_in_json,)),
    "a vision model that samples": (V, "model", (samples,)),
    "a vision model for embeddings": (V, "Qwen3-VL-Embedding-2B", ()),
    "a vision model for embeddings, renamed": (V, "model", (partial(script, name="embedding"),)),
}


@pytest.fixture
def made(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Callable[[str, str, tuple[Change, ...]], Path]:
    """A copy of a tiny checkpoint under a name, changed."""

    def make(kind: str, name: str, changes: tuple[Change, ...]) -> Path:
        if kind == V:
            source = make_checkpoint(checkpoints.qwen3_vl)
        else:
            source = make_checkpoint(checkpoints.qwen3, **({} if kind == Q else {"head": kind}))
        folder = Path(shutil.copytree(source, tmp_path / name, copy_function=shutil.copy))
        for change in changes:
            change(folder)
        return folder

    return make


Made = Callable[[str, str, tuple[Change, ...]], Path]


@pytest.mark.parametrize("case", KNOWN)
def test_known_models_are_recognised(made: Made, case: str) -> None:
    kind, name, changes, why = KNOWN[case]
    choice = plan(LoadOptions(str(made(kind, name, changes)), device="cpu")).choice
    assert choice.recipe.name == ("qwen3-vl-reranker" if kind == V else "qwen3-reranker")
    assert why in choice.why
    assert choice.certain


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as raised:
        plan(LoadOptions(str(folder), device="cpu", **options))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("case", UNKNOWN)
def test_others_are_refused_with_the_recipes_that_exist(made: Made, case: str) -> None:
    kind, name, changes = UNKNOWN[case]
    said = refusal(made(kind, name, changes))
    assert f"--recipe {'qwen3-vl-reranker' if kind == V else 'qwen3-reranker'}" in said
    assert "--chat-template" in said
    assert "classifier_from_token" in said
    assert len(said) < 700


@pytest.mark.parametrize(
    ("options", "recipe", "certain"),
    [
        ({"recipe": "qwen3-reranker"}, "qwen3-reranker", True),
        ({"hf_overrides": VLLM}, "qwen3-reranker", True),
        ({"hf_overrides": {"classifier_from_token": ["no", "yes"]}}, "qwen3-reranker", False),
        ({"chat_template": TEMPLATE}, "chat-template", False),
        ({"chat_template": TEMPLATE, "hf_overrides": {"classifier_from_token": ["no", "yes"]}}, "chat-template", True),
    ],
    ids=str,
)
def test_the_users_word_counts(
    made: Made, qwen3_checkpoint: Path, caplog: pytest.LogCaptureFixture, options: Any, recipe: str, certain: bool
) -> None:
    folder = made(Q, "my-model", (chats,))
    refusal(folder)
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32") as reranker:
        expected = reranker.score(PAIRS)
    caplog.clear()
    with caplog.at_level(logging.INFO), Reranker(folder, device="cpu", dtype="float32", **options) as reranker:
        assert reranker.score(PAIRS) == pytest.approx(expected, abs=1e-5)
    (said,) = [record for record in caplog.records if "is scored by the recipe" in record.message]
    assert f"the recipe {recipe}: " in said.message
    assert said.levelname == ("INFO" if certain else "WARNING")


@pytest.mark.parametrize("options", [{"chat_template": TEMPLATE}, {"recipe": "qwen3-reranker"}, {"hf_overrides": VLLM}])
def test_another_process_plans_the_same(made: Made, options: Any) -> None:
    """Replicas and ranks are told what the first process found."""
    planned = plan(LoadOptions(str(made(Q, "my-model", (chats,))), device="cpu", **options))
    again = plan(planned.resolved_options)
    assert again.choice.recipe == planned.choice.recipe
    assert again.prompts.build(request("a", ["b"])) == planned.prompts.build(request("a", ["b"]))


def test_one_token_and_a_template_of_ones_own(made: Made) -> None:
    """How vLLM's documentation serves a reranker that answers with one token."""
    folder = made(Q, "my-model", (chats,))
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["Yes"],
        "method": "no_post_processing",
    }
    planned = plan(LoadOptions(str(folder), device="cpu", chat_template=TEMPLATE, hf_overrides=overrides))
    assert planned.choice.recipe.template is None
    assert planned.choice.certain


def test_a_recipe_that_is_unknown_or_of_others(qwen3_checkpoint: Path, bert_checkpoint: Path) -> None:
    assert "there are qwen3-reranker" in refusal(qwen3_checkpoint, recipe="x\ny")
    assert "The recipe qwen3-vl-reranker is not for Qwen3ForCausalLM" in refusal(
        qwen3_checkpoint, recipe="qwen3-vl-reranker"
    )
    assert "choose cross-encoder" in refusal(bert_checkpoint, recipe="qwen3-reranker")
    assert plan(LoadOptions(str(bert_checkpoint), recipe="cross-encoder")).choice.why == "--recipe says cross-encoder"


def test_an_embedding_model_is_none_of_the_decoders_recipes(
    xlmr_embedder_checkpoint: Path, qwen3_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(qwen3_checkpoint, tmp_path / "model"))
    shutil.copy(xlmr_embedder_checkpoint / "modules.json", folder)
    for name in ("1_Pooling", "2_Normalize"):
        shutil.copytree(xlmr_embedder_checkpoint / name, folder / name)
    assert "choose bi-encoder" in refusal(folder, recipe="qwen3-reranker")
