"""Prompts of decoders that answer yes or no: a template, tokenised whole, and what all prompts begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rerankd.core import Content, InvalidRequest, ModelError, PromptGroup, RerankRequest, Segment, Visual, Visuals
from rerankd.prompts.contents import read_text
from rerankd.prompts.limits import Limits, no_room
from rerankd.prompts.templates import RenderError, Template
from rerankd.prompts.tokenizer import AddedTokens, LoadedTokenizer, well_formed
from rerankd.prompts.untemplate import untemplate_document, untemplate_query
from rerankd.prompts.visuals import Placeholders, common_prefix, spell_seen


@dataclass(frozen=True, slots=True)
class Texts:
    """What a template is filled with. Nothing in it can become a special token."""

    instruction: str | None
    query: str
    documents: tuple[str, ...]


class DecoderPrompts:
    """A PromptBuilder. Prompts are tokenised whole: BPE merges across the seams of a template (`: ` + `what`)."""

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        template: Template,
        max_tokens: int,
        default_instruction: str | None,
        placeholders: Placeholders | None = None,
    ) -> None:
        """max_tokens: in one prompt; default_instruction: None for the template's own.

        placeholders: of a model that sees images and videos; None for one that reads text only
        """
        self.takes_instruction = template.takes_instruction
        self._tokenizer = tokenizer
        self._added = AddedTokens(tokenizer.tokenizer)
        self._template = template
        self._max_tokens = max_tokens
        self._default_instruction = default_instruction
        self._placeholders = placeholders
        try:
            probe = template.render(None, "\ue000", "\ue001")
        except RenderError as error:
            raise ModelError(f"The chat template cannot be used: {error}.") from error
        self._query_first = probe.find("\ue000") < probe.find("\ue001")

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The request's prompts; the prefix is the longest that all share. See `PromptBuilder.build`."""
        limits = Limits.of(request.truncation, self._max_tokens)
        seen = visuals or Visuals((), ((),) * len(request.documents))
        read = self._read(request, seen)
        texts = self._with_fitting_query(self._within_own_limits(read, limits), limits)
        prompts = self._render(texts, limits)
        ids = self._tokenizer.ids(prompts)
        cut = [before != after for before, after in zip(read.documents, texts.documents, strict=True)]
        for i, shorter in self._cut_documents(texts, prompts, ids, limits):
            ids[i], cut[i] = shorter, True
        query_cut = texts.query != read.query
        if self._placeholders is not None and any((seen.query, *seen.documents)):
            order = [(seen.query, own) if self._query_first else (own, seen.query) for own in seen.documents]
            return self._placeholders.group(ids, [first + second for first, second in order], cut, query_cut)
        shared = common_prefix(ids)
        return PromptGroup(
            prefix=Segment(ids[0][:shared] if ids else []),
            suffixes=tuple(Segment(prompt[shared:]) for prompt in ids),
            truncated=tuple(cut),
            query_truncated=query_cut,
        )

    def _read(self, request: RerankRequest, seen: Visuals) -> Texts:
        """The request's texts, out of a client's own template and without special tokens but for placeholders."""
        instruction = request.instruction
        if seen.query:
            query = spell_seen(request.query, seen.query, self._added)
        else:
            query = self._plain(request.query, "query")
            if templated := untemplate_query(query):
                query = templated[1]
                instruction = instruction or templated[0]
            query = self._added.neutralise(query)
        instruction = instruction or self._default_instruction
        return Texts(
            instruction=self._added.neutralise(well_formed(instruction)) if instruction else None,
            query=query,
            documents=tuple(
                self._read_document(document, f"documents[{i}]", own)
                for i, (document, own) in enumerate(zip(request.documents, seen.documents, strict=True))
            ),
        )

    def _read_document(self, content: Content, field: str, visuals: Sequence[Visual]) -> str:
        if visuals:
            return spell_seen(content, visuals, self._added)
        text = self._plain(content, field)
        plain = untemplate_document(text)
        return self._added.neutralise(text if plain is None else plain)

    def _plain(self, content: Content, field: str) -> str:
        return read_text(content, field) if content else self._template.empty

    def _render(self, texts: Texts, limits: Limits) -> list[str]:
        documents = texts.documents
        if limits.may_cut and self._template.verbatim:
            documents = tuple(self._tokenizer.start(document, limits.prompt) for document in documents)
        return [self._render_one(texts, document, f"documents[{i}]") for i, document in enumerate(documents)]

    def _render_one(self, texts: Texts, document: str, field: str) -> str:
        try:
            return self._template.render(texts.instruction, texts.query, document)
        except RenderError as error:
            raise InvalidRequest(field, f"the chat template fails on it: {error}") from error

    def _within_own_limits(self, texts: Texts, limits: Limits) -> Texts:
        """Query and documents cut to the limits that they have by themselves."""
        query, *documents = texts.query, *texts.documents
        if limits.query is not None:
            query = self._within(["query"], [query], limits.query, limits)[0]
        if limits.document is not None:
            fields = [f"documents[{i}]" for i in range(len(documents))]
            documents = self._within(fields, documents, limits.document, limits)
        return replace(texts, query=query, documents=tuple(documents))

    def _within(self, fields: list[str], texts: list[str], limit: int, limits: Limits) -> list[str]:
        if limits.may_cut:
            texts = [self._tokenizer.start(text, limit) for text in texts]
        return [
            self._tokenizer.cut(text, limit) if limits.exceeded(field, "it", len(ids), limit) else text
            for field, text, ids in zip(fields, texts, self._tokenizer.ids(texts), strict=True)
        ]

    def _around_document(self, texts: Texts) -> tuple[str, str]:
        """What the template writes before and after a document."""
        mark = "\ue000"
        while mark in texts.query or mark in (texts.instruction or ""):
            mark += "\ue000"
        before, _, after = self._render_one(texts, mark, "documents").rpartition(mark)
        return before, after

    def _tokens_around(self, texts: Texts) -> int:
        return sum(map(len, self._tokenizer.ids(self._around_document(texts))))

    def _with_fitting_query(self, texts: Texts, limits: Limits) -> Texts:
        """The texts with the query cut until a prompt without a document fits: the same query for all prompts."""
        if limits.may_cut and self._template.verbatim:
            texts = replace(texts, query=self._tokenizer.start(texts.query, limits.prompt))
        needed = self._tokens_around(texts)
        if needed <= limits.prompt:
            return texts
        bare = self._tokens_around(replace(texts, query=""))
        if bare > limits.prompt:
            if self._tokens_around(replace(texts, query="", instruction=None)) <= limits.prompt:
                raise InvalidRequest(
                    "instruction",
                    f"the prompt without query and document takes {bare} tokens with it and {limits.prompt} are "
                    "allowed; shorten it",
                )
            raise no_room(limits.prompt, bare)
        limits.exceeded("query", "the prompt without any document", needed, limits.prompt)
        query, tokens = texts.query, len(self._tokenizer.ids([texts.query])[0])
        while needed > limits.prompt:
            tokens -= needed - limits.prompt
            query = self._tokenizer.cut(query, tokens)
            needed = self._tokens_around(replace(texts, query=query))
        return replace(texts, query=query)

    def _cut_documents(
        self, texts: Texts, prompts: Sequence[str], ids: Sequence[list[int]], limits: Limits
    ) -> list[tuple[int, list[int]]]:
        """The prompts that are too long, by index, with their documents cut.

        As in the authors' scripts, what stands before the document and the document are tokenised together and cut,
        and the template's tail is tokenised by itself and appended.
        """
        long = [
            i
            for i, prompt in enumerate(ids)
            if limits.exceeded(f"documents[{i}]", "its prompt", len(prompt), limits.prompt)
        ]
        if not long:
            return []
        _, tail = self._around_document(texts)
        for i in long:
            if not prompts[i].endswith(tail):
                raise InvalidRequest(
                    f"documents[{i}]",
                    f"its prompt takes {len(ids[i])} tokens and {limits.prompt} are allowed, and it cannot be cut, "
                    "because what the chat template writes after it depends on it; shorten it",
                )
        *heads, end = self._tokenizer.ids([*(prompts[i].removesuffix(tail) for i in long), tail])
        return [(i, head[: limits.prompt - len(end)] + end) for i, head in zip(long, heads, strict=True)]
