"""The commands and clients of the two documents that users come with, with nothing changed but port and model.

The documents: SGLang's "Rerank Models" and vLLM Ascend's "Qwen3-VL-Reranker". Their scripts and templates are in
`clients/`, written anew.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerankd import Reranker
from tests.server.launched import LAUNCH_SERVER, SERVE, Launched, launched

CLIENTS = Path(__file__).parent / "clients"


def run_client(name: str, server: Launched, model: str) -> str:
    """What a client prints."""
    script = (CLIENTS / f"{name}.txt").read_text().replace("{url}", server.url).replace("{model}", model)
    shell = ["bash", "-ec", script] if name.endswith(".sh") else [sys.executable, "-c", script]
    return subprocess.run(shell, check=True, capture_output=True, text=True, timeout=120).stdout


def literals(name: str) -> dict[str, object]:
    """The payload or the variables that a Python client sends."""
    found: dict[str, object] = {}
    for node in ast.parse((CLIENTS / f"{name}.txt").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


@pytest.fixture(scope="module")
def bge(xlmr_checkpoint: Path) -> Iterator[Launched]:
    arguments = (
        "--host 0.0.0.0 --disable-radix-cache --chunked-prefill-size -1 --attention-backend triton --is-embedding"
    )
    with launched(LAUNCH_SERVER, "--model-path", str(xlmr_checkpoint), *arguments.split()) as server:
        yield server


def test_sglang_bge(bge: Launched, xlmr_checkpoint: Path) -> None:
    payload = literals("sglang_bge.py")["payload"]
    assert isinstance(payload, dict)
    with Reranker(str(xlmr_checkpoint)) as reranker:
        best = reranker.rerank(payload["query"], payload["documents"]).documents[0]
    printed = run_client("sglang_bge.py", bge, "BAAI/bge-reranker-v2-m3")
    assert printed == f"Score: {best.score:.2f} - Document: '{payload['documents'][best.index]}'\n"


def test_every_flag_without_effect_is_logged_once(bge: Launched) -> None:
    for flag in ("--disable-radix-cache", "--chunked-prefill-size", "--attention-backend", "--is-embedding"):
        assert len(re.findall(rf"{flag} is SGLang's and has no effect here: .+\.\n", bge.said)) == 1


def test_sglang_qwen3_by_curl(qwen3_checkpoint: Path) -> None:
    template = str(CLIENTS / "sglang_qwen3_reranker.jinja")
    arguments = ["--trust-remote-code", "--disable-radix-cache", "--host", "0.0.0.0", "--chat-template"]
    with launched(LAUNCH_SERVER, "--model-path", str(qwen3_checkpoint), *arguments, template) as server:
        printed = run_client("sglang_qwen3.sh", server, "Qwen3-Reranker-0.6B")
    documents = ["法国的首都是巴黎。", "德国的首都是柏林。", "香蕉是黄色的水果。"]
    with Reranker(str(qwen3_checkpoint)) as reranker:
        expected = reranker.rerank(
            "法国首都是哪里？",
            documents,
            "Given a web search query, retrieve relevant passages that answer the query.",
        ).documents[:2]
    answer = json.loads(printed)
    assert [(one["index"], one["document"]) for one in answer] == [
        (one.index, documents[one.index]) for one in expected
    ]
    assert [one["score"] for one in answer] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_sglang_qwen3_vl_with_text(qwen3_checkpoint: Path) -> None:
    template = CLIENTS / "sglang_qwen3_vl_reranker.jinja"
    arguments = ["--trust-remote-code", "--disable-radix-cache", "--host", "0.0.0.0", "--chat-template"]
    with launched(LAUNCH_SERVER, "--model-path", str(qwen3_checkpoint), *arguments, str(template)) as server:
        printed = run_client("sglang_qwen3_vl_text.py", server, "Qwen3-VL-Reranker-2B")
    payload = literals("sglang_qwen3_vl_text.py")["payload"]
    assert isinstance(payload, dict)
    with Reranker(str(qwen3_checkpoint), chat_template=template) as reranker:
        ranked = reranker.rerank(payload["query"], payload["documents"], payload["instruct"]).documents
    assert printed.splitlines() == [
        f"Score: {one.score:.4f} - {payload['documents'][one.index][:60]}..." for one in ranked
    ]


def test_vllm_templated_client(qwen3_vl_checkpoint: Path, tmp_path: Path) -> None:
    template = tmp_path / "qwen3_vl_reranker.jinja"
    template.write_text((CLIENTS / "vllm_qwen3_vl_reranker.jinja").read_text())
    overrides = (
        '{"architectures": ["Qwen3VLForSequenceClassification"],"classifier_from_token": ["no", "yes"],'
        '"is_original_qwen3_reranker": true}'
    )
    model = str(qwen3_vl_checkpoint)
    arguments = ["--runner", "pooling", "--max-model-len", "4096", "--hf_overrides", overrides]
    arguments += ["--chat-template", "./qwen3_vl_reranker.jinja"]
    with launched(SERVE, model, *arguments, cwd=tmp_path) as server:
        answer = ast.literal_eval(run_client("vllm_templated.py", server, model))
    sent = literals("vllm_templated.py")
    query, documents, suffix = sent["query"], sent["documents"], sent["suffix"]
    assert isinstance(query, str)
    assert isinstance(documents, list)
    with Reranker(model, chat_template=template) as reranker:
        result = reranker.rerank(query, documents, str(sent["instruction"]))
    assert re.fullmatch("rerank-[0-9a-f]{16}", answer.pop("id"))
    scores = [one.pop("relevance_score") for one in answer["results"]]
    assert scores == pytest.approx([one.score for one in result.documents], abs=1e-5)
    assert answer == {
        "model": model,
        "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
        "results": [
            {
                "index": one.index,
                "document": {"text": f"<Document>: {documents[one.index]}{suffix}", "multi_modal": None},
            }
            for one in result.documents
        ],
    }
