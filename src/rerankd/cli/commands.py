"""Commands with more than Typer's options: other programs' flags, and options of several values."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperCommand

from rerankd.cli.configuration import (
    Setting,
    check,
    in_force,
    in_force_models,
    of_entries,
    of_environment,
    of_file,
)
from rerankd.cli.plain import PlainCommand
from rerankd.cli.several import MORE
from rerankd.compat.flags import Given, Peer, Takes, UsageProblem, sort_out
from rerankd.compat.variables import Variables

MODELS = ("model", "model_flag", "model_path", "model_id")
"""Names of the parameters that are the model."""
ENTRIES = "args"
"""The name that messages have for entries of a caller in Python; a file of Ray Serve has them under this key."""


def takes(param: Any) -> Takes:
    """Whether an option takes a value. An option whose metavar ends in dots takes several."""
    if getattr(param, "is_flag", False):
        return "nothing"
    return "values" if (param.metavar or "").endswith("...") else "value"


@dataclass(frozen=True, slots=True)
class Beside:
    """The input of a command beside its own options, as `ctx.obj`.

    given: a peer's flags
    notes: a line for each variable that has no effect
    models: the values of the parameters of each entry of a file's `models`; empty if another source names the model
    """

    given: list[Given]
    notes: list[str]
    models: list[dict[str, Any]] = field(default_factory=list)


def peer_command(peer: Peer, variables: Variables) -> type[TyperCommand]:
    """A command that takes a peer's flags beside its own, and its options from variables and a file too.

    The command line wins over RERANKD_* variables, these win over the peer's variables, and these over the file. The
    models are one setting, whichever options name them: the first source that names a model names all models. What an
    entry of the file says of its model wins over the rest of the file alone.
    A caller in Python gives entries, as a file has them, in place of a command line, as the context's `obj`.
    """

    class PeerCommand(PlainCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            options = {
                flag: param
                for param in self.get_params(ctx)
                for flag in (*param.opts, *param.secondary_opts)
                if flag.startswith("-")
            }
            our_flags = {flag: takes(param) for flag, param in options.items()}
            args, peer_flags = sort_out(args, our_flags, peer)
            settings, notes = of_environment(options, os.environ)
            settings += [
                Setting(options[flag].name, [value] if options[flag].multiple else value, name)
                for name, (flag, value) in variables.flag_values(os.environ).items()
                if flag in options
            ]
            path = self.make_parser(ctx).parse_args(list(args))[0].get("config")
            path = path or next((setting.value for setting in settings if setting.name == "config"), None)
            models: list[list[Setting]] = []
            if ctx.obj:
                file = of_entries(ctx.obj, ENTRIES, options, our_flags, peer)
                chosen = bool(file.models) or _name_models(file.settings)
                settings, models, peer_flags = [*file.settings, *_but_models(settings, chosen)], file.models, file.given
            elif path:
                file = of_file(path, options, our_flags, peer)
                settings += _but_models(file.settings, _name_models(settings))
                models = file.models
                on_line = [peer_flag.name for peer_flag in peer_flags]
                peer_flags += [peer_flag for peer_flag in file.given if peer_flag.name not in on_line]
            check(settings, options, ctx)
            first = {setting.name: setting for setting in reversed(settings)}
            ctx.default_map = {name: setting.value for name, setting in first.items()}
            try:
                remaining_args = super().parse_args(ctx, args)
            except typer.BadParameter as error:
                # One line, as for a value of a variable or of the file.
                raise UsageProblem(error.format_message()) from None
            named = [name for name in (*MODELS, MORE) if ctx.params.get(name)]
            on_line = [name for name in named if ctx.get_parameter_source(name).name == "COMMANDLINE"]
            for name in set(named).difference(on_line) if on_line else ():
                ctx.params[name] = None
                first.pop(name, None)
            if more := ctx.params.get(MORE):
                ctx.params["model_id"] = [*more, *(ctx.params["model_id"] or ())]
                ctx.set_parameter_source("model_id", ctx.get_parameter_source(MORE))
            model = next((ctx.params[name] for name in MODELS if ctx.params.get(name)), "")
            if model:
                models = []
            values = [check(model_settings, options, ctx) for model_settings in models]
            if not ctx.obj:
                stronger = {setting.name for setting in first.values() if setting.place != path}
                stronger |= {name for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}
                models = [[one for one in entry if one.name not in stronger] for entry in models]
                values = [{name: own[name] for name in own if name not in stronger} for own in values]
            ctx.obj = Beside(peer_flags, [*notes, *variables.notes(os.environ, options)], values)
            if ctx.params.get("print_config"):
                places = {name: setting.place for name, setting in first.items()}
                for note in (*peer.judge(peer_flags, model), *ctx.obj.notes):
                    typer.echo(note, err=True)
                for line in in_force(ctx, self.get_params(ctx), places, os.environ):
                    typer.echo(line)
                if models:
                    typer.echo(in_force_models(models, str(path)))
                raise typer.Exit
            return remaining_args

    return PeerCommand


def _name_models(settings: Iterable[Setting]) -> bool:
    """Whether some of the settings are models."""
    return any(setting.name in MODELS for setting in settings)


def _but_models(settings: Iterable[Setting], dropped: bool) -> list[Setting]:
    """The settings, without models if `dropped`."""
    return [setting for setting in settings if not dropped or setting.name not in MODELS]


class ForwardingCommand(TyperCommand):
    """A command that reads no argument itself: `ctx.args` has all as they stand, `--` and `--help` too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = args
        return args


def lists_command(*flags: str) -> type[TyperCommand]:
    """A command that takes `--header A=1 B=2` as argparse does, beside `--header A=1 --header B=2`."""

    class ListsCommand(PlainCommand):
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
