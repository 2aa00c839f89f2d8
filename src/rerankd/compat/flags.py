"""Flags of the programs that rerankd replaces: those without effect here, and those that are not supported.

Names are without dashes, and say what a flag takes: `name` is a switch, `name=` takes a value, `name=+` several.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    harmless_entries: entries of a JSON object that ask for nothing, each with its values that do; no values for any
    """

    names: tuple[str, ...]
    why: str
    harmless: tuple[str, ...] = ()
    harmless_entries: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def asks_nothing(self, given: Given, model: str) -> bool:
        """Whether a flag is switched off, or has a value that changes nothing."""
        if given.off or given.value in [value.format(model=model) for value in self.harmless]:
            return True
        if not self.harmless_entries or given.value is None:
            return False
        try:
            value = json.loads(given.value)
        except ValueError:
            value = given.value
        # `--json.entry value` is one entry; in a file, the path stands before it.
        entry = re.search(rf"{given.name}\.([\w.-]+)$", given.flag.replace("_", "-"))
        entries = {entry[1].replace("-", "_"): value} if entry else value
        return isinstance(entries, dict) and all(
            value is None or (name in self.harmless_entries and value in (self.harmless_entries[name] or (value,)))
            for name, value in entries.items()
        )


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

    def judge(self, peer_flags: Sequence[Given], model: str) -> Iterator[str]:
        """A line for each flag without effect. Raises UsageProblem for one that is refused."""
        for flag in peer_flags:
            _, verdict = self.flags[flag.name]
            if isinstance(verdict, str):
                yield f"{flag.flag} is {self.name}'s and has no effect here: {verdict}."
            elif not verdict.asks_nothing(flag, model):
                shown = flag.flag if flag.value is None else f"{flag.flag} {flag.value}"
                raise UsageProblem(f"{shown} is not supported: {verdict.why}.")


def sort_out(args: Sequence[str], our_flags: Mapping[str, Takes], peer: Peer) -> tuple[list[str], list[Given]]:
    """Split a command line into arguments for our own parser, and a peer's flags.

    our_flags: our flags with their dashes, and what they take. They come out as they are spelt there, whether they were
        given with dashes or underscores, and one that takes several values is repeated for each of them.

    Raises UsageProblem for a flag that is neither's, with the nearest ones that are.
    """
    remaining = list(args)
    our_args: list[str] = []
    peer_flags: list[Given] = []
    while remaining:
        token = remaining.pop(0)
        if token == "--":
            return [*our_args, token, *remaining], peer_flags
        if not token.startswith("-") or token == "-":
            our_args.append(token)
            continue
        flag, equals, attached = token.partition("=")
        dashes, spelt = _split(flag)
        if dashes + spelt in our_flags:
            takes = our_flags[dashes + spelt]
            values = _values(takes, flag, attached if equals else None, remaining)
            if takes == "nothing":
                our_args.append(dashes + spelt + equals + attached)
            for value in values:
                our_args += [dashes + spelt, value]
            continue
        name, off = _peer_name(spelt, peer)
        if name is None:
            raise UsageProblem(_unknown(token, dashes + spelt, our_flags, peer))
        if spelt.startswith("O") and name == "O" and len(spelt) > 1:
            peer_flags.append(Given(token, name, None))
            continue
        takes = peer.flags[name][0]
        values = _values(takes, flag, attached if equals else None, remaining)
        if takes == "nothing":
            word = attached if equals else remaining.pop(0) if remaining and _is_boolean(remaining[0]) else ""
            off = off != (word.lower() == "false")
            peer_flags.append(Given(flag, name, None, off))
        peer_flags += [Given(flag, name, value) for value in values]
    return our_args, peer_flags


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


def _values(takes: Takes, flag: str, attached: str | None, remaining: list[str]) -> list[str]:
    if takes == "nothing":
        return []
    if attached is not None:
        return [attached]
    if not remaining:
        raise UsageProblem(f"{flag} needs a value.")
    values = [remaining.pop(0)]
    while takes == "values" and remaining and not remaining[0].startswith("-"):
        values.append(remaining.pop(0))
    return values


def _is_boolean(word: str) -> bool:
    return word.lower() in ("true", "false")


def _unknown(token: str, flag: str, our_flags: Mapping[str, Takes], peer: Peer) -> str:
    head = flag.partition(".")[0]
    if head != flag and head in our_flags:
        return f"{token} is not supported; give {head} one JSON object."
    return unknown_flag(flag, our_flags, [f"--{name}" for name in peer.flags])


def unknown_flag(flag: str, our_flags: Iterable[str], peers_flags: Sequence[str] = ()) -> str:
    """The error for a flag that there is not, with the nearest flags that there are."""
    near = get_close_matches(flag, list(our_flags), n=2, cutoff=0.7)
    near = near or get_close_matches(flag, peers_flags, n=2, cutoff=0.8)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; see --help for those that there are."
    return f"There is no flag {flag}{hint}"
