"""Commands that read more than Typer does: other programs' flags, and options of several values."""

from __future__ import annotations

import os
from typing import Any

from typer.core import TyperCommand

from rerankd.compat.flags import Peer, Takes, sort_out
from rerankd.compat.variables import Variables


def takes(param: Any) -> Takes:
    """Whether an option takes a value. An option whose metavar ends in dots takes several."""
    if getattr(param, "is_flag", False):
        return "nothing"
    return "values" if (param.metavar or "").endswith("...") else "value"


def peer_command(peer: Peer, variables: Variables) -> type[TyperCommand]:
    """A command that takes a peer's flags beside its own, and has them as `ctx.obj`, a list of `Given`.

    What the peer's variables stand for, it takes as if the flag was given first.
    """

    class PeerCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            own: dict[str, Takes] = {
                flag: takes(param)
                for param in self.get_params(ctx)
                for flag in (*param.opts, *param.secondary_opts)
                if flag.startswith("-")
            }
            args, ctx.obj = sort_out(args, own, peer)
            return super().parse_args(ctx, [*variables.arguments(os.environ, args), *args])

    return PeerCommand


def lists_command(*flags: str) -> type[TyperCommand]:
    """A command that takes `--header A=1 B=2` as argparse does, beside `--header A=1 --header B=2`."""

    class ListsCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            spread: list[str] = []
            option = None
            for argument in args:
                if argument.startswith("-") and argument != "-":
                    option = argument if argument in flags else None
                elif option and spread[-1] != option:
                    spread.append(option)
                spread.append(argument)
            return super().parse_args(ctx, spread)

    return ListsCommand
