"""How fast a workload is by torch's GEMMs alone: its own multiply-adds over the machine's rate at such GEMMs.

The count has the work that no implementation can leave out: a prefix once for all documents that share it, and in the
last layer only the rows that the head reads (and every row's keys and values). The matrix products of attention count
with the pairs that a token may see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from rerankd.core import ModelError, RerankResult

if TYPE_CHECKING:
    import torch

    from rerankd.reranker import Reranker

Shape = tuple[int, int]
"""A weight's inputs and outputs."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """A request in tokens: the prefix that its documents share, and each document's suffix."""

    prefix: int
    suffixes: tuple[int, ...]

    @classmethod
    def of(cls, result: RerankResult) -> Lengths:
        """Read off an answer that holds all its documents."""
        return cls.from_prompts(
            [document.prompt_tokens for document in result.in_request_order()], result.computed_tokens
        )

    @classmethod
    def from_prompts(cls, prompts: Sequence[int], computed: int) -> Lengths:
        """From the lengths of whole prompts, and the number of tokens that were computed for all of them."""
        prefix = (sum(prompts) - computed) // (len(prompts) - 1) if len(prompts) > 1 else 0
        return cls(prefix, tuple(prompt - prefix for prompt in prompts))

    @property
    def computed(self) -> int:
        return self.prefix + sum(self.suffixes)

    @property
    def whole(self) -> int:
        """Tokens of all prompts, each with its prefix: what an engine without sharing computes."""
        return self.prefix * len(self.suffixes) + sum(self.suffixes)


@dataclass(frozen=True, slots=True)
class Kind:
    """The settings of a model's scoring that change its work.

    shares_prefix: whether the shared prefix of a request's prompts is computed once, as in a decoder
    pairs: whether query and document are read together, else each by itself
    reads_firsts: whether a text that is read by itself is embedded by one token's state, else by the mean of all
    """

    shares_prefix: bool
    pairs: bool = True
    reads_firsts: bool = False

    @classmethod
    def of(cls, reranker: Reranker) -> Kind:
        """The kind of a loaded model."""
        from rerankd.engine.engine import Engine
        from rerankd.models.embedding import EmbeddingHead

        engine = reranker._engine
        if not isinstance(engine, Engine):
            raise ModelError("The limit is that of one process; leave --data-parallel-size out, or bench a server.")
        model = engine.model
        if isinstance(model.head, EmbeddingHead):
            return cls(model.shares_prefix, pairs=False, reads_firsts=model.head.pooling.rows(()) is not None)
        return cls(model.shares_prefix)


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a request: the rows that go through weights of each shape, and the multiply-adds of attention."""

    rows: Mapping[Shape, int]
    attention: int

    @property
    def gemms(self) -> int:
        return sum(rows * inputs * outputs for (inputs, outputs), rows in self.rows.items())

    @property
    def multiply_adds(self) -> int:
        return self.gemms + self.attention


def work(config: Mapping[str, Any], kind: Kind, lengths: Lengths) -> Work:
    """The work of a checkpoint with this config.json for a request of these lengths."""
    config = config.get("text_config", config)
    rows: dict[Shape, int] = {}

    def through(inputs: int, outputs: int, count: int) -> None:
        rows[inputs, outputs] = rows.get((inputs, outputs), 0) + count

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, full_layers = config["num_attention_heads"], config["num_hidden_layers"] - 1
    all_rows, head_rows = lengths.computed, len(lengths.suffixes)
    if kind.shares_prefix:
        width = heads * config.get("head_dim", hidden // heads)
        key_value = 2 * config.get("num_key_value_heads", heads) * (width // heads)
        up = 2 * inner
        prefix = lengths.prefix
        pairs = prefix * (prefix + 1) // 2 + sum(s * prefix + s * (s + 1) // 2 for s in lengths.suffixes)
        head_pairs = sum(prefix + s for s in lengths.suffixes)
    else:
        width, key_value, up = hidden, 2 * hidden, inner
        sequences = (lengths.prefix, *lengths.suffixes)
        pairs = sum(s * s for s in sequences)
        if not kind.pairs and kind.reads_firsts:
            head_rows, head_pairs = 1 + len(lengths.suffixes), all_rows
        elif not kind.pairs:
            # Every row of the last layer goes into the pooled embedding.
            head_rows, head_pairs = all_rows, pairs
        else:
            head_pairs = sum(lengths.suffixes)
            through(hidden, hidden, head_rows)
    through(hidden, width + key_value, all_rows * full_layers)
    through(hidden, key_value, all_rows)
    through(hidden, width, head_rows)
    for inputs, outputs in ((width, hidden), (hidden, up), (inner, hidden)):
        through(inputs, outputs, all_rows * full_layers + head_rows)
    return Work(rows, 2 * width * (pairs * full_layers + head_pairs))


def gemm_rate(work: Work, dtype: str, device: str = "cpu", seconds: float = 2.0) -> float:
    """Multiply-adds a second of this machine at the work's own GEMMs, in about `seconds` seconds.

    dtype: float32, bfloat16, float16, or int8 (uint8 rows by int8 weights through oneDNN, on a CPU)

    Each shape is tried at the row counts that suit a cache and a large batch; the better median counts.
    """
    import torch

    share = seconds / (2 * len(work.rows))
    total = 0.0
    with torch.inference_mode():
        for (inputs, outputs), rows in work.rows.items():
            counts = sorted({min(rows, 512), min(rows, 2048)})
            rates = []
            for count in counts:
                gemm = a_gemm(torch.device(device), dtype, count, inputs, outputs)
                rates.append(count * inputs * outputs / median_seconds(gemm, device, share))
            total += rows * inputs * outputs / max(rates)
    return work.gemms / total


def a_gemm(device: torch.device, dtype: str, rows: int, inputs: int, outputs: int) -> Callable[[], object]:
    import torch

    if dtype == "int8":
        weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        scales, zeros = torch.full((outputs,), 0.01), torch.zeros(outputs, dtype=torch.int64)
        quantised = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
        output = torch.float32
        return lambda: torch.ops.onednn.qlinear_pointwise(
            quantised, 0.01, 128, packed, scales, zeros, None, 1.0, 0, output, "none", [], ""
        )
    kind: torch.dtype = getattr(torch, dtype)
    left = torch.randn(rows, inputs, device=device, dtype=kind)
    right = torch.randn(outputs, inputs, device=device, dtype=kind)
    return lambda: torch.nn.functional.linear(left, right)


def median_seconds(call: Callable[[], object], device: str, seconds: float) -> float:
    """The median time of a call over `seconds`, and over three calls at least."""
    import torch

    def timed() -> float:
        start = time.perf_counter()
        call()
        if not device.startswith("cpu"):
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    timed()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        times.append(timed())
    return median(times)
