"""Options that fill the fields of a class: declared once, for every command that has them."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeAlias, get_args

import typer

Values: TypeAlias = dict[str, Any]
"""The values of a group's fields, by name, for a command that does not want an object of the class."""
OF_THE_CLASS: Any = object()
LARGEST = {int: 10**15, float: 10**9}
"""The largest numbers of options. A larger one is a slip, and clocks and sizes in bytes would overflow.

10**9 seconds are 31 years, and 10**9 gigabytes less than 2**63 bytes.
"""


@dataclass(frozen=True, slots=True)
class Option:
    """The option of a field on the command line.

    help: the help line
    flags: the flags; empty for the field's name with dashes
    kind: the type of the value on the command line; None for the field's type
    default: the default on the command line; by default the field's default
    convert: makes the field's value from the value on the command line
    typed: further arguments of `typer.Option`: `parser`, `metavar`, `min`, `max`, ...
    """

    help: str
    flags: tuple[str, ...] = ()
    kind: Any = None
    default: Any = OF_THE_CLASS
    convert: Callable[[Any], Any] | None = None
    typed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """The options of the fields of a class.

    fields_of: the class, a dataclass, which has the types and the defaults of the fields
    """

    fields_of: type
    options: Mapping[str, Option]

    def but(self, *fields: str) -> Group:
        """The group without the options of some fields, which keep the defaults of the class."""
        return Group(self.fields_of, {name: option for name, option in self.options.items() if name not in fields})

    def changed(self, **changes: Mapping[str, Any]) -> Group:
        """The group with changed options for some fields, for a command with other flags or defaults."""
        changed = {name: replace(self.options[name], **change) for name, change in changes.items()}
        return Group(self.fields_of, {**self.options, **changed})

    def parameters(self, prefix: str) -> list[inspect.Parameter]:
        """The parameters for Typer, each named by the prefix and its field."""
        fields = {field.name: field for field in dataclasses.fields(self.fields_of)}
        names = vars(sys.modules[self.fields_of.__module__])
        parameters = []
        for name, option in self.options.items():
            flags = option.flags or (f"--{name.replace('_', '-')}",)
            default = fields[name].default if option.default is OF_THE_CLASS else option.default
            # One field's type, as others may be of modules that are imported for type checkers alone.
            kind = eval(str(fields[name].type), names) if option.kind is None else option.kind
            is_number = not {int, float}.isdisjoint((kind, *get_args(kind)))
            info = typer.Option(*flags, help=option.help, callback=_small if is_number else None, **option.typed)
            parameters.append(
                inspect.Parameter(
                    f"{prefix}_{name}",
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None if default is dataclasses.MISSING else default,
                    annotation=Annotated[kind, info],
                )
            )
        return parameters

    def values(self, arguments: Mapping[str, Any], prefix: str) -> Values:
        """The values of the fields, from the given parameters."""
        raw_values = {name: arguments[f"{prefix}_{name}"] for name in self.options if f"{prefix}_{name}" in arguments}
        return {
            name: value if (convert := self.options[name].convert) is None else convert(value)
            for name, value in raw_values.items()
        }


def _small(value: Any) -> Any:
    """The value of a number's option. Refuses numbers that are too large, inf, and nan, which is not smaller either."""
    if value is not None and not value <= LARGEST[type(value)]:
        raise typer.BadParameter(f"the value has to be a number, at most {LARGEST[type(value)]:,}")
    return value


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator for commands with parameters that are groups, as in `loading: Annotated[Values, LOADING]`.

    A parameter whose type is the group's class gets an object of the class; a parameter of type `Values` gets a dict.
    """
    plain: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, Group]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        marks = getattr(parameter.annotation, "__metadata__", ())
        group = next((mark for mark in marks if isinstance(mark, Group)), None)
        if group is None:
            plain.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            parameters.append(plain[-1])
        else:
            groups[parameter.name] = parameter.annotation.__origin__, group
            parameters += group.parameters(parameter.name)

    def run(**arguments: Any) -> None:
        filled = {parameter.name: arguments[parameter.name] for parameter in plain}
        for name, (kind, group) in groups.items():
            values = group.values(arguments, name)
            filled[name] = group.fields_of(**values) if kind is group.fields_of else values
        command(**filled)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run
