"""Options that fill the fields of a class: declared once, for every command that has them."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeAlias

import typer

Values: TypeAlias = dict[str, Any]
"""Values of fields, by name: what a command is given of a group that it makes no object of by itself."""
OF_THE_CLASS: Any = object()


@dataclass(frozen=True, slots=True)
class Option:
    """How a field is given on a command line.

    flags: empty for the field's name
    kind: the type on the command line; None for the field's own
    default: on the command line; the class's own where nothing else is said
    convert: from the value on the command line to the field's
    typed: what else Typer is told: `parser`, `metavar`, `min`, `max`, ...
    """

    help: str
    flags: tuple[str, ...] = ()
    kind: Any = None
    default: Any = OF_THE_CLASS
    convert: Callable[[Any], Any] | None = None
    typed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """The options of a class's fields.

    made: the class, a dataclass; the fields have their types and defaults from there
    """

    made: type
    options: Mapping[str, Option]

    def but(self, *fields: str) -> Group:
        """The group without some fields, which keep the defaults of the class."""
        return Group(self.made, {name: option for name, option in self.options.items() if name not in fields})

    def changed(self, **changes: Mapping[str, Any]) -> Group:
        """The group with some fields' options changed, for a command that has other flags or defaults."""
        changed = {name: replace(self.options[name], **change) for name, change in changes.items()}
        return Group(self.made, {**self.options, **changed})

    def parameters(self, prefix: str) -> list[inspect.Parameter]:
        """The parameters for Typer, each named by the prefix and its field."""
        fields = {one.name: one for one in dataclasses.fields(self.made)}
        names = vars(sys.modules[self.made.__module__])
        made = []
        for name, option in self.options.items():
            flags = option.flags or (f"--{name.replace('_', '-')}",)
            default = fields[name].default if option.default is OF_THE_CLASS else option.default
            info = typer.Option(*flags, help=option.help, **option.typed)
            # One field's type, as others may be of modules that are imported for type checkers alone.
            kind = eval(str(fields[name].type), names) if option.kind is None else option.kind
            made.append(
                inspect.Parameter(
                    f"{prefix}_{name}",
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None if default is dataclasses.MISSING else default,
                    annotation=Annotated[kind, info],
                )
            )
        return made

    def values(self, given: Mapping[str, Any], prefix: str) -> Values:
        """The fields' values of those of the parameters that are given."""
        found = {name: given[f"{prefix}_{name}"] for name in self.options if f"{prefix}_{name}" in given}
        return {
            name: value if (convert := self.options[name].convert) is None else convert(value)
            for name, value in found.items()
        }


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command for Typer of one whose parameters may be annotated with groups: `loading: Annotated[Values, LOADING]`.

    A parameter whose type is the group's class is given an object of the class.
    """
    own: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, Group]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        marks = getattr(parameter.annotation, "__metadata__", ())
        group = next((one for one in marks if isinstance(one, Group)), None)
        if group is None:
            own.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            parameters.append(own[-1])
        else:
            groups[parameter.name] = parameter.annotation.__origin__, group
            parameters += group.parameters(parameter.name)

    def run(**given: Any) -> None:
        filled = {one.name: given[one.name] for one in own}
        for name, (kind, group) in groups.items():
            values = group.values(given, name)
            filled[name] = group.made(**values) if kind is group.made else values
        command(**filled)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run
