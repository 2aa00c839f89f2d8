"""Options from variables `RERANKD_*` and from a file in vLLM's form."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
import yaml

from rerankd.cli.door import KEY_VARIABLE
from rerankd.cli.plain import problem
from rerankd.cli.several import KEY, MORE, settings_of
from rerankd.compat.flags import Given, Peer, UsageProblem, sort_out

PREFIX = "RERANKD_"
READ_ELSEWHERE = frozenset({KEY_VARIABLE, "RERANKD_ISA"})
"""Variables of this prefix that stand for no flag: the key is added to the keys of the flag."""
CLUSTER_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
"""Kubernetes writes it into RERANKD_PORT where a service has the name `rerankd`."""
WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
OWN = {
    name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
    for name, default, kind, option in (
        ("config", None, str | None, typer.Option(metavar="FILE", help="YAML file of flags, named without dashes.")),
        (
            "print_config",
            False,
            bool,
            typer.Option("--print-config", help="Print every option's value and origin, and exit."),
        ),
    )
}
"""The options that are about options."""
Options: TypeAlias = Mapping[str, Any]
"""Flag with dashes -> Typer's option."""


@dataclass(frozen=True, slots=True)
class Setting:
    """An option's value from a variable or a file.

    name: the name of the option in Typer
    value: a text, a list of texts, or a bool for a switch, as Typer takes it
    place: the variable or the file
    """

    name: str
    value: Any
    place: str


@dataclass(frozen=True, slots=True)
class File:
    """A file's settings, the flags of a peer in the file, and for each entry of `models` its own settings."""

    settings: list[Setting]
    given: list[Given]
    models: list[list[Setting]]


def of_environment(options: Options, environ: Mapping[str, str]) -> tuple[list[Setting], list[str]]:
    """The settings of variables, and a line on variables that are not read. An empty variable counts as unset.

    Raises UsageProblem for two variables of one option, and for a value that is none.
    """
    flags = {PREFIX + flag[2:].replace("-", "_").upper(): flag for flag in options if flag.startswith("--")}
    settings: dict[str, Setting] = {}
    unread = []
    for variable in sorted(name for name in environ if name.startswith(PREFIX) and environ[name]):
        text = environ[variable]
        if variable in READ_ELSEWHERE:
            continue
        if variable not in flags or flags[variable] == "--help" or CLUSTER_ADDRESS.match(text):
            unread.append(variable)
            continue
        option = options[flags[variable]]
        _add(settings, Setting(option.name, _of_text(option, text, variable), variable), variable)
    return list(settings.values()), [f"Not read: {', '.join(unread)}."] if unread else []


def of_file(path: str, options: Options, our_flags: Mapping[str, Any], peer: Peer) -> File:
    """The settings of a file. Raises UsageProblem, in one line with the file and the key."""
    return of_entries(_read(path), path, options, our_flags, peer)


def of_entries(
    entries: Mapping[str, Any], path: str, options: Options, our_flags: Mapping[str, Any], peer: Peer
) -> File:
    """The settings of a file's entries, or of a caller's. An entry without a value (None) says nothing.

    path: the path of the file, or the name of the entries in messages
    our_flags: see `sort_out`

    Raises UsageProblem, in one line with the path and the key.
    """
    settings: dict[str, Setting] = {}
    peer_flags: list[Given] = []
    models: list[list[Setting]] = []
    for key, value in entries.items():
        place = f"{path}: {key}"
        if not re.fullmatch(r"\w[\w.-]*", key):
            raise UsageProblem(f"{place}: a key has to be a flag's name without its dashes, such as max-model-len.")
        flag = f"--{key.replace('_', '-')}"
        if flag in ("--config", "--help"):
            raise UsageProblem(f"{place}: {flag} is for the command line alone.")
        if value is None:
            continue
        if key == KEY and "--model-id" in options:
            models = _entries(value, place, options)
            continue
        if flag not in options:
            values = value if isinstance(value, list) else [value]
            words = [f"{flag}={_text(item, place)}" for item in values]
            try:
                peer_flags += [
                    Given(place, peer_flag.name, peer_flag.value, peer_flag.off)
                    for peer_flag in sort_out(words, our_flags, peer)[1]
                ]
            except UsageProblem as problem:
                raise UsageProblem(f"{place}: {problem}") from None
            continue
        option = options[flag]
        _add(settings, Setting(option.name, _of_yaml(option, value, place), path), place)
    if models and any(
        setting.name in ("model", "model_flag", "model_id") and setting.value for setting in settings.values()
    ):
        raise UsageProblem(f"{path}: a model is given beside {KEY}; make it one of them.")
    return File(list(settings.values()), peer_flags, models)


def check(settings: Iterable[Setting], options: Options, ctx: Any) -> dict[str, Any]:
    """The values as their options have them, by name. Raises UsageProblem for one that its option does not take."""
    by_name = {option.name: (flag, option) for flag, option in options.items() if flag.startswith("--")}
    values = {}
    for setting in settings:
        flag, option = by_name[setting.name]
        try:
            values[setting.name] = option.process_value(ctx, setting.value)
        except typer.BadParameter as error:
            names_key = setting.place.startswith(PREFIX) or ": " in setting.place
            where = setting.place if names_key else f"{setting.place}: {flag[2:]}"
            raise UsageProblem(f"{where}: {problem(error)}.") from None
    return values


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """A command for Typer with `--config` and `--print-config`, which `PeerCommand` reads."""
    signature = inspect.signature(command)

    def run(**arguments: Any) -> None:
        command(**{name: value for name, value in arguments.items() if name not in OWN})

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *OWN.values()]
    )
    return run


def in_force(ctx: Any, params: Iterable[Any], places: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[str]:
    """A line of YAML for each option: key, value, and the place that the value is from. Secrets are not shown.

    places: name of an option -> place of its value, where the option is not on the command line
    """
    lines: dict[str, str] = {}
    for param in params:
        key = next((flag for flag in param.opts if flag.startswith("--")), param.name).lstrip("-")
        if param.name not in ctx.params or key in ("config", "print-config", MORE):
            continue
        on_line = ctx.get_parameter_source(param.name).name == "COMMANDLINE"
        place = "command line" if on_line else places.get(param.name, "default")
        value = ctx.params[param.name]
        if getattr(param, "hide_input", False):
            used = [place] if value else []
            used += [KEY_VARIABLE] if key == "api-key" and KEY_VARIABLE in environ else []
            lines[key] = f"# {key}: {'not shown' if used else 'none'}  ({' and '.join(used) or 'default'})"
        elif key not in lines or (place != "default" and not lines[key].endswith("# command line")):
            lines[key] = f"{key}: {json.dumps(value, default=_plain, ensure_ascii=False)}  # {place}"
    yield from lines.values()


def in_force_models(models: Iterable[Iterable[Setting]], path: str) -> str:
    """The line of YAML for the models of a file."""
    written = [{setting.place.rpartition(".")[2]: setting.value for setting in settings} for settings in models]
    return f"{KEY}: {json.dumps(written, ensure_ascii=False)}  # {path}"


def _entries(value: Any, place: str, options: Options) -> list[list[Setting]]:
    if not isinstance(value, list) or not value:
        raise UsageProblem(f"{place}: the value has to be a list of models.")
    by_name = {option.name: option for option in options.values()}
    return [
        [
            Setting(name, _of_yaml(by_name[name], raw, at), at)
            for name, raw, at in settings_of(entry, f"{place}[{number}]", options)
        ]
        for number, entry in enumerate(value)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | set) else getattr(value, "value", str(value))


def _add(settings: dict[str, Setting], setting: Setting, place: str) -> None:
    if setting.name in settings:
        raise UsageProblem(f"{place}: the option has another name too, and both are given; keep one.")
    settings[setting.name] = setting


def _of_text(option: Any, text: str, variable: str) -> Any:
    if getattr(option, "is_flag", False):
        return _switch(text, variable)
    if not option.multiple:
        return text
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageProblem(f"{variable}: the value cannot be split into words: {error}.") from None


def _switch(text: str, place: str) -> bool:
    if text.strip().lower() not in WORDS:
        raise UsageProblem(f"{place}: {text!r} is neither true nor false.")
    return WORDS[text.strip().lower()]


def _of_yaml(option: Any, value: Any, place: str) -> Any:
    if getattr(option, "is_flag", False):
        return _switch(_text(value, place), place)
    if option.multiple:
        return [_text(item, place) for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, (list, dict)) and option.metavar != "JSON":
        raise UsageProblem(f"{place}: the option takes one value, not a list or a mapping.")
    return _text(value, place)


def _text(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        raise UsageProblem(f"{place}: the value has a type that JSON lacks; write texts in quotes.") from None


def _read(path: str) -> dict[str, Any]:
    """The file's entries, with numbers, dates and words such as `off` as they are written."""
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise UsageProblem(f"{path}: the file must have keys and values, such as port: 8000.")
        _refuse_twins(root, [])
        return {
            str(key.value): [_mapping(item, loader) for item in value.value]
            if key.value == KEY and isinstance(value, yaml.SequenceNode)
            else _as_written(value, loader)
            for key, value in root.value
        }
    except (OSError, UnicodeError) as error:
        raise UsageProblem(f"--config {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UsageProblem(f"{path}{line}: the file is not YAML that can be read: {why}.") from None


def _refuse_twins(node: Any, above: list[Any]) -> None:
    """Raises for a key that is twice in a mapping, of which PyYAML takes the last; and for a mapping in itself."""
    if isinstance(node, yaml.ScalarNode):
        return
    if node in above:
        raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=node.start_mark)
    inside = node.value
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} occurs twice", problem_mark=key.start_mark)
            keys.add(str(key.value))
        inside = [value for _, value in node.value]
    for child in inside:
        _refuse_twins(child, [*above, node])


def _mapping(node: Any, loader: Any) -> Any:
    """An entry of a list, with the values of a mapping as they are written."""
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # puts the keys of `<<` before the node's own, which win
        return {str(key.value): _as_written(value, loader) for key, value in node.value}
    return _as_written(node, loader)


def _as_written(node: Any, loader: Any) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else node.value
    if isinstance(node, yaml.SequenceNode):
        scalar = yaml.ScalarNode
        return [
            item.value if isinstance(item, scalar) else loader.construct_object(item, deep=True) for item in node.value
        ]
    return loader.construct_object(node, deep=True)
