"""Prompts of decoders that answer yes or no: a template, tokenised whole, and what all prompts begin with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rerankd import work
from rerankd.core import Content, InvalidRequest, ModelError, PromptGroup, RerankRequest, Segment, Visual, Visuals
from rerankd.models.recipes.template import RenderError, Template
from rerankd.prompts.chunks import Chunks, reduced_overlap, split
from rerankd.prompts.contents import read_text
from rerankd.prompts.cutting import PromptCutter
from rerankd.prompts.frame import Frame
from rerankd.prompts.limits import Limits, no_room
from rerankd.prompts.seams import Seams
from rerankd.prompts.sharing import SharedIds
from rerankd.prompts.tokenizer import AddedTokens, LoadedTokenizer, well_formed
from rerankd.prompts.untemplate import untemplate_document, untemplate_query
from rerankd.prompts.visuals import Placeholders, SeenTexts, spell_seen

log = logging.getLogger("rerankd")


@dataclass(frozen=True, slots=True)
class Texts:
    """What a template is filled with. Nothing in it can become a special token but images and videos.

    documents: those of the request, or the chunks of some of them; fields: what errors call each
    templated: whether the client had put the query into the template already
    """

    instruction: str | None
    query: str
    documents: tuple[str, ...]
    fields: tuple[str, ...]
    templated: bool = False


class DecoderPrompts:
    """A PromptBuilder. Prompts have the ids of whole texts: BPE merges across the seams of a template (`: ` + `what`).

    What the prompts of a request share is tokenised and kept once where that makes no difference.
    """

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        template: Template,
        max_tokens: int,
        default_instruction: str | None,
        placeholders: Placeholders | None = None,
        shares: bool = True,
    ) -> None:
        """max_tokens: in one prompt; default_instruction: None for the template's own.

        placeholders: of a model that sees images and videos; None for one that reads text only
        shares: whether prompts share a prefix; in a model whose tokens see those behind them none is the same
        """
        self.takes_instruction = template.takes_instruction
        self._tokenizer = tokenizer
        self._added = AddedTokens(tokenizer.tokenizer)
        added = tokenizer.tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._seams = Seams(tokenizer.tokenizer)
        self._seen = SeenTexts(tokenizer)
        self._template = template
        self._max_tokens = max_tokens
        self._default_instruction = default_instruction
        self._placeholders = placeholders
        self._shares = shares
        self._told_of_instruction = False
        try:
            probe = template.render(None, "\ue000", "\ue001")
        except RenderError as error:
            raise ModelError(f"The chat template cannot be used: {error}.") from error
        self._query_first = probe.find("\ue000") < probe.find("\ue001")

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The request's prompts; the prefix is the longest that all share. See `PromptBuilder.build`.

        A document with images or videos is never split: its text is cut where it does not fit.
        """
        limits = Limits.of(request, self._max_tokens)
        seen = visuals or Visuals((), ((),) * len(request.documents))
        read = self._read(request, seen)
        texts = self._with_fitting_query(self._within_own_limit(read, limits), limits)
        frame = self._frame(texts)
        split = self._split(request, texts, frame, seen, limits)
        owners = [i for i in range(len(seen.documents)) for _ in (split[i].chunks if i in split else [i])]
        whole = self._in_chunks(texts, split, owners)
        texts = self._documents_within_own_limit(whole, limits)
        cut = {i for i, chunks in split.items() if not chunks.whole}
        cut |= {owners[i] for i, text in enumerate(texts.documents) if text != whole.documents[i]}
        texts = self._as_far_as_read(texts, limits)
        ids = frame.prompts(texts.documents, texts.fields)
        long = [
            i
            for i, field in enumerate(texts.fields)
            if limits.exceeded(field, "its prompt", ids.length(i), limits.prompt)
        ]
        query_cut = self._cut(frame, texts, ids, long, limits)
        group = self._group(ids, [seen.documents[i] for i in owners], seen.query, texts.fields)
        cut.update(owners[i] for i in long)
        return replace(
            group,
            truncated=tuple(i in cut for i in range(len(seen.documents))),
            query_truncated=query_cut or texts.query != read.query,
            chunks=tuple(split[i].chunks if i in split else () for i in range(len(seen.documents))) if split else (),
            ignored=reduced_overlap(split.values()),
        )

    def _group(
        self,
        ids: SharedIds,
        documents: Sequence[tuple[Visual, ...]],
        query: tuple[Visual, ...],
        fields: Sequence[str],
    ) -> PromptGroup:
        """The prompts with what all of them share laid once; `documents` and `query` are their images and videos."""
        if not self._shares:
            return PromptGroup(Segment([]), tuple(map(Segment, ids.behind(0))), truncated=())
        if self._placeholders is None or not any((query, *documents)):
            return ids.group()
        order = [(query, own) if self._query_first else (own, query) for own in documents]
        return self._placeholders.group(ids, [first + second for first, second in order], fields)

    def _read(self, request: RerankRequest, seen: Visuals) -> Texts:
        """The request's texts, out of a client's own template and without special tokens but for placeholders."""
        instruction = request.instruction
        templated = None
        if seen.query:
            query = spell_seen(request.query, seen.query, self._added)
        else:
            query = self._plain(request.query, "query")
            if templated := untemplate_query(query):
                query = templated[1]
                instruction = instruction or self._templated_instruction(templated[0])
            query = self._added.neutralise(query)
        instruction = instruction or self._default_instruction
        return Texts(
            instruction=self._added.neutralise(well_formed(instruction)) if instruction else None,
            query=query,
            documents=tuple(
                self._read_document(document, f"documents[{i}]", own, templated is not None)
                for i, (document, own) in enumerate(zip(request.documents, seen.documents, strict=True))
            ),
            fields=tuple(f"documents[{i}]" for i in range(len(request.documents))),
            templated=templated is not None,
        )

    def _templated_instruction(self, instruction: str) -> str:
        """The instruction of a query that the client has templated: a request's own, as one in its field would be."""
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
            return spell_seen(content, visuals, self._added)
        return self._added.neutralise(self._untemplated(content, field, templated))

    def _untemplated(self, content: Content, field: str, templated: bool) -> str:
        """A document's text, taken out of the client's template where the query came in it too."""
        text = self._plain(content, field)
        plain = untemplate_document(text) if templated else None
        return text if plain is None else plain

    def _plain(self, content: Content, field: str) -> str:
        return read_text(content, field) if content else self._template.empty

    def _frame(self, texts: Texts) -> Frame:
        return Frame(self._tokenizer, self._seams, self._template, texts.instruction, texts.query)

    def _split(
        self, request: RerankRequest, texts: Texts, frame: Frame, seen: Visuals, limits: Limits
    ) -> dict[int, Chunks]:
        """The chunks of the documents that do not fit, by index, where chunks are asked for."""
        if limits.chunking is None:
            return {}
        prompts = frame.prompts(self._as_far_as_read(texts, limits).documents, texts.fields)
        documents = [self._seen.reach(text, limits.document, limits.side) for text in texts.documents]
        own = self._tokenizer.ids(documents if limits.document is not None else [""] * len(documents))
        most = limits.prompt if limits.document is None else limits.document
        room = min(limits.prompt - frame.tokens, most)
        found = {}
        for i, field in enumerate(texts.fields):
            if seen.documents[i] or (prompts.length(i) <= limits.prompt and len(own[i]) <= most):
                continue
            text = self._untemplated(request.documents[i], field, texts.templated)
            text = self._tokenizer.reach(text, limits.reach, limits.side)

            def excess(piece: str, field: str = field) -> int:
                piece = self._added.neutralise(piece)
                ids = self._tokenizer.ids([piece])[0]
                return max(frame.length(piece, field) - limits.prompt, len(ids) - most)

            if chunks := split(text, self._tokenizer.offsets(text), room, limits, excess, field):
                found[i] = chunks
        return found

    def _in_chunks(self, texts: Texts, split: Mapping[int, Chunks], owners: Sequence[int]) -> Texts:
        """The texts with chunks in place of the documents that were split; `owners` are the documents of all pieces."""
        pieces: list[str] = []
        for i, document in enumerate(texts.documents):
            pieces += [self._added.neutralise(chunk.text) for chunk in split[i].chunks] if i in split else [document]
        return replace(texts, documents=tuple(pieces), fields=tuple(texts.fields[i] for i in owners))

    def _as_far_as_read(self, texts: Texts, limits: Limits) -> Texts:
        """The documents without what is so far beyond the limit that it is cut surely."""
        if not limits.may_cut or not self._template.verbatim:
            return texts
        return replace(
            texts,
            documents=tuple(self._seen.reach(document, limits.prompt, limits.side) for document in texts.documents),
        )

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
            texts = [self._seen.reach(text, limit, limits.side) for text in texts]
        return [
            self._cut_to(field, text, limit, limits) if limits.exceeded(field, "it", len(ids), limit) else text
            for field, text, ids in zip(fields, texts, self._tokenizer.ids(texts), strict=True)
        ]

    def _cut_to(self, field: str, text: str, limit: int, limits: Limits) -> str:
        """A text cut to its own limit, its images and videos kept; InvalidRequest where nothing of it fits."""
        shorter = limits.not_nothing(field, text, self._seen.cut(text, limit, limits.side), limit)
        if (tokens := len(self._tokenizer.ids([shorter])[0])) > limit:
            work.refuse(
                InvalidRequest(
                    field,
                    f"its images and videos take {tokens} tokens and {limit} are allowed; send fewer or smaller ones "
                    "(max_pixels, max_frames), or raise the limit",
                )
            )
        return shorter

    def _shortened(self, text: str, excess: Callable[[str], int], limits: Limits) -> str:
        """As much of a text as leaves nothing in excess; where there is more of that, the images and videos alone.

        excess: by how many tokens what a text is part of is too long
        """
        while (over := excess(text)) > 0:
            tokens = len(self._tokenizer.ids([text])[0])
            shorter = self._seen.cut(text, tokens - over, limits.side)
            if shorter == text:
                break
            text = shorter
        return text

    def _with_fitting_query(self, texts: Texts, limits: Limits) -> Texts:
        """The texts with the query cut until it leaves room for documents: the same query for all prompts.

        The authors cut a prompt's end, and so would leave nothing of any document behind such a query, and the same
        score for all of them. Here documents have a quarter of the room that the template leaves to both.
        """
        if limits.may_cut and self._template.verbatim:
            texts = replace(texts, query=self._seen.reach(texts.query, limits.prompt, limits.side))
        needed, least = self._frame(texts).tokens, int(any(texts.documents))
        if needed + least <= limits.prompt:
            return texts
        shown = self._seen.cut(texts.query, 0, limits.side)
        bare = self._frame(replace(texts, query=shown)).tokens
        room = limits.prompt - bare
        if room < least + (shown != texts.query):
            raise self._no_room(texts, shown, bare, limits)
        limits.exceeded("query", "the prompt without any document", needed, limits.prompt)
        if not limits.may_cut:
            return texts
        most = limits.prompt - least * max(room // 4, 1)
        query = self._shortened(
            texts.query, lambda query: self._frame(replace(texts, query=query)).tokens - most, limits
        )
        return replace(texts, query=limits.not_nothing("query", texts.query, query, room))

    def _no_room(self, texts: Texts, shown: str, bare: int, limits: Limits) -> InvalidRequest:
        """What to raise where the prompt takes `bare` tokens without any text of query and document."""
        if shown and self._frame(replace(texts, query="")).tokens + 2 <= limits.prompt:
            return InvalidRequest(
                "query",
                f"the prompt with nothing but its images and videos takes {bare} tokens and {limits.prompt} are "
                "allowed; send fewer or smaller ones (max_pixels, max_frames), or raise the limit",
            )
        if self._frame(replace(texts, query="", instruction=None)).tokens + 2 <= limits.prompt:
            return InvalidRequest(
                "instruction",
                f"the prompt without query and document takes {bare} tokens with it and {limits.prompt} are "
                "allowed; shorten it",
            )
        return no_room(limits.prompt, bare)

    def _cut(self, frame: Frame, texts: Texts, ids: SharedIds, long: Sequence[int], limits: Limits) -> bool:
        """Cut the prompts that are too long, by index, in `ids`; whether any lost something of the query."""
        if not long:
            return False
        return (self._cut_ends if limits.side == "right" else self._cut_beginnings)(frame, texts, ids, long, limits)

    def _cut_ends(self, frame: Frame, texts: Texts, ids: SharedIds, long: Sequence[int], limits: Limits) -> bool:
        """As in the authors' scripts, what stands before a document and the document are tokenised together and cut.

        The template's tail is tokenised by itself and appended.
        """
        documents, fields = [texts.documents[i] for i in long], [texts.fields[i] for i in long]
        for i, document, field in zip(long, documents, fields, strict=True):
            if not frame.is_cuttable(document, field):
                work.refuse(_uncuttable(field, ids.length(i), limits))
        heads = frame.heads(documents, fields)
        cutter = PromptCutter(heads.base, self._special)
        room = limits.prompt - len(frame.tail)
        whole = self._plain_tokens(frame.head)
        query_cut = False
        for place, i in enumerate(long):
            if (plain := cutter.plain_room(heads, place, room)) < whole:
                # The document's images and videos, which stay, leave too little to the query before them.
                shown = self._seen.cut(texts.query, 0, limits.side)
                needed = self._plain_tokens(self._frame(replace(texts, query=shown)).head) + (shown != texts.query)
                if plain < needed:
                    work.refuse(_too_much_shown(fields[place], limits.prompt - plain + needed, limits))
                    continue
                query_cut = True
            ids.kept[i], rest = cutter.cut(heads, place, room)
            ids.rest[i] = rest + frame.tail
        return query_cut

    def _cut_beginnings(self, frame: Frame, texts: Texts, ids: SharedIds, long: Sequence[int], limits: Limits) -> bool:
        """A document that loses its beginning is tokenised with all that stands around what is left of it.

        Where its images and videos alone leave too little room, the query loses its beginning in this prompt.
        """
        query_cut = False
        for i in long:
            field, document = texts.fields[i], texts.documents[i]

            def over(text: str, field: str = field) -> int:
                return frame.length(text, field) - limits.prompt

            left = self._shortened(document, over, limits)
            one = frame.prompts([left], [field])
            if one.length(0) <= limits.prompt:
                limits.not_nothing(field, document, left, limits.prompt - frame.tokens)
                ids.kept[i], ids.rest[i] = one.kept[0], one.rest[0]
                continue
            if not left:
                work.refuse(_uncuttable(field, one.length(0), limits))
                continue

            def excess(query: str, left: str = left, field: str = field) -> int:
                return self._frame(replace(texts, query=query)).length(left, field) - limits.prompt

            query = self._shortened(texts.query, excess, limits)
            if query == self._seen.cut(query, 0, limits.side):
                work.refuse(_too_much_shown(field, one.length(0), limits))
                continue
            one = self._frame(replace(texts, query=query)).prompts([left], [field])
            ids.put(i, one.prompt(0))
            query_cut = True
        return query_cut

    def _plain_tokens(self, ids: Sequence[int]) -> int:
        return sum(token not in self._special for token in ids)


def _uncuttable(field: str, tokens: int, limits: Limits) -> InvalidRequest:
    return InvalidRequest(
        field,
        f"its prompt takes {tokens} tokens and {limits.prompt} are allowed, and it cannot be cut, because what the "
        "chat template writes around it depends on it; shorten it",
    )


def _too_much_shown(field: str, tokens: int, limits: Limits) -> InvalidRequest:
    return InvalidRequest(
        field,
        f"its images and videos leave no room for the query: {tokens} tokens would be needed, and {limits.prompt} are "
        "allowed; send fewer or smaller ones (max_pixels, max_frames), or raise the limit",
    )
