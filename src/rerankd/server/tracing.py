"""OpenTelemetry traces of calls, where the standard OTEL_* variables or a flag ask for them.

A call's span has a child for each stage: `media`, `tokenise`, `queue`, and `model` for each batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from rerankd.core import RerankdError
from rerankd.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

    from rerankd.server.called import Called

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROBES = frozenset({"/health", "/metrics", "/ping", "/ready"})
"""Paths that are called every few seconds, and are of no interest."""


class TracingError(RerankdError):
    """Traces were asked for and are not supported here; `str()` of it says what to do."""


class Traces:
    """Makes the spans of calls, and sends them off in the background."""

    def __init__(self, provider: TracerProvider, model: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("rerankd", __version__)
        self._model = model

    def begin(self, scope: Scope) -> CallTrace | None:
        """The trace of a call, in that of its caller where it has a `traceparent`; None for a probe."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        if scope["path"] in PROBES:
            return None
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "gen_ai.request.model": self._model,
        }
        headers = Headers(scope=scope)
        if "user-agent" in headers:
            attributes["user_agent.original"] = headers["user-agent"]
        if scope.get("client"):
            attributes["client.address"] = scope["client"][0]
        span = self._tracer.start_span(scope["method"], extract(headers), SpanKind.SERVER, attributes)
        return CallTrace(span, self._tracer)

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()


class CallTrace:
    """The span of one call."""

    def __init__(self, span: Span, tracer: Tracer) -> None:
        self._span = span
        self._tracer = tracer
        self._epoch = time.time_ns() - time.perf_counter_ns()

    def ids(self) -> dict[str, str]:
        """The span's ids for a log line."""
        context = self._span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def answered(self, called: Called, status: int) -> None:
        """Record the outcome of the call."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        span = self._span
        if not span.is_recording():
            return
        span.set_attributes({"http.response.status_code": status, "rerankd.request_id": called.header_id()})
        if called.model:
            span.set_attribute("gen_ai.request.model", called.model)
        if called.dialect:
            span.set_attribute("rerankd.dialect", called.dialect)
        if called.route.startswith("/"):
            span.set_attribute("http.route", called.route)
            span.update_name(f"{span.attributes['http.request.method']} {called.route}")  # type: ignore[attr-defined]
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        if called.results:
            span.set_attributes(_counts(called))
        context = set_span_in_context(span)
        for result in called.results:
            for stage in result.stages:
                start = self._at(stage.began)
                child = self._tracer.start_span(stage.name, context, start_time=start)
                child.end(start + int(stage.seconds * 1e9))

    def end(self) -> None:
        """The call is over."""
        self._span.end()

    def _at(self, moment: float) -> int:
        """Nanoseconds since the epoch of a moment by `perf_counter`."""
        return self._epoch + int(moment * 1e9)


def _counts(called: Called) -> dict[str, int]:
    results = called.results
    prompt = sum(result.prompt_tokens for result in results)
    return {
        "rerankd.documents": sum(result.scored for result in results),
        "rerankd.documents_truncated": sum(len(result.truncated) for result in results),
        "rerankd.computed_tokens": sum(result.computed_tokens for result in results),
        "gen_ai.usage.input_tokens": prompt,
    }


def asked_for() -> bool:
    """Whether the environment asks for traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or _exporter_names() == ["none"]:
        return False
    return bool(os.environ.get("OTEL_TRACES_EXPORTER") or any(os.environ.get(name) for name in ENDPOINTS))


def start(model: str, endpoint: str | None = None, **options: Any) -> Traces:
    """Traces as the environment describes them.

    endpoint: the address that gets them over OTLP, in place of the environment's; over gRPC unless the environment
        names a protocol
    options: further options of the exporter

    Raises TracingError where a package is missing, or a name means nothing.
    """
    try:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracingError(
            "Traces need OpenTelemetry's packages, which are not installed: pip install 'rerankd[otel]'."
        ) from None
    resource = Resource.create({"service.name": "rerankd", "service.version": __version__})
    provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()))
    for exporter in [_otlp("grpc", endpoint=endpoint, **options)] if endpoint else _exporters():
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Traces(provider, model)


def _exporter_names() -> list[str]:
    return [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()] or ["otlp"]


def _exporters() -> Iterator[Any]:
    for name in _exporter_names():
        yield _otlp("http/protobuf") if name == "otlp" else _exporter(name)


def _otlp(protocol: str, **options: Any) -> Any:
    """The exporter of the protocol that the environment names, else of `protocol`."""
    protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), protocol)
    names = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
    if protocol not in names:
        raise TracingError(f"Traces cannot go over {protocol!r}; {PROTOCOLS[1]} is one of: {', '.join(names)}.")
    if protocol != "grpc":
        options.pop("insecure", None)
    return _exporter(names[protocol], **options)


def _exporter(name: str, **options: Any) -> Any:
    for entry in entry_points(group="opentelemetry_traces_exporter", name=name):
        try:
            return entry.load()(**options)
        except ImportError as error:
            raise TracingError(f"The exporter {name!r} of traces cannot be loaded: {error}.") from None
    raise TracingError(
        f"There is no exporter {name!r} of traces: pip install 'rerankd[otel]' installs otlp and console; others are "
        "packages of OpenTelemetry's."
    )
