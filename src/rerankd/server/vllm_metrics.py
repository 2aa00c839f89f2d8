"""The server's counts under vLLM's names, for gateways and autoscalers that scrape those.

Reference: `vllm/v1/metrics/loggers.py`, whose label `engine` is 0 where there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rerankd.core import RerankResult, seconds_by_stage
from rerankd.server.dialects.base import Served

LABELS = ("model_name", "engine")
SECONDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)


class VllmMetrics:
    """Counts scored requests in a registry."""

    def __init__(self, served: Served, registry: CollectorRegistry) -> None:
        names = (served.names[0], "0")

        def histogram(name: str, what: str) -> Histogram:
            made = Histogram(f"vllm:{name}_seconds", what, LABELS, buckets=SECONDS, registry=registry)
            return made.labels(*names)

        self._prompt = Counter("vllm:prompt_tokens", "Tokens of every prompt.", LABELS, registry=registry).labels(
            *names
        )
        success = Counter("vllm:request_success", "Requests answered.", (*LABELS, "finished_reason"), registry=registry)
        self._success = success.labels(*names, "stop")
        self._total = histogram("e2e_request_latency", "From a call's first byte to its answer.")
        self._queue = histogram("request_queue_time", "Waiting for a batch.")
        self._model = histogram("request_inference_time", "In the model.")
        registry.register(_LoadCollector(served, names))

    def answered(self, seconds: float, results: Sequence[RerankResult]) -> None:
        """Count a call that was answered with results."""
        self._total.observe(seconds)
        self._success.inc(len(results))
        for result in results:
            took = seconds_by_stage(result.stages)
            self._prompt.inc(result.prompt_tokens)
            self._queue.observe(took.get("queue", 0.0))
            self._model.observe(took.get("model", 0.0))


class _LoadCollector(Collector):
    """How busy the engine is, read when it is asked for."""

    def __init__(self, served: Served, names: Sequence[str]) -> None:
        self._served = served
        self._names = names

    def collect(self) -> Iterable[Metric]:
        load = self._served.load()
        for name, what, value in (
            ("num_requests_running", "Requests in the batches that are being computed.", load.running),
            ("num_requests_waiting", "Requests of which a document waits.", load.waiting_requests),
            ("kv_cache_usage_perc", "Nothing is kept from one batch to the next.", 0.0),
        ):
            family = GaugeMetricFamily(f"vllm:{name}", what, labels=LABELS)
            family.add_metric(self._names, value)
            yield family
