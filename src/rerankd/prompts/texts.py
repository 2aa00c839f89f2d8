"""The texts of a request that fill a decoder's template."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from rerankd import work
from rerankd.core import Content, InvalidRequest, RerankRequest, Text, Visual, Visuals
from rerankd.models.recipes.template import Images, Marks, Template
from rerankd.prompts.added_tokens import AddedTokens
from rerankd.prompts.contents import read_text
from rerankd.prompts.tokenizer import well_formed
from rerankd.prompts.untemplate import untemplate_document, untemplate_query
from rerankd.prompts.visuals import QWEN, spell_seen

log = logging.getLogger("rerankd")


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts that fill a template. Only images and videos in them become special tokens.

    documents: the request's documents, or chunks of them; fields: the name of each in errors
    templated: whether the client had put the query into the template already
    """

    instruction: str | None
    query: str
    documents: tuple[str, ...]
    fields: tuple[str, ...]
    templated: bool = False


class TextReader:
    """Reads texts out of a client's own template, and escapes their special tokens but for placeholders."""

    def __init__(
        self,
        template: Template,
        added: AddedTokens,
        default_instruction: str | None,
        images: Images = "mixed",
        marks: Marks = QWEN,
    ) -> None:
        """default_instruction: None for the template's own

        images: how these stand among texts; marks: the tokens in their place
        """
        self._images = images
        self._marks = marks
        self._template = template
        self._added = added
        self._default_instruction = default_instruction
        self._told_of_instruction = False

    def read(self, request: RerankRequest, visuals: Visuals) -> Texts:
        """The texts of a request. Raises InvalidRequest."""
        instruction = request.instruction
        templated = None
        if visuals.query:
            query = self._spelled(request.query, "query", visuals.query)
        else:
            query = self._plain(request.query, "query")
            if templated := untemplate_query(query):
                query = templated[1]
                instruction = instruction or self._templated_instruction(templated[0])
            query = self._added.escape(query)
        instruction = instruction or self._default_instruction
        return Texts(
            instruction=self._added.escape(well_formed(instruction)) if instruction else None,
            query=query,
            documents=tuple(
                self._read_document(document, f"documents[{i}]", document_visuals, templated is not None)
                for i, (document, document_visuals) in enumerate(zip(request.documents, visuals.documents, strict=True))
            ),
            fields=tuple(f"documents[{i}]" for i in range(len(request.documents))),
            templated=templated is not None,
        )

    def untemplated(self, content: Content, field: str, templated: bool) -> str:
        """A document's text, taken out of the client's template where the query was in that template too."""
        text = self._plain(content, field)
        plain = untemplate_document(text) if templated else None
        return text if plain is None else plain

    def _templated_instruction(self, instruction: str) -> str:
        """The instruction in a query that the client has templated. It counts as the request's own instruction."""
        default = self._default_instruction
        if instruction and default and instruction != default and not self._told_of_instruction:
            self._told_of_instruction = True
            log.warning(
                "A query came in the model's own template, and the instruction in it, %r, stands in place of the "
                "default instruction %r, for such queries; send plain queries to have the default one. This is said "
                "once.",
                instruction,
                default,
            )
        return instruction

    def _read_document(self, content: Content, field: str, visuals: Sequence[Visual], templated: bool) -> str:
        if visuals:
            return self._spelled(content, field, visuals)
        return self._added.escape(self.untemplated(content, field, templated))

    def _spelled(self, content: Content, field: str, visuals: Sequence[Visual]) -> str:
        parts = [part for part in content if not isinstance(part, Text) or part.text]
        if self._images == "alone" and len(parts) > 1:
            reason = "this model reads a text or one image; send each as a document of its own"
            work.refuse(InvalidRequest(field, f"holds an image among {len(parts)} parts, and {reason}"))
        if self._images == "first":
            if field == "query":
                raise InvalidRequest(field, "has an image, and this model reads images only in documents")
            if len(visuals) > 1:
                reason = f"holds {len(visuals)} images, and this model reads one in a document; send each by itself"
                work.refuse(InvalidRequest(field, reason))
            content = tuple(sorted(content, key=lambda part: isinstance(part, Text)))
        return spell_seen(content, visuals, self._added, self._marks)

    def _plain(self, content: Content, field: str) -> str:
        return read_text(content, field) if content else self._template.empty
