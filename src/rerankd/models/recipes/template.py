"""How the prompt of a decoder is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Template(Protocol):
    """How a decoder's prompt is written.

    takes_instruction: whether an instruction changes the prompt
    verbatim: whether query and document surely stand in the prompt once each and as they are
    default_instruction: what the authors use where none is given; None where the template sees to that itself
    empty: what stands for a content without parts
    """

    @property
    def takes_instruction(self) -> bool: ...

    @property
    def verbatim(self) -> bool: ...

    @property
    def default_instruction(self) -> str | None: ...

    @property
    def empty(self) -> str: ...

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """The whole prompt of two texts in which images and videos are already spelled as placeholders.

        Raises RenderError where they cannot be written.
        """
        ...


class RenderError(Exception):
    """A template fails on a query and a document; `str()` says how."""


@dataclass(frozen=True, slots=True)
class InstructedTemplate:
    """What stands around an instruction, a query and a document, which follow one another."""

    before_instruction: str
    before_query: str
    before_document: str
    tail: str
    empty: str
    default_instruction: str
    takes_instruction: bool = True
    verbatim: bool = True

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """The whole prompt; `instruction` None stands for the default one."""
        return (
            f"{self.before_instruction}{instruction or self.default_instruction}"
            f"{self.before_query}{query}"
            f"{self.before_document}{document}{self.tail}"
        )
