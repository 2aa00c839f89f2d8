"""Folders with files of odd forms: each is loaded with the scores that it has without them, or refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rerankd import Reranker
from rerankd.core import ModelError
from tests import checkpoints
from tests.conftest import MakeCheckpoint
from tests.server.launched import SERVE, environment

Change = Callable[[Path], object]
DEEP = "[" * 100_000
SETTINGS = "config_sentence_transformers.json"
SERVED = ""
"""What a folder is said to be that loads."""


def write(name: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def edit(name: str, **entries: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        present = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(present | entries))

    return change


def modules_and(name: str, content: str | bytes) -> Change:
    """A file of sentence-transformers', which is read beside a list of modules."""

    def change(folder: Path) -> None:
        write("modules.json", '[{"type": "sentence_transformers.models.Transformer", "path": ""}]')(folder)
        write(name, content)(folder)

    return change


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def folder_in_place_of(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def index(where: Any, name: str = "model.safetensors") -> Change:
    """The weights behind an index with this `weight_map`, and next to the folder too."""

    def change(folder: Path) -> None:
        weights = folder / "model.safetensors"
        shutil.copy(weights, folder.parent / "outside.safetensors")
        weights.rename(folder / "shard.safetensors")
        (folder / f"{name}.index.json").write_text(json.dumps(where))

    return change


def state_dict(value: Any, **options: Any) -> Change:
    """`pytorch_model.bin` with this in place of its tensors."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(value, folder / "pytorch_model.bin", **options)

    return change


def integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.to(torch.int8) if "query.weight" in name else tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")


FORMS: list[tuple[str, str | bytes]] = [
    ("empty", ""),
    ("binary", bytes(range(256))),
    ("UTF-16", "{}".encode("utf-16")),
    ("cut short", '{"a": '),
    ("a list", "[]"),
    ("a list of objects", '[{"a": 1}]'),
    ("a number", "3"),
    ("null", "null"),
    ("a string", '"x"'),
    ("deep", DEEP),
    ("a deep object", '{"a":' * 50_000),
    ("huge number", '{"a": ' + "9" * 10_000 + "}"),
]

BERT: list[tuple[str, Change, str]] = [
    *((f"config.json: {form}", write("config.json", text), "config.json") for form, text in FORMS),
    ("config.json is a folder", folder_in_place_of("config.json"), "config.json"),
    ("no config.json", remove("config.json"), "config.json"),
    ("config.json of nothing", write("config.json", "{}"), "architectures"),
    (
        "a bare string of architectures",
        edit("config.json", architectures="BertForSequenceClassification"),
        "architectures",
    ),
    ("numbers as architectures", edit("config.json", architectures=[1]), "architectures"),
    ("no architectures", edit("config.json", architectures=None), "architectures"),
    ("no list of architectures", edit("config.json", architectures=[]), "architectures"),
    ("an architecture of two lines", edit("config.json", architectures=["A\nB"]), "architectures"),
    ("another model's type", edit("config.json", model_type="roberta"), "model_type"),
    ("no heads", edit("config.json", num_attention_heads=0), "num_attention_heads"),
    ("heads that do not divide", edit("config.json", num_attention_heads=5), "num_attention_heads"),
    ("negative eps", edit("config.json", layer_norm_eps=-1e-12), "layer_norm_eps"),
    ("eps that is no number", edit("config.json", layer_norm_eps=float("nan")), "layer_norm_eps"),
    ("quantised", edit("config.json", quantization_config={"quant_method": "gptq"}), "quantization_config"),
    ("a decoder", edit("config.json", is_decoder=True), "is_decoder"),
    ("relative positions", edit("config.json", position_embedding_type="relative_key"), "position_embedding_type"),
    ("integer weights", integers, "quantised"),
    *((f"tokenizer.json: {form}", write("tokenizer.json", text), "tokenizer.json") for form, text in FORMS),
    ("tokenizer.json is a folder", folder_in_place_of("tokenizer.json"), "tokenizer.json"),
    *(
        (f"tokenizer_config.json: {form}", write("tokenizer_config.json", text), "tokenizer_config.json")
        for form, text in FORMS
    ),
    ("no tokenizer_config.json", remove("tokenizer_config.json"), SERVED),
    ("a maximum length of text", edit("tokenizer_config.json", model_max_length="512"), "model_max_length"),
    ("a maximum length of a list", edit("tokenizer_config.json", model_max_length=[512]), "model_max_length"),
    ("a negative maximum length", edit("tokenizer_config.json", model_max_length=-1), "model_max_length"),
    ("an infinite maximum length", edit("tokenizer_config.json", model_max_length=float("inf")), "model_max_length"),
    ("a maximum length of nothing", edit("tokenizer_config.json", model_max_length=None), SERVED),
    ("a maximum length of 1e30", edit("tokenizer_config.json", model_max_length=10**30), SERVED),
    ("lower case as text", edit("tokenizer_config.json", do_lower_case="yes"), "do_lower_case"),
    ("accents as a number", edit("tokenizer_config.json", strip_accents=3), "strip_accents"),
    ("a token of a list", edit("tokenizer_config.json", cls_token=["[CLS]"]), "cls_token"),
    ("a token of a number", edit("tokenizer_config.json", unk_token=3), "unk_token"),
    ("a token without content", edit("tokenizer_config.json", sep_token={"a": 1}), "sep_token"),
    *((f"modules.json: {form}", write("modules.json", text), "modules.json") for form, text in FORMS),
    *(
        (
            f"settings: {form}",
            modules_and("config_sentence_transformers.json", text),
            "config_sentence_transformers.json",
        )
        for form, text in FORMS[:9]
    ),
    ("settings without modules", write(SETTINGS, "["), SERVED),
    *((f"generation config: {form}", write("generation_config.json", text), SERVED) for form, text in FORMS[:3]),
    *((f"adapter: {form}", write("adapter_config.json", text), "adapter") for form, text in FORMS[:2]),
    ("index outside", index({"weight_map": {"a": "../outside.safetensors"}}), "outside"),
    ("index of a root", index({"weight_map": {"a": "/etc/passwd.safetensors"}}), "outside"),
    ("index of an inner way out", index({"weight_map": {"a": "x/../../outside.safetensors"}}), "outside"),
    ("index of numbers", index({"weight_map": {"a": 1}}), "weight index"),
    ("index of nulls", index({"weight_map": {"a": None}}), "weight index"),
    ("index of another form", index({"weight_map": {"a": "tokenizer.json"}}), "weight index"),
    ("index of pickles", index({"weight_map": {"a": "x.bin"}}), "weight index"),
    ("index of a missing file", index({"weight_map": {"a": "x.safetensors"}}), "lacks"),
    ("index of nothing", index({"weight_map": {}}), "weight_map"),
    ("index of a list", index({"weight_map": ["a"]}), "weight_map"),
    ("index without a map", index({}), "weight_map"),
    ("a list for an index", index([]), "index.json"),
    ("an index of a zero byte", index({"weight_map": {"a": "a\0.safetensors"}}), "outside"),
    ("a list of tensors", state_dict([torch.ones(2)]), "state dict"),
    ("no tensors", state_dict({}), "state dict"),
    ("numbers for tensors", state_dict({"a": 1}), "state dict"),
    ("a tensor alone", state_dict(torch.ones(2)), "state dict"),
    ("an old list of tensors", state_dict([torch.ones(2)], _use_new_zipfile_serialization=False), "state dict"),
    ("weights in a folder", folder_in_place_of("model.safetensors"), "holds no weights"),
    ("no weights", remove("model.safetensors"), "holds no weights"),
    ("weights of text", write("model.safetensors", "hello"), "damaged"),
]

VISION: list[tuple[str, Change, str]] = [
    *(
        (f"{name}: {form}", write(name, text), name)
        for name in ("preprocessor_config.json", "video_preprocessor_config.json")
        for form, text in FORMS[:10:3]
    ),
    ("no preprocessor", remove("preprocessor_config.json"), "preprocessor_config.json"),
    ("patches of 0", edit("preprocessor_config.json", patch_size=0), "patch_size"),
    ("patches of text", edit("preprocessor_config.json", patch_size="16"), "patch_size"),
    ("other patches than the model's", edit("preprocessor_config.json", patch_size=14), "video processors that differ"),
    ("a mean of two", edit("preprocessor_config.json", image_mean=[0.5, 0.5]), "image_mean"),
    ("a mean of texts", edit("preprocessor_config.json", image_mean="abc"), "image_mean"),
    ("a deviation of 0", edit("preprocessor_config.json", image_std=[0, 0, 0]), "image_std"),
    ("a mean that is no number", edit("preprocessor_config.json", image_mean=[float("nan")] * 3), "image_mean"),
    ("a scale of text", edit("preprocessor_config.json", rescale_factor="x"), "rescale_factor"),
    ("a merge that is huge", edit("preprocessor_config.json", merge_size=10**9), "merge_size"),
]


@pytest.fixture(scope="module")
def expected(bert_checkpoint: Path) -> list[float]:
    with Reranker(bert_checkpoint, device="cpu", dtype="float32") as reranker:
        return reranker.score([("a query", "a document"), ("a query", "another")])


def outcome(folder: Path) -> list[float] | str:
    """The scores of a folder, or what is said of it."""
    try:
        reranker = Reranker(folder, device="cpu", dtype="float32")
    except ModelError as error:
        return str(error)
    with reranker:
        return reranker.score([("a query", "a document"), ("a query", "another")])


def test_the_folders_are_many() -> None:
    assert len(BERT) + len(VISION) >= 120


@pytest.mark.parametrize(("change", "said"), [case[1:] for case in BERT], ids=[case[0] for case in BERT])
def test_odd_folders(bert_checkpoint: Path, tmp_path: Path, expected: list[float], change: Change, said: str) -> None:
    folder = Path(shutil.copytree(bert_checkpoint, tmp_path / "model"))
    change(folder)
    found = outcome(folder)
    if said == SERVED:
        assert found == expected
    else:
        assert isinstance(found, str)
        assert said in found
        assert "\n" not in found
        assert len(found) < 1000


@pytest.mark.parametrize(("change", "said"), [case[1:] for case in VISION], ids=[case[0] for case in VISION])
def test_odd_folders_of_a_vision_model(qwen3_vl_checkpoint: Path, tmp_path: Path, change: Change, said: str) -> None:
    folder = Path(shutil.copytree(qwen3_vl_checkpoint, tmp_path / "model"))
    change(folder)
    found = outcome(folder)
    assert isinstance(found, str)
    assert said in found
    assert "\n" not in found


def test_patches_are_the_models_own(qwen3_vl_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen3_vl_checkpoint, tmp_path / "model"))
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        edit(name, patch_size=14)(folder)
    found = outcome(folder)
    assert isinstance(found, str)
    assert "`patch_size`" in found


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"prompts": []}, SERVED),
        ({"prompts": ["query: "]}, "prompts"),
        ({"prompts": {"query": 3}}, "prompts"),
        ({"prompts": {"document": ["a"]}}, "prompts"),
        ({"max_seq_length": "512"}, "max_seq_length"),
        ({"max_seq_length": -5}, "max_seq_length"),
        ({"max_seq_length": True}, "max_seq_length"),
        ({"do_lower_case": "no"}, "do_lower_case"),
        ({"pooling_mode_cls_token": "true", "pooling_mode_mean_tokens": False}, "pools by"),
        ({"pooling_mode": ["mean", 3]}, "pools by"),
        ({"include_prompt": False}, "include_prompt"),
    ],
    ids=str,
)
def test_odd_files_of_a_bi_encoder(
    xlmr_embedder_checkpoint: Path, tmp_path: Path, entries: dict[str, Any], said: str
) -> None:
    folder = Path(shutil.copytree(xlmr_embedder_checkpoint, tmp_path / "model"))
    for name in ("config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        edit(name, **entries)(folder)
    found = outcome(folder)
    assert isinstance(found, list) if said == SERVED else isinstance(found, str) and said in found


def aged(folder: Path, to: Path) -> Path:
    """A copy whose `.bin` files are in torch's format before 1.6."""
    copy = Path(shutil.copytree(folder, to / "aged"))
    files = sorted(copy.glob("pytorch_model*.bin"))
    assert files
    for file in files:
        tensors = torch.load(file, weights_only=True)
        torch.save(tensors, file, _use_new_zipfile_serialization=False)
        assert file.read_bytes()[:2] != b"PK"
    return copy


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("maker", [checkpoints.bert, checkpoints.qwen3])
def test_weights_in_torchs_old_format(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, maker: Callable[..., Path], shards: bool
) -> None:
    source = make_checkpoint(maker, storage=checkpoints.Storage(weights="bin", shards=shards))
    found = outcome(aged(source, tmp_path))
    assert isinstance(found, list)
    assert found == outcome(make_checkpoint(maker))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("keep", [0, 1, 5, 100, 1000, 100_000, -100_000, -10, -1])
def test_a_weight_file_that_is_cut_short(make_checkpoint: MakeCheckpoint, tmp_path: Path, old: bool, keep: int) -> None:
    source = make_checkpoint(checkpoints.bert, storage=checkpoints.Storage(weights="bin"))
    folder = aged(source, tmp_path) if old else Path(shutil.copytree(source, tmp_path / "new"))
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    found = outcome(folder)
    assert isinstance(found, str)
    assert "pytorch_model.bin is" in found
    assert "\n" not in found


class Bomb:
    """What runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_would_run_code(bert_checkpoint: Path, tmp_path: Path, old: bool) -> None:
    folder = Path(shutil.copytree(bert_checkpoint, tmp_path / "model"))
    mark = tmp_path / "ran"
    state_dict({"a": torch.ones(2), "b": Bomb(mark)}, _use_new_zipfile_serialization=not old)(folder)
    found = outcome(folder)
    assert isinstance(found, str)
    assert "cannot be loaded safely" in found or "loaded safely" in found
    assert not mark.exists()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Bomb(mark), file)
    assert isinstance(outcome(folder), str)
    assert not mark.exists()


COMMANDS: list[tuple[Change, list[str], str]] = [
    (write("config.json", DEEP), [], "config.json"),
    (edit("config.json", architectures=[1]), [], "architectures"),
    (index({"weight_map": {"a": "../outside.safetensors"}}), [], "outside"),
    (write("tokenizer_config.json", "[]"), [], "tokenizer_config.json"),
    (write("adapter_config.json", "{}"), [], "adapter"),
    (lambda folder: None, ["--hf-overrides", '{"num_attention_heads": 0}'], "num_attention_heads"),
    (lambda folder: None, ["--hf-overrides", '{"architectures": "BertModel"}'], "architectures"),
]


@pytest.mark.parametrize(("change", "flags", "said"), COMMANDS, ids=[case[2] for case in COMMANDS])
def test_the_command_says_one_line(
    bert_checkpoint: Path, tmp_path: Path, change: Change, flags: list[str], said: str
) -> None:
    folder = Path(shutil.copytree(bert_checkpoint, tmp_path / "model"))
    change(folder)
    done = subprocess.run(
        [sys.executable, *SERVE, str(folder), "--port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(),
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("INFO:")]
    assert line.startswith("rerankd: error: ")
    assert said in line
