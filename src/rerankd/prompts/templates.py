"""The prompts of Qwen3-Reranker and Qwen3-VL-Reranker, to the character."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
SYSTEM_TURN = f"<|im_start|>system\n{JUDGE}<|im_end|>\n"
ASSISTANT_TURN = "<|im_end|>\n<|im_start|>assistant\n"
THINK_BLOCK = "<think>\n\n</think>\n\n"


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
class BuiltInTemplate:
    """A template of Qwen's rerankers: what stands around the instruction, the query and the document."""

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
            f"{SYSTEM_TURN}<|im_start|>user\n<Instruct>: {instruction or self.default_instruction}"
            f"{self.before_query}{query}"
            f"{self.before_document}{document}{self.tail}"
        )


QWEN3 = BuiltInTemplate(
    before_query="\n<Query>: ",
    before_document="\n<Document>: ",
    tail=ASSISTANT_TURN + THINK_BLOCK,
    empty="",
    default_instruction="Given a web search query, retrieve relevant passages that answer the query",
)
"""`format_instruction` and `process_inputs` of the README of QwenLM/Qwen3-Embedding."""

QWEN3_VL = BuiltInTemplate(
    before_query="<Query>:",
    before_document="\n<Document>:",
    tail=ASSISTANT_TURN,
    empty="NULL",
    default_instruction="Given a search query, retrieve relevant candidates that answer the query.",
)
"""`format_mm_instruction` of `src/models/qwen3_vl_reranker.py` in QwenLM/Qwen3-VL-Embedding."""
