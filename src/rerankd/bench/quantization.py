"""`rerankd bench quantization`: how far int8 scores lie from float32's, and whether they rank alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rerankd.bench.workloads import Corpus, Workload


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two precisions' scores of the same pairs; `tau` is Kendall's tau-b over all of them."""

    pairs: int
    lowest: float
    highest: float
    largest_difference: float
    mean_difference: float
    tau: float

    @classmethod
    def of(cls, reference: Sequence[float], scores: Sequence[float]) -> Agreement:
        apart = [abs(a - b) for a, b in zip(reference, scores, strict=True)]
        return cls(
            pairs=len(apart),
            lowest=min(reference),
            highest=max(reference),
            largest_difference=max(apart),
            mean_difference=sum(apart) / len(apart),
            tau=kendall_tau(reference, scores),
        )

    def table(self) -> str:
        """For a terminal."""
        return (
            f"{self.pairs} pairs, float32 scores from {self.lowest:.3f} to {self.highest:.3f}\n"
            f"largest difference  {self.largest_difference:.4f}\n"
            f"mean difference     {self.mean_difference:.4f}\n"
            f"Kendall's tau       {self.tau:.4f}"
        )


def corpus_pairs(pairs: int, seed: int) -> list[tuple[str, str]]:
    """Queries of ten words, each with 25 documents of 20 to 400 words, of the benchmarks' English text."""
    corpus, workload = Corpus(seed), Workload("mixed", 25)
    texts: list[tuple[str, str]] = []
    while len(texts) < pairs:
        query, documents = corpus.request(workload)
        texts += [(query, document) for document in documents]
    return texts[:pairs]


def compare(model: str, pairs: int, seed: int) -> Agreement:
    """Score the same pairs in float32 and as `--quantization int8` does, one after the other. Raises ModelError."""
    from rerankd.reranker import Reranker

    texts = corpus_pairs(pairs, seed)
    scores = []
    for dtype, quantization in (("float32", None), ("auto", "int8")):
        with Reranker(model, device="cpu", dtype=dtype, quantization=quantization) as reranker:
            scores.append(reranker.score(texts))
    return Agreement.of(*scores)


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b (1945): agreement of two rankings from -1 to 1, ties counted for neither side."""
    above = np.triu_indices(len(a), 1)
    signs = [np.sign(np.subtract.outer(np.asarray(x), np.asarray(x)))[above] for x in (a, b)]
    untied = [float(np.count_nonzero(sign)) for sign in signs]
    if not all(untied):
        return math.nan
    return float((signs[0] * signs[1]).sum()) / math.sqrt(untied[0] * untied[1])
