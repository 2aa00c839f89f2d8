"""One engine in a process of its own, for `compare.py`: answers score requests, a JSON object a line.

usage: peer.py ENGINE MODEL VARIANT

ENGINE is rerankd, sentence-transformers or vllm; VARIANT a dtype, `auto`, or (rerankd) `int8`. This file imports
nothing of the project for the other two, so that an interpreter of another venv can run it.

out, once loaded: {"dtype", "version", "load_seconds", "memory_bytes"}
in:  {"query", "documents"}
out: {"seconds", "scores"} and from rerankd {"prompt_tokens", "computed_tokens"}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
Score = Callable[[str, list[str]], Answer]

# What Qwen3-Reranker's authors put around a query and a document.
QWEN3_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web '
    "search query, retrieve relevant passages that answer the query\n<Query>: "
)
QWEN3_AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def is_decoder(model: str) -> bool:
    return bool(json.loads((Path(model) / "config.json").read_text())["architectures"][0] == "Qwen3ForCausalLM")


def halves(model: str) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """How a query and a document are written for this model; put together they are the authors' prompt."""
    if is_decoder(model):
        return lambda query: f"{QWEN3_BEFORE}{query}\n", lambda text: f"<Document>: {text}{QWEN3_AFTER}"
    return str, str


def rerankd(model: str, variant: str) -> tuple[Score, Answer]:
    from rerankd.reranker import Reranker

    reranker = Reranker(model, **({"quantization": variant} if variant == "int8" else {"dtype": variant}))

    def score(query: str, documents: list[str]) -> Answer:
        result = reranker.rerank(query, documents, show_progress=False)
        ordered = result.in_request_order()
        return {
            "scores": [document.score for document in ordered],
            "prompt_tokens": [document.prompt_tokens for document in ordered],
            "computed_tokens": result.computed_tokens,
        }

    dtype = variant if variant == "int8" else reranker.info.dtype
    return score, {"dtype": dtype, "version": version("rerankd")}


def sentence_transformers(model: str, variant: str) -> tuple[Score, Answer]:
    import torch
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(model, device="cpu", model_kwargs={"dtype": getattr(torch, variant)})
    write_query, write_document = halves(model)

    def score(query: str, documents: list[str]) -> Answer:
        pairs = [(write_query(query), write_document(document)) for document in documents]
        return {"scores": encoder.predict(pairs, show_progress_bar=False).tolist()}

    return score, {"dtype": variant, "version": version("sentence-transformers")}


def vllm(model: str, variant: str) -> tuple[Score, Answer]:
    from vllm import LLM

    decoder = is_decoder(model)
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }
    engine = LLM(
        model=model,
        runner="pooling",
        dtype=variant,
        hf_overrides=overrides if decoder else {},
        max_model_len=4096 if decoder else None,
    )
    write_query, write_document = halves(model)

    def score(query: str, documents: list[str]) -> Answer:
        texts = [write_document(document) for document in documents]
        # The others cut what is too long; by itself vLLM refuses it.
        cut = {"truncate_prompt_tokens": -1}
        outputs = engine.score(write_query(query), texts, use_tqdm=False, tokenization_kwargs=cut)
        return {"scores": [output.outputs.score for output in outputs]}

    return score, {"dtype": str(engine.llm_engine.model_config.dtype).removeprefix("torch."), "version": vllm_version()}


def vllm_version() -> str:
    import vllm

    return str(vllm.__version__)


ENGINES = {"rerankd": rerankd, "sentence-transformers": sentence_transformers, "vllm": vllm}


def memory_bytes() -> int | None:
    """Resident memory of this process and all below it, or None where there is no /proc.

    Pages that several of them share count for each.
    """
    parents, resident = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            pid = int(fields["Pid"])
            parents[pid] = int(fields["PPid"])
            resident[pid] = int(fields.get("VmRSS", "0 kB").split()[0]) * 1024
        except OSError:
            continue

    def below(pid: int) -> int:
        return resident[pid] + sum(below(child) for child, parent in parents.items() if parent == pid)

    return below(os.getpid()) if os.getpid() in resident else None


def main() -> None:
    engine, model, variant = sys.argv[1:]
    # Engines print as they please; what they print goes to stderr, and the answers have stdout to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    start = time.perf_counter()
    score, about = ENGINES[engine](model, variant)
    loaded = time.perf_counter() - start
    # Weights that are mapped from a file come into memory with the first request.
    score("warm", ["up", "warm up"])
    say({**about, "load_seconds": loaded, "memory_bytes": memory_bytes()})
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        answer = score(request["query"], request["documents"])
        say({"seconds": time.perf_counter() - start, **answer})


if __name__ == "__main__":
    main()
