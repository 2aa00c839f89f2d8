"""The whole engine on text: a folder with random weights and a tokenizer trained on the spot, offline and over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from benchmarks.gpu.models import shapes
from benchmarks.gpu.shapes import DECODER, VOCABULARY, RandomCheckpoint, Shape
from benchmarks.gpu.timing import Bench
from rerankd import Reranker
from rerankd.bench.workloads import Corpus

ANSWERS = ["yes", "no"]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
WORDS, SHORT_WORDS = 120, 15
"""Words of a document: some 165 tokens, and some 20."""


def text(bench: Bench) -> None:
    """Pairs a second of text in requests of 100 documents, and the latency of 10 short ones."""
    for shape in shapes(bench):
        if shape.name not in ("qwen3-0.6b", "bge-v2-m3", "minilm-l6", "qwen3-small", "xlmr-small"):
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, shape, bench.device)
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
            requests = [batch(100 if not bench.small else 3, WORDS, i) for i in range(40 if not bench.small else 2)]
            short = batch(10 if not bench.small else 2, SHORT_WORDS, 99)
            options: dict[str, Any] = {"recipe": "qwen3-reranker"} if shape.architecture == DECODER else {}
            began = time.perf_counter()
            with Reranker(folder, device=str(bench.device), **options) as reranker:
                loaded = time.perf_counter() - began
                offline(bench, shape, reranker, requests, short, loaded)
            try:
                online(bench, shape, folder, requests, short)
            except (RuntimeError, OSError) as error:  # the other models are worth having
                bench.tell(step="text", model=shape.name, way="http", failed=repr(error)[-300:])


def offline(bench: Bench, shape: Shape, reranker: Reranker, requests: Sequence[Any], short: Any, loaded: float) -> None:
    reranker.rerank(*requests[0])
    tokens = sum(one.prompt_tokens for one in reranker.rerank(*requests[0]).documents)
    latency = bench.median(lambda: reranker.rerank(*short), 1.0)
    began = time.perf_counter()
    concurrently(lambda one: reranker.rerank(*one), requests)
    seconds = time.perf_counter() - began
    pairs = sum(len(documents) for _, documents in requests)
    bench.tell(
        step="text", model=shape.name, way="offline", pairs_per_second=round(pairs / seconds), ready_s=round(loaded, 1),
        tokens_per_pair=round(tokens / len(requests[0][1])), short_ms=round(latency * 1e3, 2),
    )  # fmt: skip


def online(bench: Bench, shape: Shape, folder: Path, requests: Sequence[Any], short: Any) -> None:
    with server(folder, bench.device, shape) as (port, ready):
        bodies = [json.dumps({"query": query, "documents": documents}).encode() for query, documents in requests]
        small = json.dumps({"query": short[0], "documents": short[1]}).encode()

        def post(body: bytes) -> None:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/rerank", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=120) as answer:
                answer.read()

        concurrently(post, bodies[:8])
        latency = bench.median(lambda: post(small), 1.0)
        began = time.perf_counter()
        concurrently(post, bodies)
        seconds = time.perf_counter() - began
        bench.tell(
            step="text", model=shape.name, way="http", ready_s=round(ready, 1), short_ms=round(latency * 1e3, 2),
            pairs_per_second=round(sum(len(documents) for _, documents in requests) / seconds),
        )  # fmt: skip


def batch(documents: int, words: int, seed: int) -> tuple[str, list[str]]:
    corpus = Corpus(seed)
    return corpus.text(10), [corpus.text(words) for _ in range(documents)]


def concurrently(call: Any, items: Sequence[Any], callers: int = 8) -> None:
    """Eight callers, each with its next item as soon as its last is done."""
    waiting, lock, errors = iter(items), threading.Lock(), []

    def run() -> None:
        while True:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            try:
                call(item)
            except Exception as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=run) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def write(folder: Path, shape: Shape, device: torch.device) -> None:
    """config.json, weights and a byte-level BPE tokenizer of English text."""
    checkpoint = RandomCheckpoint(shape, device)
    tensors = {name: checkpoint.read(name).cpu() for name in checkpoint.names}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(checkpoint.config.entries)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = QWEN if shape.architecture == DECODER else ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY // 4, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(Corpus(0).words)], trainer)
    if shape.architecture == DECODER:
        tokenizer.add_tokens(ANSWERS)
    else:
        ends = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B:0 </s>", special_tokens=ends
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))


@contextmanager
def server(folder: Path, device: torch.device, shape: Shape) -> Iterator[tuple[int, float]]:
    """A server's port, and the seconds until it was ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "rerankd", "serve", str(folder), "--port", str(port), "--device", str(device)]
    if shape.architecture == DECODER:
        words += ["--recipe", "qwen3-reranker"]
    began = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError((process.stderr.read() if process.stderr else "")[-250:])
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                if time.perf_counter() - began > 120:
                    raise
                time.sleep(0.05)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # type: ignore[union-attr]
        yield port, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)
