"""The fields of TEI's bodies that say how texts are cut."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rerankd.core import Truncation
from rerankd.schemas.contents import Open
from rerankd.server.problems import Problem


class TeiCut(Open):
    """A body whose texts may be cut."""

    truncate: bool | None = Field(
        None,
        description="false makes a text that does not fit an error; otherwise it is cut, and the answer reports it.",
    )
    truncation_direction: Literal["Left", "left", "Right", "right"] = Field(
        "Right",
        description="`Right` cuts the end of a text that does not fit, `Left` its beginning; without the field the "
        "side of the model's tokenizer, which is nearly always `Right`.",
    )

    def cut(self) -> Truncation:
        """How texts are cut; at the checkpoint's own side where the body does not say."""
        side: Literal["left", "right"] = "left" if self.truncation_direction.lower() == "left" else "right"
        is_given = "truncation_direction" in self.model_fields_set
        return Truncation(allowed=self.truncate is not False, side=side if is_given else None)


class Empty(Problem):
    """No texts: TEI has a kind of error for it."""

    def __init__(self, field: str) -> None:
        super().__init__(400, "must hold at least one text.", field)
