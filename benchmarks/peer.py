"""One engine in a process of its own, for `compare.py`: answers score requests, a JSON object a line.

usage: peer.py ENGINE MODEL VARIANT [PROGRAM]

ENGINE is a key of ENGINES; VARIANT a dtype, `auto`, (rerankd, onnxruntime, openvino) `int8` or (llama) `q8_0`. llama's
MODEL is a folder with model.gguf, config.json and tokenizer.json, its PROGRAM llama.cpp's llama-server. This file
imports nothing of the project for engines other than rerankd, so that an interpreter of another venv can run it.

out, once loaded: {"dtype", "version", "load_seconds", "memory_bytes"}
in:  {"query", "documents"}
out: {"seconds", "scores"} and from rerankd {"prompt_tokens", "computed_tokens"}
"""

from __future__ import annotations

import argparse
import atexit
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from urllib.request import Request, urlopen

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


def onnx_runtime(model: str, variant: str) -> tuple[Score, Answer]:
    """ONNX Runtime with its fusions of BERT's operations; `int8` by its dynamic quantisation."""
    import onnxruntime

    path, tokenizer = exported(model)
    fused = in_a_process_of_its_own(fuse, model, path, variant)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(fused), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def logits(inputs: Answer) -> Any:
        return session.run(None, {name: inputs[name] for name in names})[0]

    return padded(tokenizer, logits), {"dtype": variant, "version": version("onnxruntime")}


def fuse(model: str, path: Path, variant: str) -> Path:
    """The exported model with fused operations, quantised for int8, in a file beside it."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    config = json.loads((Path(model) / "config.json").read_text())
    heads, width = config["num_attention_heads"], config["hidden_size"]
    fused = path.with_name("fused.onnx")
    optimizer.optimize_model(str(path), "bert", heads, width).save_model_to_file(
        str(fused), use_external_data_format=True
    )
    if variant != "int8":
        return fused
    quantized = path.with_name("int8.onnx")
    quantize_dynamic(
        fused,
        quantized,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        # Fused operations are ONNX Runtime's own, of which the quantiser infers no type.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    return quantized


def open_vino(model: str, variant: str) -> tuple[Score, Answer]:
    """OpenVINO with a hint of precision; `int8` by NNCF's quantisation after training, on 128 pairs of random words."""
    import openvino

    path, tokenizer = exported(model)
    network = openvino.Core().read_model(path)
    if variant == "int8":
        import nncf

        data = nncf.Dataset(calibration(tokenizer), dict)
        network = nncf.quantize(network, data, subset_size=CALIBRATION_PAIRS, model_type=nncf.ModelType.TRANSFORMER)
    precision = {"bfloat16": "bf16"}.get(variant, "f32")
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(network, "CPU", hints)
    names = [one.get_any_name() for one in compiled.inputs]

    def logits(inputs: Answer) -> Any:
        return compiled({name: inputs[name] for name in names})[0]

    return padded(tokenizer, logits), {"dtype": variant, "version": version("openvino")}


BATCH_PAIRS = 32
"""sentence-transformers' own default."""
CALIBRATION_PAIRS = 128


T = TypeVar("T")


def in_a_process_of_its_own(work: Callable[..., T], *given: Any) -> T:
    """The result of a function whose memory is given back afterwards: models are held several times while converted."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def exported(model: str) -> tuple[Path, Any]:
    """A cross-encoder as ONNX in a temporary folder, and its tokenizer."""
    import shutil
    import tempfile

    from transformers import AutoTokenizer

    if is_decoder(model):
        raise ValueError(f"{model} is a decoder; here ONNX Runtime and OpenVINO run cross-encoders.")
    path = Path(tempfile.mkdtemp(prefix="exported-")) / "model.onnx"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    in_a_process_of_its_own(export, model, path)
    return path, AutoTokenizer.from_pretrained(model)


def export(model: str, path: Path) -> None:
    """Write a cross-encoder as ONNX."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModelForSequenceClassification
    network = kind.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    texts = ["a query"] * 2, ["a document", "another one"]
    found = AutoTokenizer.from_pretrained(model)(*texts, padding=True, return_tensors="pt")
    # The exporter names inputs in the order of the network's own parameters.
    inputs = {name: found[name] for name in signature(network.forward).parameters if name in found}
    axes = {0: "batch", 1: "tokens"}
    torch.onnx.export(
        network,
        (),
        str(path),
        kwargs=inputs,
        input_names=list(inputs),
        output_names=["logits"],
        dynamic_axes={**dict.fromkeys(inputs, axes), "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


def padded(tokenizer: Any, logits: Callable[[Answer], Any]) -> Score:
    """Scores in padded batches of documents of about the same length, as sentence-transformers makes them."""

    def score(query: str, documents: list[str]) -> Answer:
        order = sorted(range(len(documents)), key=lambda i: len(documents[i]), reverse=True)
        scores = [0.0] * len(documents)
        for start in range(0, len(order), BATCH_PAIRS):
            places = order[start : start + BATCH_PAIRS]
            texts = [documents[i] for i in places]
            inputs = tokenizer([query] * len(texts), texts, padding=True, truncation=True, return_tensors="np")
            for i, logit in zip(places, logits(dict(inputs))[:, 0].tolist(), strict=True):
                scores[i] = 1 / (1 + math.exp(-logit))
        return {"scores": scores}

    return score


def calibration(tokenizer: Any) -> list[Answer]:
    """Single pairs of 10 to 200 random words, for ranges of activations."""
    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(2000)]
    pairs = (
        (random.choices(words, k=6), random.choices(words, k=random.randint(10, 200))) for _ in range(CALIBRATION_PAIRS)
    )
    return [dict(tokenizer(" ".join(a), " ".join(b), truncation=True, return_tensors="np")) for a, b in pairs]


LLAMA_BATCH_TOKENS = 1024
"""Tokens in one of llama.cpp's batches at most.

A batch holds whole pairs, and XLM-R's mixed ones have up to 856 tokens. Attention is computed between all tokens of a
batch, whichever pair they are of, so that larger batches are slower.
"""
LLAMA_PAIRS = 64
"""Pairs in one of its batches at most."""
LLAMA_START_SECONDS = 120


def llama(model: str, variant: str, program: str) -> tuple[Score, Answer]:
    """llama.cpp's own server, over HTTP on this machine.

    The server refuses a pair beyond the model's positions. So documents are cut before, as its callers have to.
    """
    from tokenizers import Tokenizer

    if is_decoder(model):
        raise ValueError(f"{model} is a decoder; here llama.cpp runs cross-encoders.")
    threads, positions = str(len(os.sched_getaffinity(0))), llama_positions(model)
    port, batch = free_port(), min(positions, LLAMA_BATCH_TOKENS)
    server = subprocess.Popen(
        [
            *(program, "--model", str(Path(model) / "model.gguf"), "--reranking"),
            *("--host", "127.0.0.1", "--port", str(port), "--device", "none", "--threads", threads),
            *("--batch-size", str(batch), "--ubatch-size", str(batch)),
            *("--parallel", str(LLAMA_PAIRS), "--ctx-size", str(LLAMA_PAIRS * batch)),
        ]
    )
    atexit.register(server.wait)
    atexit.register(server.terminate)
    about = llama_ready(server, port)
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    space = positions - tokenizer.num_special_tokens_to_add(True)

    def cut(document: str, tokens: int) -> str:
        # No token is shorter than a character; a tokenizer may put one space before the text.
        if len(document) < tokens:
            return document
        ends = [end for _, end in tokenizer.encode(document, add_special_tokens=False).offsets]
        return document[: ends[tokens - 1]] if len(ends) > tokens else document

    def score(query: str, documents: list[str]) -> Answer:
        tokens = space - len(tokenizer.encode(query, add_special_tokens=False).ids)
        texts = [cut(document, tokens) for document in documents]
        found = llama_answer(port, "/v1/rerank", {"query": query, "documents": texts})
        logits = {result["index"]: result["relevance_score"] for result in found["results"]}
        return {"scores": [1 / (1 + math.exp(-logits[i])) for i in range(len(documents))]}

    return score, {"dtype": {"q8_0": "int8"}.get(variant, variant), "version": about["build_info"]}


def llama_positions(model: str) -> int:
    """The most tokens of a pair; XLM-R's first rows of positions are never used."""
    config = json.loads((Path(model) / "config.json").read_text())
    unused = config["pad_token_id"] + 1 if config["model_type"] == "xlm-roberta" else 0
    return int(config["max_position_embeddings"]) - unused


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def llama_ready(server: subprocess.Popen[bytes], port: int) -> Answer:
    """What the server says of itself, once it has loaded its model."""
    started = time.monotonic()
    while time.monotonic() - started < LLAMA_START_SECONDS and server.poll() is None:
        try:
            llama_answer(port, "/health")
            return llama_answer(port, "/props")
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"llama-server is not ready: {server.poll()}")


def llama_answer(port: int, path: str, body: Answer | None = None) -> Answer:
    """The server's answer to a request. OSError for a status other than 200."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return dict(json.loads(answer.read()))


ENGINES: dict[str, Callable[..., tuple[Score, Answer]]] = {
    "rerankd": rerankd,
    "sentence-transformers": sentence_transformers,
    "vllm": vllm,
    "onnxruntime": onnx_runtime,
    "openvino": open_vino,
    "llama": llama,
}


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
    parser = argparse.ArgumentParser(prog="peer.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", choices=[*ENGINES])
    parser.add_argument("given", nargs="+", metavar="argument", help="MODEL VARIANT [PROGRAM]")
    chosen = parser.parse_args()
    engine, given = chosen.engine, chosen.given
    # Engines print as they please; what they print goes to stderr, and the answers have stdout to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    start = time.perf_counter()
    score, about = ENGINES[engine](*given)
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
