"""Frames: the parts of a request's prompts that the template writes around the documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from rerankd import work
from rerankd.core import InvalidRequest
from rerankd.models.recipes.template import RenderError, Template
from rerankd.prompts.seams import Seams
from rerankd.prompts.sharing import Around, SharedIds
from rerankd.prompts.texts import Texts
from rerankd.prompts.tokenizer import LoadedTokenizer


class Frame:
    """A template filled with an instruction and a query: `before` and `after` stand around each document."""

    def __init__(self, frames: Frames, instruction: str | None, query: str) -> None:
        """Raises InvalidRequest where the template fails on them."""
        self._tokenizer = frames.tokenizer
        self._seams = frames.seams
        self._template = frames.template
        self._end = frames.end
        self._instruction = instruction
        self._query = query
        mark = "\ue000"
        while mark in query or mark in (instruction or ""):
            mark += "\ue000"
        self.before, _, self.after = self._render(mark, "documents").rpartition(mark)

    @cached_property
    def head(self) -> list[int]:
        """The ids of the text before a document, tokenised by itself."""
        return self._tokenizer.ids([self.before])[0]

    @cached_property
    def tail(self) -> list[int]:
        """The ids of the text behind a document, tokenised by itself."""
        return self._tokenizer.ids([self.after])[0] + self._end

    @property
    def tokens(self) -> int:
        """The number of tokens around a document."""
        return len(self.head) + len(self.tail)

    @cached_property
    def _around(self) -> Around:
        return Around(self._tokenizer.ids, self._seams, self.before, self.after)

    def prompts(self, documents: Sequence[str], fields: Sequence[str]) -> SharedIds:
        """The ids of the documents' prompts, each as if it were tokenised whole.

        fields: the name of each document in errors
        """
        ids = self._around.ids(map(self._render, documents, fields))
        return replace(ids, rest=[document_ids + self._end for document_ids in ids.rest]) if self._end else ids

    def length(self, document: str, field: str) -> int:
        """The number of tokens of a document's prompt."""
        return self.prompts([document], [field]).length(0)

    def is_cuttable(self, document: str, field: str) -> bool:
        """Whether a document's prompt ends with `after`."""
        return self._render(document, field).endswith(self.after)

    def heads(self, documents: Sequence[str], fields: Sequence[str]) -> SharedIds:
        """The ids of the prompts without `after`, on the same base as `prompts`."""
        rendered = map(self._render, documents, fields)
        return self._around.ids(text.removesuffix(self.after) for text in rendered)

    def _render(self, document: str, field: str) -> str:
        try:
            return self._template.render(self._instruction, self._query, document)
        except RenderError as error:
            work.refuse(InvalidRequest(field, f"the chat template fails on it: {error}"))
            return document


@dataclass(frozen=True, slots=True)
class Frames:
    """Makes the frames of one template. `end`: the ids behind the text of the template."""

    tokenizer: LoadedTokenizer
    seams: Seams
    template: Template
    end: list[int] = field(default_factory=list)

    def of(self, texts: Texts) -> Frame:
        """The template filled with the texts' instruction and query. Raises InvalidRequest where it fails on them."""
        return Frame(self, texts.instruction, texts.query)
