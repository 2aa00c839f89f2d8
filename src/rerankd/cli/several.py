"""Several models of one server: `models:` of a configuration file, each with options of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rerankd.cli.groups import Group
from rerankd.compat.flags import UsageProblem

KEY, MORE = "models", "more"
"""The key of a file, and the parameter of models that stand behind the first on a command line."""
LOADING, OTHERS = "loading_", ("model_flag", "settings_names")
"""The beginning of the names of parameters that an entry may have, and the names of further such parameters."""
OF_THE_PROCESS = ("num_threads",)
"""Options of loading that a process has once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model to serve beside others.

    names: empty for the model as it was given
    loading: fields of `LoadOptions` that differ from those of all models
    """

    model: str
    names: tuple[str, ...] = ()
    loading: Mapping[str, Any] = field(default_factory=dict)


def settings_of(entry: Any, place: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """The parameters of an entry of `models:`, each as its name, its value as written, and its place in the file.

    options: flag with dashes -> Typer's option

    Raises UsageProblem for what is no entry.
    """
    if isinstance(entry, str):
        entry = {"model": entry}
    if not isinstance(entry, dict) or not entry.get("model"):
        raise UsageProblem(f"{place}: an entry has to be a model, or a mapping with `model` and options of its own.")
    names: set[str] = set()
    for key, value in entry.items():
        where = f"{place}.{key}"
        option = options.get(f"--{key.replace('_', '-')}")
        name = getattr(option, "name", "")
        is_own = name in OTHERS or name.startswith(LOADING)
        if not is_own or name.removeprefix(LOADING) in OF_THE_PROCESS:
            raise UsageProblem(
                f"{where}: a model has no such option of its own; it has `model`, `served-model-name`, and the flags "
                "that say how a model is loaded, such as dtype."
            )
        if name in names:
            raise UsageProblem(f"{where}: the option has another name too, and both are given; keep one.")
        names.add(name)
        if value is not None:
            yield name, value, where


def entries(files: Sequence[Mapping[str, Any]], more: Sequence[str], loading: Group, named: Group) -> tuple[Entry, ...]:
    """Models to serve.

    files: for each entry of a file, the values of its parameters
    more: models of the command line
    """
    of_file = (
        Entry(
            values["model_flag"],
            named.values(values, "settings").get("names", ()),
            loading.values(values, LOADING.rstrip("_")),
        )
        for values in files
    )
    return (*of_file, *(Entry(model) for model in more))
