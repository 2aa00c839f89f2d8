"""Prompts of decoders that answer yes or no: a template, tokenised whole, and what all prompts begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rerankd import work
from rerankd.core import Content, InvalidRequest, ModelError, PromptGroup, RerankRequest, Segment, Visual, Visuals
from rerankd.prompts.chunks import Chunks, split
from rerankd.prompts.contents import read_text
from rerankd.prompts.limits import Limits, no_room
from rerankd.prompts.templates import RenderError, Template
from rerankd.prompts.tokenizer import AddedTokens, LoadedTokenizer, well_formed
from rerankd.prompts.untemplate import untemplate_document, untemplate_query
from rerankd.prompts.visuals import Placeholders, common_prefix, spell_seen


@dataclass(frozen=True, slots=True)
class Texts:
    """What a template is filled with. Nothing in it can become a special token.

    documents: those of the request, or the chunks of some of them; fields: what errors call each
    """

    instruction: str | None
    query: str
    documents: tuple[str, ...]
    fields: tuple[str, ...]


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
        """The request's prompts; the prefix is the longest that all share. See `PromptBuilder.build`.

        A document with images or videos is never split: it is cut where it does not fit.
        """
        limits = Limits.of(request, self._max_tokens)
        seen = visuals or Visuals((), ((),) * len(request.documents))
        read = self._read(request, seen)
        texts = self._with_fitting_query(self._within_own_limit(read, limits), limits)
        split = self._split(request, texts, seen, limits)
        owners = [i for i in range(len(seen.documents)) for _ in (split[i].chunks if i in split else [i])]
        whole = self._in_chunks(texts, split, owners)
        texts = self._documents_within_own_limit(whole, limits)
        prompts = self._render(texts, limits)
        ids = self._tokenizer.ids(prompts)
        cut = {i for i, chunks in split.items() if not chunks.whole}
        cut |= {owners[i] for i, text in enumerate(texts.documents) if text != whole.documents[i]}
        for i, shorter in self._cut_documents(texts, prompts, ids, limits):
            ids[i] = shorter
            cut.add(owners[i])
        group = self._group(ids, [seen.documents[i] for i in owners], seen.query, texts.fields)
        return replace(
            group,
            truncated=tuple(i in cut for i in range(len(seen.documents))),
            query_truncated=texts.query != read.query,
            chunks=tuple(split[i].chunks if i in split else () for i in range(len(seen.documents))) if split else (),
        )

    def _group(
        self,
        ids: Sequence[list[int]],
        documents: Sequence[tuple[Visual, ...]],
        query: tuple[Visual, ...],
        fields: Sequence[str],
    ) -> PromptGroup:
        """The prompts with what all of them share laid once; `documents` and `query` are their images and videos."""
        if self._placeholders is not None and any((query, *documents)):
            order = [(query, own) if self._query_first else (own, query) for own in documents]
            return self._placeholders.group(ids, [first + second for first, second in order], fields)
        shared = common_prefix(ids)
        return PromptGroup(
            prefix=Segment(ids[0][:shared] if ids else []),
            suffixes=tuple(Segment(prompt[shared:]) for prompt in ids),
            truncated=(),
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
            fields=tuple(f"documents[{i}]" for i in range(len(request.documents))),
        )

    def _read_document(self, content: Content, field: str, visuals: Sequence[Visual]) -> str:
        if visuals:
            return spell_seen(content, visuals, self._added)
        return self._added.neutralise(self._untemplated(content, field))

    def _untemplated(self, content: Content, field: str) -> str:
        text = self._plain(content, field)
        plain = untemplate_document(text)
        return text if plain is None else plain

    def _plain(self, content: Content, field: str) -> str:
        return read_text(content, field) if content else self._template.empty

    def _split(self, request: RerankRequest, texts: Texts, seen: Visuals, limits: Limits) -> dict[int, Chunks]:
        """The chunks of the documents that do not fit, by index, where chunks are asked for."""
        if limits.chunking is None:
            return {}
        prompts = self._tokenizer.ids(self._render(texts, limits))
        documents = [self._tokenizer.reach(text, limits.document, limits.side) for text in texts.documents]
        own = self._tokenizer.ids(documents if limits.document is not None else [""] * len(documents))
        most = limits.prompt if limits.document is None else limits.document
        room = min(limits.prompt - self._tokens_around(texts), most)
        found = {}
        for i, field in enumerate(texts.fields):
            if seen.documents[i] or (len(prompts[i]) <= limits.prompt and len(own[i]) <= most):
                continue
            text = self._untemplated(request.documents[i], field)
            text = self._tokenizer.reach(text, limits.reach, limits.side)

            def excess(piece: str, field: str = field) -> int:
                piece = self._added.neutralise(piece)
                prompt, ids = self._tokenizer.ids([self._render_one(texts, piece, field), piece])
                return max(len(prompt) - limits.prompt, len(ids) - most)

            if chunks := split(text, self._tokenizer.offsets(text), room, limits, excess, field):
                found[i] = chunks
        return found

    def _in_chunks(self, texts: Texts, split: Mapping[int, Chunks], owners: Sequence[int]) -> Texts:
        """The texts with chunks in place of the documents that were split; `owners` are the documents of all pieces."""
        pieces: list[str] = []
        for i, document in enumerate(texts.documents):
            pieces += [self._added.neutralise(chunk.text) for chunk in split[i].chunks] if i in split else [document]
        return replace(texts, documents=tuple(pieces), fields=tuple(texts.fields[i] for i in owners))

    def _render(self, texts: Texts, limits: Limits) -> list[str]:
        documents = texts.documents
        if limits.may_cut and self._template.verbatim:
            documents = tuple(self._tokenizer.reach(document, limits.prompt, limits.side) for document in documents)
        return [
            self._render_one(texts, document, field) for document, field in zip(documents, texts.fields, strict=True)
        ]

    def _render_one(self, texts: Texts, document: str, field: str) -> str:
        try:
            return self._template.render(texts.instruction, texts.query, document)
        except RenderError as error:
            work.refuse(InvalidRequest(field, f"the chat template fails on it: {error}"))
            return document

    def _within_own_limit(self, texts: Texts, limits: Limits) -> Texts:
        """The query cut to the limit that it has by itself."""
        if limits.query is None:
            return texts
        return replace(texts, query=self._within(["query"], [texts.query], limits.query, limits)[0])

    def _documents_within_own_limit(self, texts: Texts, limits: Limits) -> Texts:
        """The documents cut to the limit that each has by itself."""
        if limits.document is None:
            return texts
        return replace(texts, documents=tuple(self._within(texts.fields, texts.documents, limits.document, limits)))

    def _within(self, fields: Sequence[str], texts: Sequence[str], limit: int, limits: Limits) -> list[str]:
        if limits.may_cut:
            texts = [self._tokenizer.reach(text, limit, limits.side) for text in texts]
        return [
            self._tokenizer.cut(text, limit, limits.side) if limits.exceeded(field, "it", len(ids), limit) else text
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
            texts = replace(texts, query=self._tokenizer.reach(texts.query, limits.prompt, limits.side))
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
            query = self._tokenizer.cut(query, tokens, limits.side)
            needed = self._tokens_around(replace(texts, query=query))
        return replace(texts, query=query)

    def _cut_documents(
        self, texts: Texts, prompts: Sequence[str], ids: Sequence[list[int]], limits: Limits
    ) -> list[tuple[int, list[int]]]:
        """The prompts that are too long, by index, with their documents cut.

        As in the authors' scripts, what stands before the document and the document are tokenised together and cut,
        and the template's tail is tokenised by itself and appended. A document that loses its beginning is tokenised
        with all that stands around what is left of it.
        """
        long = [
            i
            for i, prompt in enumerate(ids)
            if limits.exceeded(texts.fields[i], "its prompt", len(prompt), limits.prompt)
        ]
        if not long:
            return []
        if limits.side == "left":
            return [(i, self._without_beginning(texts, i, ids[i], limits)) for i in long]
        _, tail = self._around_document(texts)
        for i in long:
            if not prompts[i].endswith(tail):
                work.refuse(_uncuttable(texts.fields[i], len(ids[i]), limits))
        *heads, end = self._tokenizer.ids([*(prompts[i].removesuffix(tail) for i in long), tail])
        return [(i, head[: limits.prompt - len(end)] + end) for i, head in zip(long, heads, strict=True)]

    def _without_beginning(self, texts: Texts, i: int, prompt: list[int], limits: Limits) -> list[int]:
        """The ids of a document's prompt, too long as it is, with the longest end of the document that fits."""
        field, document = texts.fields[i], texts.documents[i]
        if self._template.verbatim:
            document = self._tokenizer.reach(document, limits.prompt, "left")
        tokens = len(self._tokenizer.ids([document])[0])
        while len(prompt) > limits.prompt:
            if not document:
                work.refuse(_uncuttable(field, len(prompt), limits))
                break
            tokens -= len(prompt) - limits.prompt
            document = self._tokenizer.cut(document, tokens, "left")
            prompt = self._tokenizer.ids([self._render_one(texts, document, field)])[0]
        return prompt


def _uncuttable(field: str, tokens: int, limits: Limits) -> InvalidRequest:
    return InvalidRequest(
        field,
        f"its prompt takes {tokens} tokens and {limits.prompt} are allowed, and it cannot be cut, because what the "
        "chat template writes around it depends on it; shorten it",
    )
