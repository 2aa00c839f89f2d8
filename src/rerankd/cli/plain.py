"""Commands whose errors are one line in our words, and whose help has plain words in place of Python's types.

Typer's own errors repeat pydantic's or click's, by its version, and its help has `<int range>` and `[[MODEL]...]...`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from rerankd.compat.flags import UsageProblem, unknown_flag

# Typer has this class of its own or of click, by its version.
UsageError: Any = typer.BadParameter.__mro__[1]
HELP = {"help_option_names": ["--help", "-h"]}
ELSEWHERE = {"launch_server": "run python -m rerankd.launch_server"}
"""Names that people try as commands, and what they should run."""


class PlainCommand(TyperCommand):
    """A command of rerankd; see the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {**HELP, **self.context_settings}
        kinds = inspect.signature(self.callback, eval_str=True).parameters if self.callback else {}
        for param in self.params:
            if param.metavar is None and param.name in kinds:
                is_argument = param.param_type_name == "argument"
                param.metavar = param.name.upper() if is_argument else _word(kinds[param.name].annotation)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            raise UsageProblem(_told(error, _flags(self, ctx))) from None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        names = [
            name if param.required or name.startswith("[") else f"[{name}]"
            for param in arguments
            if (name := param.metavar or param.name)
        ]
        return [self.options_metavar or "", *names]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for title in ("Argument", "Option"):
            params = [param for param in self.get_params(ctx) if param.param_type_name == title.lower()]
            if records := [record for param in params if (record := param.get_help_record(ctx))]:
                with formatter.section(f"{title}s"):
                    # Typer puts the type behind the name of an argument, whatever its metavar is.
                    formatter.write_dl([(re.sub(r" <[^<>]*>$", "", name), text) for name, text in records])


class PlainGroup(TyperGroup):
    """A group of such commands."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {**HELP, **self.context_settings}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_bare = not args  # (the parser empties the list)
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            if is_bare:  # no error: a group shows its help so
                raise
            raise UsageProblem(_told(error, _flags(self, ctx))) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except UsageError:
            name = args[0]
            near = get_close_matches(name, self.commands, n=1)
            way_out = ELSEWHERE.get(name.replace("-", "_")) or (
                f"did you mean {near[0]}?" if near else f"the commands are {', '.join(self.commands)}"
            )
            raise UsageProblem(f"There is no command {name}; {way_out.rstrip('.')}{'' if near else '.'}") from None


def problem(error: typer.BadParameter) -> str:
    """What is wrong with the value of an option, as a clause without a full stop."""
    from pydantic import ValidationError

    from rerankd.schemas.wording import problem_of

    if not isinstance(error.__cause__, ValidationError):
        # Typer begins errors of paths with its own name of the type.
        return re.sub(r"^(dir|file|path) (?=')", "", error.message).rstrip(".")
    details = error.__cause__.errors(include_url=False)[0]
    clause = problem_of(details)
    return f"{clause}, not {details['input']!r:.100}" if clause.startswith("must ") else clause


def _told(error: Any, flags: Iterable[str]) -> str:
    """An error of a command line as a sentence."""
    param = getattr(error, "param", None)
    if hasattr(error, "possibilities"):
        return unknown_flag(error.option_name, flags)
    if param is None:
        return f"{error.format_message().rstrip('.')}."
    name = next((flag for flag in param.opts if flag.startswith("--")), param.metavar or param.name)
    is_missing = type(error).__name__ == "MissingParameter"
    return f"{name}: {'is required; see --help' if is_missing else problem(error)}."


def _flags(command: Any, ctx: Any) -> list[str]:
    return [flag for param in command.get_params(ctx) for flag in param.opts if flag.startswith("-")]


def _word(kind: Any) -> str | None:
    """The word for the values of an option, by its type in Python; None for a switch."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is list or origin is Annotated:
        return _word(arguments[0])
    if inner := [argument for argument in arguments if argument is not type(None)]:
        return _word(inner[0])
    return {bool: None, int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")
