"""Environment variables of vLLM and SGLang: those that stand for a flag here, and why others have no effect.

HF_HOME, HF_TOKEN, OTEL_* and the other variables of libraries are left to those libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

from rerankd.compat.peers import SGLANG_IGNORED_VARIABLES, VLLM_IGNORED_VARIABLES

PREFIXES = ("VLLM_", "SGLANG_", "SGL_")
LEVELS = ("critical", "error", "warning", "info", "debug")


@dataclass(frozen=True, slots=True)
class StandsFor:
    """A variable that stands for a flag.

    value: returns the flag's value for the variable's; None for a value without effect. Raises ValueError for nonsense.
    """

    flag: str
    value: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Variables:
    """The variables of one program.

    honoured: name -> the flag that it stands for
    ignored: reason -> names
    """

    program: str
    honoured: Mapping[str, StandsFor]
    ignored: Mapping[str, tuple[str, ...]]

    def flag_values(self, environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """Variable -> the flag that it stands for, and the flag's value."""
        values = {
            name: _value(stands_for, environ[name]) for name, stands_for in self.honoured.items() if name in environ
        }
        return {name: (self.honoured[name].flag, value) for name, value in values.items() if value is not None}

    def notes(self, environ: Mapping[str, str], flags: Container[str]) -> Iterator[str]:
        """A line for each known variable that is set and has no effect, and one line for all unknown ones.

        flags: that there are where the variables are read
        """
        why = {name: reason for reason, names in self.ignored.items() for name in names}
        unknown = []
        for name in sorted(name for name, value in environ.items() if value):
            if name in why:
                yield f"{name} is {self.program}'s and has no effect here: {why[name]}."
            elif name in self.honoured:
                stands_for = self.honoured[name]
                try:
                    asks = stands_for.value(environ[name]) is not None
                except ValueError as error:
                    yield f"{name} is not read: {error}."
                    continue
                if asks and stands_for.flag not in flags:
                    yield f"{name} has no effect here: it stands for {stands_for.flag}, which cannot be set here."
            elif name.startswith(PREFIXES):
                unknown.append(name)
        if unknown:
            yield f"Not read: {', '.join(unknown)}."


def _value(stands_for: StandsFor, text: str) -> str | None:
    try:
        return stands_for.value(text)
    except ValueError:
        return None


def _modelscope(text: str) -> str | None:
    """`modelscope` for a yes."""
    if text.strip().lower() in ("true", "1", "yes", "y"):
        return "modelscope"
    if text.strip().lower() in ("false", "0", "no", "n", ""):
        return None
    raise ValueError(f"{text!r} is neither true nor false")


def _level(text: str) -> str | None:
    level = {"warn": "warning", "fatal": "critical"}.get(text.lower(), text.lower())
    if level and level not in LEVELS:
        raise ValueError(f"{text!r} is none of {', '.join(LEVELS)}")
    return level or None


def _seconds(text: str) -> str | None:
    if not text:
        return None
    if not 0 < float(text) < float("inf"):
        raise ValueError(f"{text!r} is no number of seconds")
    return text


def _yes(text: str) -> str | None:
    """vLLM's switches are numbers."""
    try:
        return "true" if int(text or "0") else None
    except ValueError:
        raise ValueError(f"{text!r} is neither 0 nor 1") from None


USE_MODELSCOPE = "VLLM_USE_MODELSCOPE"

VLLM_VARIABLES = Variables(
    "vLLM",
    {
        USE_MODELSCOPE: StandsFor("--hub", _modelscope),
        # An empty one is refused where keys are read: it must not leave the door open.
        "VLLM_API_KEY": StandsFor("--api-key", str),
        "VLLM_LOGGING_LEVEL": StandsFor("--log-level", _level),
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": StandsFor("--timeout-keep-alive", _seconds),
        # Of the routes that the variable adds to vLLM's, rerankd has these three.
        "VLLM_SERVER_DEV_MODE": StandsFor("--sleep-routes", _yes),
    },
    VLLM_IGNORED_VARIABLES,
)

SGLANG_VARIABLES = Variables(
    "SGLang",
    {
        "SGLANG_USE_MODELSCOPE": StandsFor("--hub", _modelscope),
        "SGLANG_TIMEOUT_KEEP_ALIVE": StandsFor("--timeout-keep-alive", _seconds),
    },
    SGLANG_IGNORED_VARIABLES,
)


def modelscope(environ: Mapping[str, str]) -> bool:
    """Whether vLLM would look a model up on ModelScope."""
    return USE_MODELSCOPE in VLLM_VARIABLES.flag_values(environ)
