"""GGUF files score as the checkpoints that they were made of, with the numbers that their tensors stand for."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rerankd import Reranker
from rerankd.cli.main import _rerankd
from rerankd.core import ModelError
from rerankd.models.checkpoint.gguf.config import config_of
from rerankd.models.checkpoint.gguf.file import GgufFile
from rerankd.models.checkpoint.gguf.tensors import GgufTensors
from rerankd.prompts.gguf import unfold
from rerankd.prompts.tokenizer import load_tokenizer
from tests import checkpoints
from tests.conftest import MakeCheckpoint
from tests.gguf_files import write_gguf
from tests.texts import DOCUMENTS, QUERIES


def scores(model: Path) -> list[float]:
    with Reranker(model, device="cpu", dtype="float32") as reranker:
        return [one.score for one in reranker.rerank(QUERIES[0], DOCUMENTS).in_request_order()]


@pytest.fixture(scope="module")
def qwen3_file(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A reranker's checkpoint, a GGUF file of it, and a checkpoint of the numbers that its tensors stand for."""
    source, folder = make_checkpoint(checkpoints.qwen3, tied=False), tmp_path_factory.mktemp("gguf")
    plain = Path(shutil.copytree(source, folder / "plain"))
    return source, write_gguf(source, folder / "model.gguf", "Q8_0", plain), plain


def test_a_decoder_scores_by_the_rows_of_yes_and_no(qwen3_file: tuple[Path, Path, Path]) -> None:
    found = scores(qwen3_file[1])
    assert found == pytest.approx(scores(qwen3_file[2]), abs=2e-6)
    assert max(found) - min(found) > 0.1


@pytest.mark.parametrize(
    ("maker", "kind"),
    [
        (checkpoints.xlmr, "Q4_0"),
        (checkpoints.xlmr, "F16"),
        (checkpoints.bert, "F32"),
        (checkpoints.bert, "BF16"),
        (checkpoints.bert, "Q5_1"),
    ],
)
def test_scores_are_those_of_the_checkpoint(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, maker: Any, kind: str
) -> None:
    source = make_checkpoint(maker)
    plain = Path(shutil.copytree(source, tmp_path / "plain"))
    (tmp_path / "folder").mkdir()
    file = write_gguf(source, tmp_path / "folder" / "model.gguf", kind, plain)
    found = scores(file)
    assert found == pytest.approx(scores(plain), abs=2e-6)
    assert max(found) - min(found) > 0.1
    if kind == "F32":
        assert scores(file.parent) == found == pytest.approx(scores(source), abs=2e-6)


TEXTS = [
    *DOCUMENTS[:12],
    "Ünïcödé naïve ΑΒΓ 中文字符 日本語 한국어 😀 e\u0301",
    "  a\n\nb\t c  ",
    "",
    "<|im_end|> [SEP] </s>",
]


@pytest.mark.parametrize("maker", [None, checkpoints.xlmr, checkpoints.bert])
def test_texts_are_parted_alike(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, qwen3_file: tuple[Path, Path, Path], maker: Any
) -> None:
    source = make_checkpoint(maker) if maker else qwen3_file[0]
    own = load_tokenizer(unfold(write_gguf(source, tmp_path / "model.gguf") if maker else qwen3_file[1]))
    known = load_tokenizer(source)
    for special in (False, True):
        assert own.ids(TEXTS, special) == known.ids(TEXTS, special)
    pairs = [[one.tokenizer.encode("a query", text) for text in TEXTS] for one in (own, known)]
    assert [pair.ids for pair in pairs[0]] == [pair.ids for pair in pairs[1]]
    assert [pair.type_ids for pair in pairs[0]] == [pair.type_ids for pair in pairs[1]]


def q4_k(block: np.ndarray) -> list[float]:
    """256 numbers of ggml's block_q4_K: two halves, 12 bytes of 6-bit scales and minima, 128 bytes of nibbles."""
    scale, minimum = (float(block[i : i + 2].view(np.float16)[0]) for i in (0, 2))
    packed, codes = [int(byte) for byte in block[4:16]], [int(byte) for byte in block[16:]]
    found = []
    for group in range(8):
        if group < 4:
            s, m = packed[group] & 63, packed[group + 4] & 63
        else:
            s = (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4)
            m = (packed[group + 4] >> 4) | (packed[group] >> 6 << 4)
        part = codes[group // 2 * 32 :][:32]
        found += [scale * s * (code >> 4 if group % 2 else code & 15) - minimum * m for code in part]
    return found


def q6_k(block: np.ndarray) -> list[float]:
    """256 numbers of ggml's block_q6_K: low nibbles, upper two bits, 16 signed scales, one half."""
    low, high = [int(byte) for byte in block[:128]], [int(byte) for byte in block[128:192]]
    scales, scale = block[192:208].view(np.int8), float(block[208:210].view(np.float16)[0])
    found = [0.0] * 256
    for half in range(2):
        for i in range(32):
            for part in range(4):
                nibble = low[64 * half + i + 32 * (part % 2)] >> (4 if part > 1 else 0) & 15
                code = (nibble | (high[32 * half + i] >> (2 * part) & 3) << 4) - 32
                found[128 * half + 32 * part + i] = scale * int(scales[8 * half + i // 16 + 2 * part]) * code
    return found


@pytest.mark.parametrize(("kind", "size", "halves", "read"), [("Q4_K", 144, [0, 2], q4_k), ("Q6_K", 210, [208], q6_k)])
def test_k_quants_are_read_as_ggml_lays_them_out(
    bert_checkpoint: Path, tmp_path: Path, kind: str, size: int, halves: list[int], read: Any
) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (3, size), dtype=np.uint8)
    for place in halves:
        blocks[:, place : place + 2] = np.array([0.5, -0.25, 2.0], dtype=np.float16).view(np.uint8).reshape(3, 2)
    path = write_gguf(bert_checkpoint, tmp_path / "model.gguf", extra=blocks, kind_of_extra=kind)
    tensors = GgufTensors(path)
    expected = torch.tensor([read(block) for block in blocks])
    assert tensors.shape("extra.weight") == (3, 256)
    torch.testing.assert_close(tensors.read("extra.weight"), expected)
    torch.testing.assert_close(tensors.read_rows("extra.weight", [2, 0]), expected[[2, 0]])
    part = tensors.read_part("extra.weight", slice(1, 3), slice(7, 9))
    torch.testing.assert_close(part, expected[1:3, 7:9])
    assert kind in tensors.description


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (checkpoints.bert, {"architecture": "llama"}, "has the architecture 'llama'; only qwen3 and bert are supported"),
    (checkpoints.qwen3, {"rank": False, "qwen3.pooling_type": 3}, "`pooling_type` is that of an embedding model"),
    (checkpoints.qwen3, {"rank": False, "tokenizer.ggml.add_eos_token": True}, "add_eos_token` is that of"),
    (checkpoints.bert, {"tokenizer.ggml.model": "gpt2"}, "a BERT model with the tokenizer 'gpt2'"),
    (checkpoints.bert, {"bert.pooling_type": 2}, "is not a reranker: its `bert.pooling_type` is not 4"),
    (checkpoints.bert, {"skip": ("cls.weight", "cls.bias")}, "leaves out the pooler of BERT rerankers"),
    (checkpoints.bert, {"skip": ("blk.1.attn_q.weight",)}, "has no tensor `blk.1.attn_q.weight`"),
    (checkpoints.bert, {"skip": ("token_embd.weight",)}, "has no tensor `token_embd.weight`"),
    (checkpoints.bert, {"bert.block_count": 2}, "`num_hidden_layers` is 2, but the weights have 3"),
    (checkpoints.bert, {"bert.embedding_length": "64"}, "`bert.embedding_length` must be int, not '64'"),
    (checkpoints.bert, {"tokenizer.ggml.tokens": ["a"]}, "has 1 tokens and 30522 kinds"),
    (checkpoints.bert, {"split.count": 2}, "is one part of several"),
    (checkpoints.xlmr, {"tokenizer.ggml.scores": [0.5]}, "tokens and 1 scores"),
    (checkpoints.xlmr, {"tokenizer.ggml.bos_token_id": 10**6}, "`tokenizer.ggml.bos_token_id` is 1000000"),
]


@pytest.mark.parametrize(("maker", "changes", "said"), REFUSED, ids=[case[2] for case in REFUSED])
def test_what_is_not_read_is_refused_in_one_line(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, maker: Any, changes: dict[str, Any], said: str
) -> None:
    path = write_gguf(make_checkpoint(maker), tmp_path / "model.gguf", **changes)
    with pytest.raises(ModelError) as raised:
        Reranker(path, device="cpu", dtype="float32")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_none(tmp_path: Path, bert_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    whole = write_gguf(bert_checkpoint, tmp_path / "other.gguf").read_bytes()
    for content in (b"", b"GGUF", b"x" * 100, whole[:1000], whole[:-1000]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.gguf is not a GGUF file, or it is damaged: .+\.$"):
            Reranker(path, device="cpu")
    with pytest.raises(ModelError, match=r"several GGUF files \(model\.gguf, other\.gguf\); give the path of one"):
        Reranker(tmp_path, device="cpu")
    with pytest.raises(ModelError, match="is a file, but not a GGUF file"):
        Reranker(bert_checkpoint / "config.json", device="cpu")
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(ModelError, match=r"pip install 'rerankd\[gguf\]'"):
        Reranker(path, device="cpu")


def header(name: str, kind: int, value: bytes) -> bytes:
    """A GGUF file with one entry of the metadata, whose type has the number `kind`, and no tensors."""
    return struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, len(name)) + name.encode() + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "content",
    [
        header("general.alignment", 4, struct.pack("<I", 0)),
        header("general.alignment", 5, struct.pack("<i", -32)),
        header("general.alignment", 8, struct.pack("<Q", 2) + b"32"),
        header("a", 9, struct.pack("<IQ", 9, 1) * 10_000),
    ],
    ids=["alignment of 0", "negative alignment", "alignment as a text", "deeply nested array"],
)
def test_damaged_metadata_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.gguf is not a GGUF file, or it is damaged: .+\.$"):
        GgufFile(tmp_path / "model.gguf")


def test_inspect_names_the_file(qwen3_file: tuple[Path, Path, Path]) -> None:
    path = qwen3_file[1]
    done = CliRunner().invoke(_rerankd(), ["inspect", str(path), "--json", "--device", "cpu", "--dtype", "float32"])
    found = json.loads(done.stdout)
    assert (found["folder"], found["recipe"]) == (str(path), "qwen3-reranker")
    assert found["stored"] == "GGUF; dequantised to float32 as they are read"
    assert found["head"] == "classifier of 2 labels: the share of the second"
    assert found["not_understood"] == []


def test_a_decoder_without_a_head_is_a_language_model(qwen3_checkpoint: Path, tmp_path: Path) -> None:
    short = {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.token_type": [1]}
    scaling = {"qwen3.rope.scaling.type": "yarn", "qwen3.rope.scaling.factor": 4.0}
    path = write_gguf(qwen3_checkpoint, tmp_path / "model.gguf", rank=False, **short, **scaling)
    config = config_of(GgufFile(path))
    known = json.loads((qwen3_checkpoint / "config.json").read_text())
    for name in ("architectures", "model_type", "hidden_size", "head_dim", "num_key_value_heads", "vocab_size"):
        assert config[name] == known[name]
    assert config["_name_or_path"] == "Qwen3-Reranker-Tiny"
    assert config["tie_word_embeddings"] is True
    assert config["rope_parameters"] == {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}
    labels = {"qwen3.classifier.output_labels": ["good", "bad"]}
    with pytest.raises(ModelError, match="must be yes and no"):
        config_of(GgufFile(write_gguf(qwen3_checkpoint, tmp_path / "other.gguf", **short, **labels)))
