"""The server's metrics for Prometheus. Each app has a registry of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response

from rerankd.core import EngineLoad, RerankResult, seconds_by_stage
from rerankd.server.hosted import Hosted
from rerankd.server.vllm_metrics import VllmMetrics
from rerankd.threads import usable_cores

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
SECONDS_BETWEEN_LOOKS = 0.05
HUNG_UP = 499
NO_MODEL = "none"


class Metrics:
    """Counts answers; `exposed` is the answer of /metrics. If there are several models, each series has their name."""

    def __init__(
        self, hosted: Sequence[Hosted], vllm_names: bool = False, labels: Mapping[str, str] | None = None
    ) -> None:
        """vllm_names: whether answers are counted under vLLM's names too
        labels: further labels of each series
        """
        self._registry = registry = CollectorRegistry()
        self._labels = labels or {}
        self._vllm = VllmMetrics(hosted, registry) if vllm_names else None
        self._several = len(hosted) > 1
        of_a_model = ("model_name",) if self._several else ()
        self._requests = Counter(
            "rerankd_requests", "Answers.", ("route", "dialect", "status", *of_a_model), registry=registry
        )
        self._total = Histogram(
            "rerankd_request_seconds",
            "Seconds from a call's first byte to its answer.",
            ("route", "dialect", *of_a_model),
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "rerankd_stage_seconds",
            "Seconds of the stages of a request: media, tokenise, queue, model.",
            ("stage", *of_a_model),
            buckets=SECONDS,
            registry=registry,
        )

        def counter(name: str, documentation: str) -> Counter:
            return Counter(name, documentation, of_a_model, registry=registry)

        self._cancelled = counter("rerankd_cancelled_requests", "Clients that hung up.")
        self._rejected = counter("rerankd_rejected_requests", "Answers that are errors.")
        self._documents = counter("rerankd_documents", "Documents scored.")
        self._truncated = counter("rerankd_truncated_documents", "Documents cut to fit.")
        self._prompt = counter("rerankd_prompt_tokens", "Tokens of every document's prompt.")
        self._computed = counter("rerankd_computed_tokens", "Tokens that were computed.")
        self._saved = counter("rerankd_prefix_tokens_saved", "Tokens not computed again for each document.")
        self._delay = Histogram(
            "rerankd_event_loop_delay_seconds",
            "Delay of the event loop, measured twenty times a second.",
            buckets=DELAYS,
            registry=registry,
        )
        self._held = Histogram(
            "rerankd_event_loop_held_seconds",
            "The part of each such delay in which the event loop's own thread was computing.",
            buckets=DELAYS,
            registry=registry,
        )
        self._watched: asyncio.AbstractEventLoop | None = None
        Gauge("rerankd_running_requests", "Calls being answered.", registry=registry).set_function(
            hosted[0].served.running
        )
        Gauge("rerankd_cores", "Cores that the server may use.", registry=registry).set_function(usable_cores)
        registry.register(_EngineCollector(hosted))

    def answered(
        self,
        route: str,
        dialect: str | None,
        status: int,
        seconds: float,
        results: Sequence[RerankResult],
        model: str | None = None,
    ) -> None:
        """Count one answer. Answers of the server's own routes, which have no dialect, are not counted.

        model: the model that answered, if there are several; None for a call that was refused before it was known
        """
        if dialect is None:
            return
        model_label = (model or NO_MODEL,) if self._several else ()
        self._requests.labels(route, dialect, str(status), *model_label).inc()
        self._total.labels(route, dialect, *model_label).observe(seconds)
        if status == HUNG_UP:
            _of(self._cancelled, model_label).inc()
        elif status >= 400:
            _of(self._rejected, model_label).inc()
        if self._vllm and results:
            self._vllm.answered(seconds, results, model)
        for result in results:
            for stage, took in seconds_by_stage(result.stages).items():
                self._stages.labels(stage, *model_label).observe(took)
            _of(self._documents, model_label).inc(result.scored)
            _of(self._truncated, model_label).inc(len(result.truncated))
            _of(self._prompt, model_label).inc(result.prompt_tokens)
            _of(self._computed, model_label).inc(result.computed_tokens)
            _of(self._saved, model_label).inc(max(0, result.prompt_tokens - result.computed_tokens))

    def watch_loop(self) -> None:
        """Measure how late the running event loop is, from now on, and how much of that its own thread computed.

        The rest of a delay is the time in which the thread waited for a core or for Python's lock.
        """
        loop = asyncio.get_running_loop()
        if loop is self._watched:
            return
        self._watched = loop

        def look(due: float, computed: float) -> None:
            now = loop.time()
            delay = max(now - due, 0.0)
            self._delay.observe(delay)
            self._held.observe(min(delay, time.thread_time() - computed))
            schedule(now + SECONDS_BETWEEN_LOOKS)

        def schedule(due: float) -> None:
            loop.call_at(due, look, due, time.thread_time())

        schedule(loop.time() + SECONDS_BETWEEN_LOOKS)

    def exposed(self) -> Response:
        """All metrics in Prometheus' format."""
        return Response(generate_latest(_Labelled(self._registry, self._labels)), media_type=CONTENT_TYPE_LATEST)


class _Labelled(Collector):
    """The metrics of another collector, with further labels."""

    def __init__(self, inner: Collector, labels: Mapping[str, str]) -> None:
        self._inner = inner
        self._labels = labels

    def collect(self) -> Iterable[Metric]:
        for metric in self._inner.collect():
            metric.samples = [sample._replace(labels={**self._labels, **sample.labels}) for sample in metric.samples]
            yield metric


class _EngineCollector(Collector):
    """The engines' own numbers, read at each scrape."""

    def __init__(self, hosted: Sequence[Hosted]) -> None:
        self._hosted = hosted

    def collect(self) -> Iterable[Metric]:
        several = len(self._hosted) > 1
        of_a_model = ("model_name",) if several else ()
        documents = GaugeMetricFamily(
            "rerankd_queue_documents", "Documents that no batch has taken.", labels=of_a_model
        )
        waiting = GaugeMetricFamily(
            "rerankd_queue_tokens", "Tokens to compute for the waiting documents.", labels=of_a_model
        )
        batches = CounterMetricFamily("rerankd_batches", "Batches computed.", labels=of_a_model)
        tokens = CounterMetricFamily("rerankd_batch_tokens", "Tokens of the batches computed.", labels=of_a_model)
        seconds = CounterMetricFamily(
            "rerankd_batch_seconds", "Seconds of the model for these batches.", labels=of_a_model
        )
        rates = GaugeMetricFamily(
            "rerankd_tokens_per_second", "Tokens a second, while all replicas compute.", labels=of_a_model
        )
        most = GaugeMetricFamily(
            "rerankd_max_batch_tokens", "The most tokens of a batch; fewer after memory ran out.", labels=of_a_model
        )
        threads = GaugeMetricFamily(
            "rerankd_threads", "CPU threads that compute batches or launch them, of all replicas.", labels=of_a_model
        )
        loaded = GaugeMetricFamily("rerankd_model_loaded", "1 while the model is loaded.", labels=("model_name",))
        loads = CounterMetricFamily("rerankd_model_loads", "Loads of the model.", labels=("model_name",))
        replicas = _replica_families(of_a_model)
        for hosted in self._hosted:
            load: EngineLoad = hosted.served.load()
            model_label = (hosted.name,) if several else ()
            documents.add_metric(model_label, load.waiting)
            waiting.add_metric(model_label, load.waiting_tokens)
            batches.add_metric(model_label, load.batches)
            tokens.add_metric(model_label, load.tokens)
            seconds.add_metric(model_label, load.seconds)
            # The seconds of all replicas are summed.
            rates.add_metric(
                model_label, load.tokens / load.seconds * max(len(load.replicas), 1) if load.seconds else 0.0
            )
            most.add_metric(model_label, load.most)
            threads.add_metric(model_label, load.threads)
            loaded.add_metric((hosted.name,), int(hosted.model.reranker is not None))
            loads.add_metric((hosted.name,), hosted.model.loads)
            for family, field in replicas:
                for number, replica in enumerate(load.replicas):
                    family.add_metric((*model_label, str(number)), float(getattr(replica, field)))
        yield from (documents, waiting, batches, tokens, seconds, rates, most, threads, loaded, loads)
        yield from (family for family, _ in replicas if family.samples)


def _replica_families(of_a_model: tuple[str, ...]) -> list[tuple[GaugeMetricFamily | CounterMetricFamily, str]]:
    """Numbers of each replica, by its number, and the fields of `ReplicaLoad` that have them."""
    labels = (*of_a_model, "replica")
    return [
        (GaugeMetricFamily("rerankd_replica_up", "1 if the replica takes batches.", labels=labels), "running"),
        (
            GaugeMetricFamily(
                "rerankd_replica_held_tokens", "Tokens of the batches that the replica has.", labels=labels
            ),
            "held_tokens",
        ),
        (CounterMetricFamily("rerankd_replica_batches", "Batches computed.", labels=labels), "batches"),
        (
            CounterMetricFamily("rerankd_replica_batch_tokens", "Tokens of the computed batches.", labels=labels),
            "tokens",
        ),
        (CounterMetricFamily("rerankd_replica_batch_seconds", "Seconds of the model.", labels=labels), "seconds"),
        (
            CounterMetricFamily("rerankd_replica_restarts", "Restarts of the replica's process.", labels=labels),
            "restarts",
        ),
    ]


def _of(counter: Counter, labels: Sequence[str]) -> Counter:
    return counter.labels(*labels) if labels else counter
