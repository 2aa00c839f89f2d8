"""llama.cpp as a peer of the benchmark: its file is the checkpoint, and its scores come back in the order asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from math import exp
from pathlib import Path

import pytest
from benchmarks.engines import Engine, Spec, converted
from gguf import SpecialVocab

from rerankd import Reranker
from rerankd.core import RerankdError
from rerankd.models.checkpoint.gguf.file import GgufFile
from tests.texts import DOCUMENTS, QUERIES

SERVER = '''#!{python}
"""Stands for llama-server: a document's logit is a thousandth of its words; the best comes first."""
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({{"build_info": "b1"}})

    def do_POST(self):
        documents = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["documents"]
        found = [{{"index": i, "relevance_score": len(text.split()) / 1000}} for i, text in enumerate(documents)]
        self.answer({{"results": sorted(found, key=lambda one: -one["relevance_score"])}})

    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

flags = dict(zip(sys.argv[1:], sys.argv[2:]))
assert open(flags["--model"], "rb").read(4) == b"GGUF"
HTTPServer((flags["--host"], int(flags["--port"])), Handler).serve_forever()
'''


def scores(model: Path) -> list[float]:
    with Reranker(model, device="cpu", dtype="float32") as reranker:
        return [one.score for one in reranker.rerank(QUERIES[0], DOCUMENTS).in_request_order()]


@pytest.mark.parametrize("family", ["bert", "xlmr"])
def test_the_file_is_the_checkpoint(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Scores of rerankd's own reader; the template of pairs as the package gguf finds it in tokenizer.json."""
    checkpoint: Path = request.getfixturevalue(f"{family}_checkpoint")
    path = converted(checkpoint, "float32", tmp_path) / "model.gguf"
    found = scores(path)
    assert found == pytest.approx(scores(checkpoint), abs=2e-6)
    assert max(found) - min(found) > 0.1
    file, known = GgufFile(path), SpecialVocab(checkpoint)
    for name in ("bos", "eos", "sep"):
        assert file.get(f"tokenizer.ggml.add_{name}_token", bool) == known.add_special_token[name]
    for name, entry in {"bos": "bos", "eos": "eos", "sep": "seperator", "unk": "unknown", "pad": "padding"}.items():
        assert file.get(f"tokenizer.ggml.{entry}_token_id", int) == known.special_token_ids[name]


def test_matrices_of_eight_bits_and_rows_that_are_added(xlmr_checkpoint: Path, tmp_path: Path) -> None:
    file = GgufFile(converted(xlmr_checkpoint, "q8_0", tmp_path) / "model.gguf")
    assert {file.kind(name) for name in ("token_embd.weight", "blk.0.ffn_up.weight", "cls.weight")} == {"Q8_0"}
    assert {file.kind(name) for name in ("token_types.weight", "position_embd.weight", "cls.bias")} == {"F32"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "llama-server"
    path.write_text(SERVER.format(python=sys.executable))
    path.chmod(0o755)
    return path


def test_scores_come_in_the_order_of_the_request(bert_checkpoint: Path, server: Path) -> None:
    """A pair beyond the model's positions loses the end of its document."""
    documents = [" ".join(["word"] * count) for count in (5, 3000, 20)]
    with Engine(Spec.parse("llama:q8_0"), bert_checkpoint, {"llama": server}) as engine:
        assert (engine.about["dtype"], engine.about["version"]) == ("int8", "b1")
        found = engine.score("one two", documents)["scores"]
    kept = (5, 512 - len(["[CLS]", "one", "two", "[SEP]", "[SEP]"]), 20)
    assert found == pytest.approx([1 / (1 + exp(-words / 1000)) for words in kept])


def test_an_engine_is_refused_in_one_line(bert_checkpoint: Path) -> None:
    with pytest.raises(RerankdError, match="llama runs float32, float16, bfloat16, q8_0"):
        Spec.parse("llama:int8")
    with pytest.raises(RerankdError, match="llama:q8_0 needs --llama-server"), \
            Engine(Spec.parse("llama:q8_0"), bert_checkpoint, {}):  # fmt: skip
        pass
