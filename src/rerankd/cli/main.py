"""The command `rerankd`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from rerankd.cli.commands import ForwardingCommand, lists_command, peer_command, takes
from rerankd.cli.evaluate import LISTS as EVAL_LISTS
from rerankd.cli.evaluate import evaluate
from rerankd.cli.inspect import inspect
from rerankd.cli.launch_server import launch_server
from rerankd.cli.models import models
from rerankd.cli.plain import PlainCommand, PlainGroup
from rerankd.cli.rank import rank, run_batch
from rerankd.cli.serve import serve
from rerankd.compat.flags import Takes, UsageProblem
from rerankd.compat.peers import SGLANG, VLLM
from rerankd.compat.variables import SGLANG_VARIABLES, VLLM_VARIABLES
from rerankd.version import __version__


def main() -> None:
    """`rerankd ...`."""
    _run(_rerankd())


def main_launch_server() -> None:
    """`python -m rerankd.launch_server ...`."""
    _run(_launch_server())


def own_flags(command: str) -> dict[str, Takes]:
    """The flags of `serve` or `launch_server`, without dashes, and what each takes."""
    app = _launch_server() if command == "launch_server" else _rerankd()
    typer_command = typer.main.get_command(app)
    typer_command = getattr(typer_command, "commands", {}).get(command, typer_command)
    return {
        flag.lstrip("-"): takes(param)
        for param in typer_command.params
        for flag in (*param.opts, *param.secondary_opts)
        if flag.startswith("-")
    }


def _launch_server() -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(cls=peer_command(SGLANG, SGLANG_VARIABLES))(launch_server)
    return app


def _rerankd() -> typer.Typer:
    app = typer.Typer(
        cls=PlainGroup,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def rerankd(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
        ] = False,
    ) -> None:
        """A rerank engine and server."""

    app.command(cls=peer_command(VLLM, VLLM_VARIABLES))(serve)
    app.command(cls=PlainCommand)(inspect)
    app.command(cls=PlainCommand)(models)
    app.command(cls=lists_command("--run"))(rank)
    app.command("eval", cls=lists_command(*EVAL_LISTS))(evaluate)
    app.command("run-batch", cls=peer_command(VLLM, VLLM_VARIABLES))(run_batch)
    # Its own parser reads what follows: the tools are heavy to import, and seldom wanted.
    app.command(cls=ForwardingCommand)(bench)
    return app


def bench(ctx: typer.Context) -> None:
    """Measure a rerank server, or the engine without one."""
    from rerankd.cli.bench import app

    app(args=ctx.args, prog_name="rerankd bench")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rerankd {__version__}")
        raise typer.Exit


def _run(app: Callable[[], object]) -> None:
    try:
        app()
    except UsageProblem as problem:
        print(f"rerankd: error: {problem}", file=sys.stderr)
        sys.exit(2)
