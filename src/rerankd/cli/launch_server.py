"""`python -m rerankd.launch_server`: SGLang's command line."""

from __future__ import annotations

from typing import Annotated

import typer

from rerankd.cli.configuration import configured
from rerankd.cli.door import Door
from rerankd.cli.groups import Values, grouped
from rerankd.cli.options import OR_DEFAULT
from rerankd.cli.serving import DOOR, LAUNCH, LIMITS, MEDIA, MEDIA_LIMITS, RESIDENCE, SERVED_LOADING, SETTINGS
from rerankd.cli.start import Launch, Media, TracesTo, start
from rerankd.compat.peers import SGLANG
from rerankd.limits import RequestLimits
from rerankd.media.limits import MediaLimits
from rerankd.server.settings import Residence


@configured
@grouped
def launch_server(
    ctx: typer.Context,
    model_path: Annotated[str | None, typer.Option("--model-path", "--model", help=OR_DEFAULT)] = None,
    *,
    own: Annotated[Values, LAUNCH.but("access_log").changed(port={"default": 30000})],
    settings: Annotated[Values, SETTINGS.but("docs").changed(dialect={"default": "sglang"})],
    limits: Annotated[RequestLimits, LIMITS],
    loading: Annotated[
        Values,
        SERVED_LOADING.changed(
            max_model_len={"flags": ("--context-length",)},
            max_batch_tokens={"flags": ("--max-prefill-tokens",)},
            hf_overrides={"flags": ("--json-model-override-args",)},
        ),
    ],
    residence: Annotated[Residence, RESIDENCE],
    media: Annotated[Media, MEDIA.but("shown")],
    media_limits: Annotated[MediaLimits, MEDIA_LIMITS],
    door: Annotated[Door, DOOR],
    enable_trace: Annotated[
        bool, typer.Option("--enable-trace", help="Send OpenTelemetry traces to --otlp-traces-endpoint.")
    ] = False,
    otlp_traces_endpoint: Annotated[
        str,
        typer.Option(
            "--otlp-traces-endpoint", "--oltp-traces-endpoint", help="Host and port that take OTLP over gRPC."
        ),
    ] = "localhost:4317",
) -> None:
    """Serve a reranker over HTTP, with SGLang's flags and API."""
    # SGLang's endpoint is a bare host and port, called without TLS.
    traces = TracesTo(otlp_traces_endpoint, {"insecure": True}) if enable_trace else None
    launch = Launch(
        model_path,
        **own,
        settings=settings,
        loading=loading,
        request_limits=limits,
        media=media,
        media_limits=media_limits,
        door=door,
        traces=traces,
        residence=residence,
    )
    start(launch, [*SGLANG.judge(ctx.obj.given, model_path or ""), *ctx.obj.notes])
