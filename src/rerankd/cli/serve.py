"""`rerankd serve`: vLLM's command line."""

from __future__ import annotations

from typing import Annotated

import typer

from rerankd.cli.configuration import configured
from rerankd.cli.door import Door
from rerankd.cli.groups import Values, grouped
from rerankd.cli.options import OR_DEFAULT
from rerankd.cli.serving import DOOR, LAUNCH, LIMITS, MEDIA, MEDIA_LIMITS, RESIDENCE, SERVED_LOADING, SETTINGS
from rerankd.cli.several import entries
from rerankd.cli.start import Launch, Media, TracesTo, start
from rerankd.compat.peers import VLLM
from rerankd.limits import RequestLimits
from rerankd.media.limits import MediaLimits
from rerankd.server.settings import Residence


@configured
@grouped
def serve(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=OR_DEFAULT)] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Further models.")] = None,
    model_flag: Annotated[str | None, typer.Option("--model", hidden=True)] = None,
    model_id: Annotated[
        list[str] | None,
        typer.Option(
            "--model-id", help="A model; repeat the flag for several. The field `model` of a request chooses one."
        ),
    ] = None,
    *,
    own: Annotated[Values, LAUNCH.changed(log_level={"flags": ("--uvicorn-log-level", "--log-level")})],
    settings: Annotated[Values, SETTINGS],
    limits: Annotated[RequestLimits, LIMITS],
    loading: Annotated[Values, SERVED_LOADING],
    residence: Annotated[Residence, RESIDENCE],
    media: Annotated[Media, MEDIA],
    media_limits: Annotated[MediaLimits, MEDIA_LIMITS],
    door: Annotated[Door, DOOR],
    otlp_traces_endpoint: Annotated[
        str | None,
        typer.Option(help="Endpoint to send OpenTelemetry traces to, over gRPC unless an OTEL_* variable says HTTP."),
    ] = None,
) -> None:
    """Serve a reranker over HTTP, with vLLM's flags and API."""
    # `model_id` has the models of `more` already.
    chosen, *others = [*filter(None, (model or model_flag, *(model_id or ())))] or [None]
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
        residence=residence,
        more=entries(ctx.obj.models, others, SERVED_LOADING, SETTINGS),
    )
    start(launch, [*VLLM.judge(ctx.obj.given, chosen or ""), *ctx.obj.notes])
