"""`rerankd bench offline`: this machine's rate at a model and a workload, and the share of its limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rerankd.bench.limit import Kind, Lengths, gemm_rate, work
from rerankd.bench.rounds import Round
from rerankd.bench.workloads import KINDS, Corpus, Workload

if TYPE_CHECKING:
    from rerankd.reranker import Reranker


def measure(
    reranker: Reranker,
    workload: Workload,
    rounds: int,
    precision: str,
    *,
    seed: int = 0,
    progress: Callable[[Round], object] = lambda _: None,
) -> Sequence[Round]:
    """Time `rounds` rounds of a workload, each on documents that it has not seen.

    precision: of the model's GEMMs, as `gemm_rate` names it: the reranker's dtype, or int8

    A request of the same shape comes first and counts for nothing: kernels are chosen in it.
    """
    from rerankd.models.checkpoint.json_files import read_json

    info, kind = reranker.info, Kind.of(reranker)
    config = read_json(info.path / "config.json")
    corpus = Corpus(seed)
    reranker.rerank(*corpus.request(workload), show_progress=False)

    def one_round() -> Round:
        requests = [corpus.request(workload) for _ in range(KINDS[workload.kind].requests)]
        results, seconds = [], []
        for query, documents in requests:
            start = time.perf_counter()
            results.append(reranker.rerank(query, documents, show_progress=False))
            seconds.append(time.perf_counter() - start)
        works = [work(config, kind, Lengths.of(result)) for result in results]
        return Round(
            seconds=tuple(seconds),
            documents=workload.documents * len(requests),
            tokens=sum(result.prompt_tokens for result in results),
            multiply_adds=sum(request_work.multiply_adds for request_work in works),
            gemm_rate=gemm_rate(works[0], precision, info.device),
        )

    measurements = []
    for _ in range(rounds):
        measurements.append(one_round())
        progress(measurements[-1])
    return measurements
