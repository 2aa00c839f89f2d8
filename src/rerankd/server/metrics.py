"""What the server counts, in Prometheus' words. Each app has a registry of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response

from rerankd.core import EngineLoad, ReplicaLoad, RerankResult, seconds_by_stage
from rerankd.server.dialects.base import Served
from rerankd.server.vllm_metrics import VllmMetrics

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
SECONDS_BETWEEN_LOOKS = 0.05
HUNG_UP = 499
REPLICA = ("replica",)


class Metrics:
    """Counts answers; `exposed` is what /metrics says."""

    def __init__(self, served: Served, vllm_names: bool = False) -> None:
        """vllm_names: whether they are counted under vLLM's names too"""
        self._registry = registry = CollectorRegistry()
        self._vllm = VllmMetrics(served, registry) if vllm_names else None
        self._requests = Counter("rerankd_requests", "Answers.", ("route", "dialect", "status"), registry=registry)
        self._total = Histogram(
            "rerankd_request_seconds",
            "From a call's first byte to its answer.",
            ("route", "dialect"),
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "rerankd_stage_seconds",
            "Of one request: reading media, tokenising, waiting for a batch, in the model.",
            ("stage",),
            buckets=SECONDS,
            registry=registry,
        )
        self._cancelled = Counter("rerankd_cancelled_requests", "Clients that hung up.", registry=registry)
        self._rejected = Counter("rerankd_rejected_requests", "Answers that are errors.", registry=registry)
        self._documents = Counter("rerankd_documents", "Documents scored.", registry=registry)
        self._truncated = Counter("rerankd_truncated_documents", "Documents cut to fit.", registry=registry)
        self._prompt = Counter("rerankd_prompt_tokens", "Tokens of every document's prompt.", registry=registry)
        self._computed = Counter("rerankd_computed_tokens", "Tokens that the model was given.", registry=registry)
        self._saved = Counter(
            "rerankd_prefix_tokens_saved", "Tokens not computed again for each document.", registry=registry
        )
        self._delay = Histogram(
            "rerankd_event_loop_delay_seconds",
            "How late the event loop is, looked at twenty times a second: nothing that it does should take it long.",
            buckets=DELAYS,
            registry=registry,
        )
        self._watched: asyncio.AbstractEventLoop | None = None
        Gauge("rerankd_running_requests", "Calls being answered.", registry=registry).set_function(served.running)
        registry.register(_EngineCollector(served))

    def answered(
        self,
        route: str,
        dialect: str | None,
        status: int,
        seconds: float,
        results: Sequence[RerankResult],
    ) -> None:
        """Count one answer; those of no dialect, which are the server's own, are not counted."""
        if dialect is None:
            return
        self._requests.labels(route, dialect, str(status)).inc()
        self._total.labels(route, dialect).observe(seconds)
        if status == HUNG_UP:
            self._cancelled.inc()
        elif status >= 400:
            self._rejected.inc()
        if self._vllm and results:
            self._vllm.answered(seconds, results)
        for result in results:
            for stage, took in seconds_by_stage(result.stages).items():
                self._stages.labels(stage).observe(took)
            self._documents.inc(result.scored)
            self._truncated.inc(len(result.truncated))
            self._prompt.inc(result.prompt_tokens)
            self._computed.inc(result.computed_tokens)
            self._saved.inc(max(0, result.prompt_tokens - result.computed_tokens))

    def watch_loop(self) -> None:
        """Measure from now on how late the running event loop is."""
        loop = asyncio.get_running_loop()
        if loop is self._watched:
            return
        self._watched = loop

        def look(due: float) -> None:
            now = loop.time()
            self._delay.observe(max(now - due, 0.0))
            then(now + SECONDS_BETWEEN_LOOKS)

        def then(due: float) -> None:
            loop.call_at(due, look, due)

        then(loop.time() + SECONDS_BETWEEN_LOOKS)

    def exposed(self) -> Response:
        """Everything counted, as Prometheus reads it."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class _EngineCollector(Collector):
    """The engine's own numbers, read when they are asked for."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def collect(self) -> Iterable[Metric]:
        load: EngineLoad = self._served.load()
        yield GaugeMetricFamily("rerankd_queue_documents", "Documents that no batch has taken.", load.waiting)
        yield CounterMetricFamily("rerankd_batches", "Batches computed.", load.batches)
        yield CounterMetricFamily("rerankd_batch_tokens", "Tokens of the batches computed.", load.tokens)
        yield CounterMetricFamily("rerankd_batch_seconds", "Seconds that the model took for them.", load.seconds)
        rate = load.tokens / load.seconds if load.seconds else 0.0
        yield GaugeMetricFamily("rerankd_tokens_per_second", "Tokens a second of model time, since the start.", rate)
        if load.replicas:
            yield from _of_replicas(load.replicas)


def _of_replicas(replicas: Sequence[ReplicaLoad]) -> Iterable[Metric]:
    """Numbers of each replica, by its number."""
    families: list[tuple[GaugeMetricFamily | CounterMetricFamily, str]] = [
        (GaugeMetricFamily("rerankd_replica_up", "Whether it takes batches.", labels=REPLICA), "running"),
        (GaugeMetricFamily("rerankd_replica_held_tokens", "Tokens of its batches.", labels=REPLICA), "held_tokens"),
        (CounterMetricFamily("rerankd_replica_batches", "Batches computed.", labels=REPLICA), "batches"),
        (CounterMetricFamily("rerankd_replica_batch_tokens", "Tokens of these.", labels=REPLICA), "tokens"),
        (CounterMetricFamily("rerankd_replica_batch_seconds", "Seconds of the model.", labels=REPLICA), "seconds"),
        (CounterMetricFamily("rerankd_replica_restarts", "Starts of its process again.", labels=REPLICA), "restarts"),
    ]
    for family, field in families:
        for number, one in enumerate(replicas):
            family.add_metric([str(number)], float(getattr(one, field)))
        yield family
