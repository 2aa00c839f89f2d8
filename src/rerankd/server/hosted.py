"""Models as calls see them, and the choice of a call's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rerankd.server.dialects.base import Served
from rerankd.server.dialects.names import not_ours
from rerankd.server.places import Places
from rerankd.server.pool import Model
from rerankd.server.problems import ASLEEP, Problem


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model, the facts that a dialect may use, and the places of the calls that it answers.

    facts: the facts with the model's description as it was when the server started
    """

    model: Model
    facts: Served
    places: Places

    @property
    def served(self) -> Served:
        """The facts as they are known now: loading a model tells more of it."""
        info = self.model.info
        return self.facts if info is self.facts.info else replace(self.facts, info=info)

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.model.names[0]

    def check(self) -> None:
        """Raise a `Problem` where the model takes no call now: it sleeps, or its queue is full."""
        if self.model.asleep:
            raise ASLEEP.anew()
        self.places.check()


def choose(name: object, hosted: Sequence[Hosted]) -> Hosted:
    """The model that a call names; the first for a call without a name.

    A name without its organisation is enough if only one model has it. A single model answers calls with any name; its
    dialects handle other names. If there are several, an unknown name raises a 404 `Problem`.
    """
    if len(hosted) == 1 or name is None or name == "":
        return hosted[0]
    if not isinstance(name, str):
        raise Problem(400, "must be a string: the name of a model, as in /v1/models.", "model")
    matches = [candidate for candidate in hosted if name in candidate.model.names]
    matches = matches or [
        candidate
        for candidate in hosted
        if name in {full_name.rpartition("/")[2] for full_name in candidate.model.names}
    ]
    if len(matches) != 1:
        raise not_ours(name, hosted[0].served)
    return matches[0]
