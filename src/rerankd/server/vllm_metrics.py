"""The server's counts under vLLM's names, for gateways and autoscalers that scrape those.

Reference: `vllm/v1/metrics/loggers.py`, whose label `engine` is 0 where there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rerankd.core import RerankResult, seconds_by_stage
from rerankd.server.hosted import Hosted

LABELS = ("model_name", "engine")
ENGINE = "0"
SECONDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)


class VllmMetrics:
    """Counts scored requests in a registry."""

    def __init__(self, hosted: Sequence[Hosted], registry: CollectorRegistry) -> None:
        self._first = hosted[0].name

        def histogram(name: str, documentation: str) -> Histogram:
            return Histogram(f"vllm:{name}_seconds", documentation, LABELS, buckets=SECONDS, registry=registry)

        self._prompt = Counter("vllm:prompt_tokens", "Tokens of every prompt.", LABELS, registry=registry)
        self._success = Counter(
            "vllm:request_success", "Requests answered.", (*LABELS, "finished_reason"), registry=registry
        )
        self._total = histogram("e2e_request_latency", "From a call's first byte to its answer.")
        self._queue = histogram("request_queue_time", "Waiting for a batch.")
        self._model = histogram("request_inference_time", "In the model.")
        for host in hosted:
            # Series are there before the first request, as vLLM's are.
            self._success.labels(host.name, ENGINE, "stop")
            for metric in (self._prompt, self._total, self._queue, self._model):
                metric.labels(host.name, ENGINE)
        registry.register(_LoadCollector(hosted))

    def answered(self, seconds: float, results: Sequence[RerankResult], model: str | None = None) -> None:
        """Count a call that was answered with results. model: the one of several that answered"""
        names = (model or self._first, ENGINE)
        self._total.labels(*names).observe(seconds)
        self._success.labels(*names, "stop").inc(len(results))
        for result in results:
            took = seconds_by_stage(result.stages)
            self._prompt.labels(*names).inc(result.prompt_tokens)
            self._queue.labels(*names).observe(took.get("queue", 0.0))
            self._model.labels(*names).observe(took.get("model", 0.0))


class _LoadCollector(Collector):
    """How busy the engines are, read when they are asked for."""

    def __init__(self, hosted: Sequence[Hosted]) -> None:
        self._hosted = hosted

    def collect(self) -> Iterable[Metric]:
        running, waiting, cache_usage = (
            GaugeMetricFamily(f"vllm:{name}", documentation, labels=LABELS)
            for name, documentation in (
                ("num_requests_running", "Requests in the batches that are being computed."),
                ("num_requests_waiting", "Requests with a document that waits for a batch."),
                ("kv_cache_usage_perc", "Nothing is kept from one batch to the next."),
            )
        )
        for host in self._hosted:
            load, names = host.served.load(), (host.name, ENGINE)
            running.add_metric(names, load.running)
            waiting.add_metric(names, load.waiting_requests)
            cache_usage.add_metric(names, 0.0)
        yield from (running, waiting, cache_usage)
