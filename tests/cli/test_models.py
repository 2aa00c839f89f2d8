"""`rerankd models`: what of a cache can be served, and why the rest cannot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.gguf_files import write_gguf
from tests.server.launched import environment

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cache(folder: Path, name: str, checkpoint: Path, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """A model as the hub's cache holds it: a snapshot of links to blobs."""
    repository = folder / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        if file.is_file():
            blob = repository / "blobs" / f"{commit[:6]}{number}"
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(blob)
    if ref:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return snapshot


def run(home: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rerankd", "models", *words],
        capture_output=True, text=True, env=environment(HF_HOME=str(home), HF_HUB_CACHE=str(home / "hub")), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_what_can_be_served_is_listed(bert_checkpoint: Path, qwen3_checkpoint: Path, tmp_path: Path) -> None:
    cache(tmp_path, "cross-encoder/small", bert_checkpoint)
    cache(tmp_path, "Qwen/Qwen3-Reranker-0.6B", qwen3_checkpoint)
    cache(tmp_path, "Qwen/Qwen3-Reranker-0.6B", qwen3_checkpoint, "f" * 40, ref=None)
    (tmp_path / "gguf").mkdir()
    write_gguf(bert_checkpoint, tmp_path / "gguf" / "model.gguf", "Q8_0")
    cache(tmp_path, "cross-encoder/small-gguf", tmp_path / "gguf")
    other = cache(tmp_path, "openai/gpt2", bert_checkpoint) / "config.json"
    config = {**json.loads(other.read_text()), "architectures": ["GPT2LMHeadModel"]}
    other.unlink()
    other.write_text(json.dumps(config))
    half = cache(tmp_path, "half/fetched", bert_checkpoint)
    next(half.glob("*.safetensors")).unlink()
    shown = run(tmp_path)
    head, *rows = shown.splitlines()
    assert head.split() == ["MODEL", "FAMILY", "ARCHITECTURE", "RECIPE", "TOKENS", "SIZE"]
    listed = {row.split()[0]: row.split()[1:3] for row in rows[:-1]}
    assert listed.pop("sentence-transformers/all-MiniLM-L6-v2") == ["bi-encoder", "BertModel"]
    assert listed == {
        "cross-encoder/small": ["cross-encoder", "BertForSequenceClassification"],
        "cross-encoder/small-gguf": ["cross-encoder", "BertForSequenceClassification"],
        "Qwen/Qwen3-Reranker-0.6B": ["decoder", "Qwen3ForCausalLM"],
        "Qwen/Qwen3-Reranker-0.6B@ffffffff": ["decoder", "Qwen3ForCausalLM"],
    }
    assert rows[-1] == "2 more in the cache cannot be served; --all says why."
    why = run(tmp_path, "--all")
    assert re.search(r"^openai/gpt2: .*GPT2LMHeadModel", why, re.MULTILINE)
    assert re.search(r"^half/fetched: .*safetensors", why, re.MULTILINE)


def test_an_empty_cache(tmp_path: Path) -> None:
    assert "sentence-transformers/all-MiniLM-L6-v2" in run(tmp_path)
