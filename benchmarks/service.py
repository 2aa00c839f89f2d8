"""What the server adds to the engine: throughput over HTTP beside the engine's own, and the time to ready."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from benchmarks.engines import Engine, Spec
from rerankd.bench import apis, load
from rerankd.bench.rounds import Spread
from rerankd.bench.samples import Sample
from rerankd.bench.started import started
from rerankd.bench.workloads import Corpus, Workload
from rerankd.core import RerankdError

CLIENTS, REQUESTS = 8, 16
WORKLOAD = Workload("uniform", 200)
NAME = "measured"


def over_http(url: str, samples: list[Sample]) -> float:
    """Documents a second of eight clients, each with one request in flight."""
    api = apis.APIS["vllm-rerank"]
    target = load.Target(api, f"{url}/vllm{api.endpoint}", NAME)
    outcomes, seconds = asyncio.run(load.run(target, samples, load.Traffic(concurrency=CLIENTS)))
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise RerankdError(f"{len(failed)} of {len(outcomes)} requests over HTTP failed: {failed[0]}")
    return sum(len(sample.documents) for sample in samples) / seconds


def measure_service(model: Path, rounds: int, seed: int) -> dict[str, Any]:
    """The server's rows: HTTP against the engine alone, in turn, and the start of the embedded model."""
    corpus = Corpus(seed)
    http, offline, ready = [], [], []
    with (
        Engine(Spec.parse("rerankd"), model, {}) as engine,
        started(str(model), "--served-model-name", NAME) as server,
    ):
        engine.score(*corpus.request(WORKLOAD))
        for _ in range(rounds):
            requests = [corpus.request(WORKLOAD) for _ in range(CLIENTS)]
            seconds = sum(engine.score(query, documents)["seconds"] for query, documents in requests)
            offline.append(CLIENTS * WORKLOAD.documents / seconds)
            samples = [Sample(*corpus.request(WORKLOAD)) for _ in range(REQUESTS)]
            http.append(over_http(server.url, samples))
    for _ in range(rounds):
        with started() as server:
            ready.append(server.seconds)
    share = Spread.of([a / b for a, b in zip(http, offline, strict=True)])
    print(
        f"HTTP, {CLIENTS} clients x {WORKLOAD}: {Spread.of(http)} documents/s; offline {Spread.of(offline)}; "
        f"ratio {share}\nembedded model, start to ready: {Spread.of(ready)} s",
        flush=True,
    )
    return {
        "clients": CLIENTS,
        "workload": str(WORKLOAD),
        "http_documents_per_second": Spread.of(http).json(),
        "offline_documents_per_second": Spread.of(offline).json(),
        "http_of_offline": share.json(),
        "seconds_to_ready": Spread.of(ready).json(),
    }
