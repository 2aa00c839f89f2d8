"""Flags of the programs that rerankd replaces: those without effect here, and those that are not supported.

Names are without dashes, and say what a flag takes: `name` is a switch, `name=` takes a value, `name=+` several.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Literal

from rerankd.core import RerankdError

Takes = Literal["nothing", "value", "values"]


class UsageProblem(RerankdError):
    """A command line that is not valid."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Flags whose silent loss would change scores, safety or place: an error, unless their value asks for nothing.

    why: the reason, and the way out
    harmless: values that ask for nothing; `{model}` stands for the model that is served
    """

    names: tuple[str, ...]
    why: str
    harmless: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """A flag of a peer on the command line. `value` is None for a switch, and `off` for one switched off."""

    flag: str
    name: str
    value: str | None
    off: bool = False


@dataclass(frozen=True)
class Peer:
    """A program whose command line is accepted here.

    ignored: reason -> names
    """

    name: str
    ignored: Mapping[str, tuple[str, ...]]
    refused: tuple[Refused, ...]

    @cached_property
    def flags(self) -> dict[str, tuple[Takes, str | Refused]]:
        """Name -> what it takes, and the reason why it has no effect or is refused."""
        verdicts: list[tuple[tuple[str, ...], str | Refused]] = [
            (names, reason) for reason, names in self.ignored.items()
        ]
        verdicts += [(refused.names, refused) for refused in self.refused]
        takes: dict[str, Takes] = {"": "nothing", "=": "value", "=+": "values"}
        return {
            name.rstrip("=+"): (takes[name[len(name.rstrip("=+")) :]], verdict)
            for names, verdict in verdicts
            for name in names
        }

    def judge(self, given: Sequence[Given], model: str) -> Iterator[str]:
        """A line for each flag without effect. Raises UsageProblem for one that is refused."""
        for one in given:
            _, verdict = self.flags[one.name]
            if isinstance(verdict, str):
                yield f"{one.flag} is {self.name}'s and has no effect here: {verdict}."
            elif not one.off and one.value not in [value.format(model=model) for value in verdict.harmless]:
                shown = one.flag if one.value is None else f"{one.flag} {one.value}"
                raise UsageProblem(f"{shown} is not supported: {verdict.why}.")


def sort_out(args: Sequence[str], own: Mapping[str, Takes], peer: Peer) -> tuple[list[str], list[Given]]:
    """Split a command line into arguments for our own parser, and a peer's flags.

    own: our flags with their dashes, and what they take. They come out as they are spelt there, whether they were
        given with dashes or underscores, and one that takes several values is repeated for each of them.

    Raises UsageProblem for a flag that is neither's, with the nearest ones that are.
    """
    left = list(args)
    ours: list[str] = []
    given: list[Given] = []
    while left:
        token = left.pop(0)
        if token == "--":
            return [*ours, token, *left], given
        if not token.startswith("-") or token == "-":
            ours.append(token)
            continue
        flag, equals, attached = token.partition("=")
        dashes, spelt = _split(flag)
        if dashes + spelt in own:
            takes = own[dashes + spelt]
            values = _values(takes, flag, attached if equals else None, left)
            if takes == "nothing":
                ours.append(dashes + spelt + equals + attached)
            for value in values:
                ours += [dashes + spelt, value]
            continue
        name, off = _peer_name(spelt, peer)
        if name is None:
            raise UsageProblem(_unknown(token, dashes + spelt, own, peer))
        if spelt.startswith("O") and name == "O" and len(spelt) > 1:
            given.append(Given(token, name, None))
            continue
        takes = peer.flags[name][0]
        values = _values(takes, flag, attached if equals else None, left)
        if takes == "nothing":
            word = attached if equals else left.pop(0) if left and _is_boolean(left[0]) else ""
            off = off != (word.lower() == "false")
            given.append(Given(flag, name, None, off))
        given += [Given(flag, name, value) for value in values]
    return ours, given


def _split(flag: str) -> tuple[str, str]:
    dashes = "--" if flag.startswith("--") else "-"
    return dashes, flag[len(dashes) :].replace("_", "-")


def _peer_name(spelt: str, peer: Peer) -> tuple[str | None, bool]:
    """The peer's flag that is meant, and whether it is switched off: `--no-x`, `--json.key` and `-O3` are forms."""
    head = spelt.partition(".")[0]
    if head in peer.flags:
        return head, False
    if head.startswith("no-") and peer.flags.get(head[3:], ("", ""))[0] == "nothing":
        return head[3:], True
    if re.fullmatch(r"O\d", head) and "O" in peer.flags:
        return "O", False
    return None, False


def _values(takes: Takes, flag: str, attached: str | None, left: list[str]) -> list[str]:
    if takes == "nothing":
        return []
    if attached is not None:
        return [attached]
    if not left:
        raise UsageProblem(f"{flag} needs a value.")
    values = [left.pop(0)]
    while takes == "values" and left and not left[0].startswith("-"):
        values.append(left.pop(0))
    return values


def _is_boolean(word: str) -> bool:
    return word.lower() in ("true", "false")


def _unknown(token: str, flag: str, own: Mapping[str, Takes], peer: Peer) -> str:
    head = flag.partition(".")[0]
    if head != flag and head in own:
        return f"{token} is not supported; give {head} one JSON object."
    near = get_close_matches(flag, own, n=2, cutoff=0.7)
    near += get_close_matches(flag, [f"--{name}" for name in peer.flags], n=2, cutoff=0.8) if not near else []
    hint = f"; did you mean {' or '.join(near)}?" if near else "; see --help for those that there are."
    return f"There is no flag {flag}{hint}"
