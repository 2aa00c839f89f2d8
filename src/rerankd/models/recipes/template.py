"""Templates: how the prompt of a decoder is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Images: TypeAlias = Literal["mixed", "alone", "first"]
"""How images stand among texts; see `Recipe`."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The tokens that stand for images and videos in a prompt; the defaults are Qwen's.

    start, end: the tokens around an image, or around a step of a video
    image, video: the placeholder of each visual token; None for a model that reads no videos
    """

    start: str = "<|vision_start|>"
    end: str = "<|vision_end|>"
    image: str = "<|image_pad|>"
    video: str | None = "<|video_pad|>"


class Template(Protocol):
    """How a decoder's prompt is written.

    takes_instruction: whether an instruction changes the prompt
    verbatim: whether the prompt always has query and document exactly once, and unchanged
    default_instruction: the authors' instruction for requests without one; None if the template has its own
    empty: the text for a content without parts
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
        """The whole prompt. In both texts, placeholders already stand for images and videos.

        Raises RenderError if the template fails on them.
        """
        ...


class RenderError(Exception):
    """A template fails on a query and a document; `str()` is the reason."""


@dataclass(frozen=True, slots=True)
class InstructedTemplate:
    """The text around an instruction, a query and a document, in this order."""

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


@dataclass(frozen=True, slots=True)
class PieceTemplate:
    """The prompt of authors who tokenise its pieces apart and join their ids: no token reaches over a piece's border.

    The pieces are those of `head`, the query's, `between`, the document's, and those of `tail`.

    before_query, before_document: the beginnings of the query's and the document's pieces
    before_instruction: stands before an instruction at the beginning of the query's piece, and a newline behind it.
        None where the instruction is the last piece of all
    default_instruction: what the authors use where none is given
    most: the authors' default limit on the tokens of the query's piece, `between` and the document's piece in sum, and
        of the document's piece alone; the query's piece has three quarters of it. None for no limit of theirs
    extends: whether the authors count the head's tokens in that sum too, and add the tail's tokens to `most`
    """

    head: tuple[str, ...]
    before_query: str
    between: str
    before_document: str
    tail: tuple[str, ...]
    most: int | None = None
    extends: bool = False
    before_instruction: str | None = None
    default_instruction: str | None = None
    takes_instruction: bool = True
    verbatim: bool = True
    empty: str = ""

    def asking(self, instruction: str | None) -> str:
        """The text before the query in its piece."""
        if self.before_instruction is None or not instruction:
            return self.before_query
        return f"{self.before_instruction}{instruction}\n{self.before_query}"

    def longest(self, head: int, tail: int) -> int | None:
        """The authors' default limit on the tokens of a prompt, by the numbers of the head's and the tail's tokens."""
        if self.most is None:
            return None
        return self.most + tail + (tail if self.extends else head)

    def ending(self, instruction: str | None) -> tuple[str, ...]:
        """The pieces behind the document's."""
        last = (instruction or self.default_instruction or "",) if self.before_instruction is None else ()
        return self.tail + last

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """See `Template.render`; the text alone does not say where tokens end."""
        query_piece, document_piece = self.asking(instruction) + query, self.before_document + document
        return "".join((*self.head, query_piece, self.between, document_piece, *self.ending(instruction)))


@dataclass(frozen=True, slots=True)
class ListTemplate:
    """A prompt of several documents and a query. Behind each stands a mark, a token whose state is read.

    document_mark, query_mark: the marks
    vector: values of the vector that is made from a mark's state
    documents: the most documents of a prompt
    document_tokens, query_tokens: the most tokens of each text, unless a request says otherwise
    """

    system: str
    document_mark: str
    query_mark: str
    vector: int
    documents: int
    document_tokens: int
    query_tokens: int

    def pieces(self, instruction: str | None, query: str, documents: Sequence[str]) -> list[str]:
        """The texts before each document's mark, before the query's mark, and behind it."""
        task = (
            f"<|im_start|>system\n{self.system}<|im_end|>\n<|im_start|>user\n"
            f"I will provide you with {len(documents)} passages, each indicated by a numerical identifier. "
            f"Rank the passages based on their relevance to query: {query}\n"
        )
        if instruction:
            task += f"<instruct>\n{instruction}\n</instruct>\n"
        passages = [f'<passage id="{i}">\n{document}' for i, document in enumerate(documents)]
        question = f"<query>\n{query}"
        first, *others = [*passages, question]
        tail = "\n</query><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        return [task + first, *(f"\n</passage>\n{piece}" for piece in others), tail]
