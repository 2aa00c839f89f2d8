"""The options of a replica that Ray Serve runs: the options of `serve`, without the tasks of Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from rerankd.cli.commands import ENTRIES, peer_command
from rerankd.cli.door import Door
from rerankd.cli.groups import Values, grouped
from rerankd.cli.options import OR_DEFAULT
from rerankd.cli.serving import DOOR, LAUNCH, LIMITS, MEDIA, MEDIA_LIMITS, RESIDENCE, SERVED_LOADING, SETTINGS
from rerankd.cli.several import entries
from rerankd.cli.start import Launch, Media, TracesTo
from rerankd.compat.flags import Refused
from rerankd.compat.peers import VLLM
from rerankd.compat.variables import VLLM_VARIABLES
from rerankd.limits import RequestLimits
from rerankd.media.limits import MediaLimits
from rerankd.server.settings import Residence

BY_RAY = (
    Refused(
        (
            *("host=", "port=", "grpc-port=", "uds=", "root-path=", "fastapi-root-path=", "timeout-keep-alive="),
            *("ssl-keyfile=", "ssl-keyfile-password=", "ssl-certfile=", "ssl-ca-certs=", "ssl-cert-reqs="),
        ),
        "Ray's proxies listen, so say it in Ray's http_options",
    ),
    Refused(("log-format=",), "the lines go to the logger of Ray Serve; set `encoding` in its logging_config"),
    Refused(("sleep-routes",), "a call reaches one replica of several; let Ray scale them, or set idle-unload"),
)
"""The flags of `serve` that a replica has not."""
PEER = replace(VLLM, refused=(*BY_RAY, *VLLM.refused))


def launch_of(flags: Mapping[str, Any]) -> tuple[Launch, list[str]]:
    """The launch that entries ask for, with RERANKD_* variables where they say nothing; and lines to log.

    flags: flags of `serve`, named without dashes, as a `--config` file has them

    Raises UsageProblem, in one line that names the entry.
    """
    launches: list[tuple[Launch, list[str]]] = []

    @grouped
    def replica(
        ctx: typer.Context,
        model_flag: Annotated[str | None, typer.Option("--model", help=OR_DEFAULT)] = None,
        model_id: Annotated[list[str] | None, typer.Option("--model-id", help="A model; several have a list.")] = None,
        *,
        own: Annotated[
            Values,
            LAUNCH.but("host", "port", "grpc_port", "keep_alive", "log_format").changed(
                log_level={"flags": ("--uvicorn-log-level", "--log-level")}
            ),
        ],
        settings: Annotated[Values, SETTINGS],
        limits: Annotated[RequestLimits, LIMITS],
        loading: Annotated[Values, SERVED_LOADING],
        residence: Annotated[Residence, RESIDENCE.but("sleep_routes")],
        media: Annotated[Media, MEDIA],
        media_limits: Annotated[MediaLimits, MEDIA_LIMITS],
        door: Annotated[
            Door,
            DOOR.but(
                *("ssl_keyfile", "ssl_keyfile_password", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs"),
                *("root_path", "uds"),
            ),
        ],
        otlp_traces_endpoint: Annotated[
            str | None, typer.Option(help="Endpoint to send OpenTelemetry traces to.")
        ] = None,
    ) -> None:
        chosen, *others = [*filter(None, (model_flag, *(model_id or ())))] or [None]
        launch = Launch(
            chosen,
            **own,
            settings=settings,
            loading=loading,
            request_limits=limits,
            media=media,
            media_limits=media_limits,
            door=door,
            traces=TracesTo(otlp_traces_endpoint) if otlp_traces_endpoint else None,
            residence=residence,
            more=entries(ctx.obj.models, others, SERVED_LOADING, SETTINGS),
        )
        launches.append((launch, [*PEER.judge(ctx.obj.given, chosen or ""), *ctx.obj.notes]))

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=peer_command(PEER, VLLM_VARIABLES))(replica)
    typer.main.get_command(app).main(args=[], prog_name=ENTRIES, standalone_mode=False, obj=dict(flags))
    return launches[0]
