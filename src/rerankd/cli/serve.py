"""`rerankd serve`: vLLM's command line."""

from __future__ import annotations

from typing import Annotated

import typer

from rerankd.cli.configuration import configured
from rerankd.cli.door import Door
from rerankd.cli.groups import Values, grouped
from rerankd.cli.options import OR_DEFAULT
from rerankd.cli.serving import DOOR, LAUNCH, LIMITS, MEDIA, MEDIA_LIMITS, SERVED_LOADING, SETTINGS
from rerankd.cli.start import Launch, Media, TracesTo, start
from rerankd.compat.peers import VLLM
from rerankd.limits import RequestLimits
from rerankd.media.limits import MediaLimits


@configured
@grouped
def serve(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=OR_DEFAULT)] = None,
    model_flag: Annotated[str | None, typer.Option("--model", hidden=True)] = None,
    *,
    own: Annotated[Values, LAUNCH.changed(log_level={"flags": ("--uvicorn-log-level", "--log-level")})],
    settings: Annotated[Values, SETTINGS],
    limits: Annotated[RequestLimits, LIMITS],
    loading: Annotated[Values, SERVED_LOADING],
    media: Annotated[Media, MEDIA],
    media_limits: Annotated[MediaLimits, MEDIA_LIMITS],
    door: Annotated[Door, DOOR],
    otlp_traces_endpoint: Annotated[
        str | None,
        typer.Option(help="Endpoint to send OpenTelemetry traces to, over gRPC unless an OTEL_* variable says HTTP."),
    ] = None,
) -> None:
    """Serve a reranker over HTTP, with vLLM's flags and API."""
    chosen = model or model_flag
    traces = TracesTo(otlp_traces_endpoint) if otlp_traces_endpoint else None
    launch = Launch(
        chosen,
        **own,
        settings=settings,
        loading=loading,
        request_limits=limits,
        media=media,
        media_limits=media_limits,
        door=door,
        traces=traces,
    )
    start(launch, [*VLLM.judge(ctx.obj.given, chosen or ""), *ctx.obj.notes])
