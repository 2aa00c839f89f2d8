"""vLLM's offline interface: its documented script, and the forms that its `score` takes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rerankd import LLM, Reranker
from tests.references import Pair
from tests.texts import DOCUMENTS, QUERIES

SCRIPT = Path(__file__).parent / "server" / "clients" / "vllm_offline.py.txt"
PLAIN = [
    ("What is the capital of China?", "The capital of China is Beijing."),
    (
        "What is the capital of China?",
        "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is "
        "responsible for the movement of planets around the sun.",
    ),
]


def test_vllms_offline_script_prints_the_plain_texts_scores_behind_two_bars(
    qwen3_vl_checkpoint: Path, tmp_path: Path
) -> None:
    script = tmp_path / "offline.py"
    script.write_text(SCRIPT.read_text().replace("{model}", str(qwen3_vl_checkpoint)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    with Reranker(qwen3_vl_checkpoint) as reranker:
        assert ast.literal_eval(done.stdout) == pytest.approx(reranker.score(PLAIN), abs=1e-5)
    first, second = done.stderr.find("Adding requests: 100%"), done.stderr.find("Processed prompts: 100%")
    assert 0 <= first < second
    assert re.search(r"2/2 .*est\. speed input: \d+\.\d\d toks/s, output: 0\.00 toks/s", done.stderr)


@pytest.fixture(scope="module")
def llm(qwen3_checkpoint: Path) -> Iterator[LLM]:
    with LLM(str(qwen3_checkpoint), runner="pooling", dtype="float32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def reranker(qwen3_checkpoint: Path) -> Iterator[Reranker]:
    with Reranker(qwen3_checkpoint, dtype="float32") as loaded:
        yield loaded


Q, D = QUERIES[0], list(DOCUMENTS[:3])


@pytest.mark.parametrize(
    ("data_1", "data_2", "pairs"),
    [
        (Q, D[0], [(Q, D[0])]),
        (Q, D, [(Q, d) for d in D]),
        ([Q], D, [(Q, d) for d in D]),
        (list(QUERIES[:3]), D, list(zip(QUERIES[:3], D, strict=True))),
        ({"content": [{"type": "text", "text": Q}]}, {"content": [{"type": "text", "text": D[0]}]}, [(Q, D[0])]),
        (Q, [D[0], {"content": [{"type": "text", "text": D[1]}]}], [(Q, D[0]), (Q, D[1])]),
        (Q, [], []),
    ],
)
def test_pairs_are_one_to_one_one_to_many_or_many_to_many(
    llm: LLM, reranker: Reranker, data_1: Any, data_2: Any, pairs: list[Pair]
) -> None:
    outputs = llm.score(data_1, data_2, use_tqdm=False)
    assert [output.outputs.score for output in outputs] == pytest.approx(reranker.score(pairs), abs=1e-5)
    assert all(output.finished for output in outputs)


def test_outputs_carry_the_whole_prompt_and_ids_of_their_own(llm: LLM, reranker: Reranker) -> None:
    outputs = llm.score(Q, D, use_tqdm=False)
    lengths = [document.prompt_tokens for document in reranker.rerank(Q, D).in_request_order()]
    assert [len(output.prompt_token_ids) for output in outputs] == lengths
    assert outputs[0].prompt_token_ids[:2] == [151644, 8948]  # <|im_start|>system
    assert [bool(output.num_cached_tokens) for output in outputs] == [False, True, True]
    assert len({output.request_id for output in outputs + llm.score(Q, D, use_tqdm=False)}) == 6


def test_a_chat_template_of_a_call(llm: LLM, reranker: Reranker) -> None:
    template = "{{ query[0].text }} -> {{ document[0].text }}"
    scores = [output.outputs.score for output in llm.score(Q, D, chat_template=template, use_tqdm=False)]
    assert scores != pytest.approx(reranker.score([(Q, d) for d in D]), abs=1e-3)
    again = [output.outputs.score for output in llm.score(Q, D, chat_template=template, use_tqdm=False)]
    assert again == pytest.approx(scores, abs=1e-6)


def test_a_limit_on_tokens_cuts_and_says_so(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    (output,) = llm.score("q", DOCUMENTS[-1], truncate_prompt_tokens=100, use_tqdm=False)
    assert len(output.prompt_token_ids) == 100
    assert "cut to fit" in caplog.text
    (whole,) = llm.score("q", DOCUMENTS[-1], truncate_prompt_tokens=-1, use_tqdm=False)
    assert len(whole.prompt_token_ids) > 300


@pytest.mark.parametrize(
    ("data_1", "data_2", "problem"),
    [
        ([Q, Q], D, "data_1: has 2 queries for 3 documents"),
        (Q, [D[0], 3], r"data_2\[1\]"),
        ({"x": 1}, D, r"data_1\[0\]"),
    ],
)
def test_what_cannot_be_scored_names_its_argument(llm: LLM, data_1: Any, data_2: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        llm.score(data_1, data_2, use_tqdm=False)


def test_other_runners_and_arguments(qwen3_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="'generate' does not score"):
        LLM(str(qwen3_checkpoint), runner="generate")
    with LLM(str(qwen3_checkpoint), tensor_parallel_size=1, enforce_eager=True):
        assert "no effect here: enforce_eager, tensor_parallel_size" in caplog.text
