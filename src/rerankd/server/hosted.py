"""Models as calls see them, and the choice of a call's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rerankd.server.dialects.base import Served
from rerankd.server.dialects.names import not_ours
from rerankd.server.places import Places
from rerankd.server.pool import Model
from rerankd.server.problems import Problem


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model, the facts that a dialect may use, and the places of the calls that it answers.

    facts: with the model's description as it was when the server started
    """

    model: Model
    facts: Served
    places: Places

    @property
    def served(self) -> Served:
        """The facts as they are known now: loading a model tells more of it."""
        known = self.model.info
        return self.facts if known is self.facts.info else replace(self.facts, info=known)

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.model.names[0]


def choose(name: object, hosted: Sequence[Hosted]) -> Hosted:
    """The model that a call names; the first for a call without a name.

    A name without its organisation is enough if only one model has it. A single model answers calls with any name; its
    dialects handle other names. If there are several, an unknown name raises a 404 `Problem`.
    """
    if len(hosted) == 1 or name is None or name == "":
        return hosted[0]
    if not isinstance(name, str):
        raise Problem(400, "must be a string: the name of a model, as in /v1/models.", "model")
    found = [one for one in hosted if name in one.model.names]
    found = found or [one for one in hosted if name in {own.rpartition("/")[2] for own in one.model.names}]
    if len(found) != 1:
        raise not_ours(name, hosted[0].served)
    return found[0]
