"""Prompts of decoders that answer yes or no: a template, tokenised whole, and the prefix that all prompts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rerankd.core import ModelError, PromptGroup, RerankRequest, Segment, Visual, Visuals
from rerankd.models.recipes.template import Images, Marks, RenderError, Template
from rerankd.prompts.added_tokens import AddedTokens
from rerankd.prompts.chunks import Chunks, reduced_overlap, split
from rerankd.prompts.fitting import Fitting
from rerankd.prompts.frame import Frame, Frames
from rerankd.prompts.limits import Limits
from rerankd.prompts.long_prompts import LongPrompts
from rerankd.prompts.seams import Seams
from rerankd.prompts.sharing import SharedIds
from rerankd.prompts.texts import TextReader, Texts
from rerankd.prompts.tokenizer import LoadedTokenizer
from rerankd.prompts.visuals import QWEN, Placeholders, SeenTexts


class DecoderPrompts:
    """A PromptBuilder. Prompts have the ids of whole texts: BPE merges across the seams of a template (`: ` + `what`).

    The text that the prompts of a request share is tokenised once, where this gives the same ids.
    """

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        template: Template,
        max_tokens: int,
        default_instruction: str | None,
        placeholders: Placeholders | None = None,
        shares: bool = True,
        end: Sequence[int] = (),
        document_tokens: int | None = None,
        images: Images = "mixed",
        marks: Marks = QWEN,
    ) -> None:
        """max_tokens: the most tokens of a prompt
        default_instruction: None for the template's own
        placeholders: the placeholders of images and videos; None for a model that reads only text
        shares: whether prompts share a prefix; False for a model whose tokens attend to later tokens
        end: the ids after the template's text
        document_tokens: the most tokens of a document if a request does not say; None for as many as fit
        images: the places of images among texts; marks: their placeholder tokens
        """
        self.takes_instruction = template.takes_instruction
        self._tokenizer = tokenizer
        self._added = AddedTokens(tokenizer.tokenizer)
        self._seen = SeenTexts(tokenizer, marks)
        self._max_tokens = max_tokens
        self._placeholders = placeholders
        self._shares = shares
        self._document_tokens = document_tokens
        self._reader = TextReader(template, self._added, default_instruction, images, marks)
        self._frames = Frames(tokenizer, Seams(tokenizer.tokenizer), template, list(end))
        self._fitting = Fitting(tokenizer, template, self._seen, self._frames)
        self._long = LongPrompts(tokenizer, self._seen, self._frames, self._fitting)
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
        if limits.document is None:
            limits = replace(limits, document=self._document_tokens)
        media = visuals or Visuals((), ((),) * len(request.documents))
        request_texts = self._reader.read(request, media)
        texts = self._fitting.query(request_texts, limits)
        frame = self._frames.of(texts)
        split = self._split(request, texts, frame, media, limits)
        owners = [i for i in range(len(media.documents)) for _ in (split[i].chunks if i in split else [i])]
        uncut = self._in_chunks(texts, split, owners)
        texts = self._fitting.documents(uncut, limits)
        cut = {i for i, chunks in split.items() if not chunks.whole}
        cut |= {owners[i] for i, text in enumerate(texts.documents) if text != uncut.documents[i]}
        texts = self._fitting.as_far_as_read(texts, limits)
        ids = frame.prompts(texts.documents, texts.fields)
        long = [
            i
            for i, field in enumerate(texts.fields)
            if limits.exceeded(field, "its prompt", ids.length(i), limits.prompt)
        ]
        query_cut = self._long.cut(frame, texts, ids, long, limits)
        group = self._group(ids, [media.documents[i] for i in owners], media.query, texts.fields)
        cut.update(owners[i] for i in long)
        return replace(
            group,
            truncated=tuple(i in cut for i in range(len(media.documents))),
            query_truncated=query_cut or texts.query != request_texts.query,
            chunks=tuple(split[i].chunks if i in split else () for i in range(len(media.documents))) if split else (),
            ignored=reduced_overlap(split.values()),
        )

    def _group(
        self,
        ids: SharedIds,
        documents: Sequence[tuple[Visual, ...]],
        query: tuple[Visual, ...],
        fields: Sequence[str],
    ) -> PromptGroup:
        """The prompts with the shared prefix laid once; `documents` and `query` are their images and videos."""
        if self._placeholders is None or not any((query, *documents)):
            if self._shares:
                return ids.group()
            return PromptGroup(Segment([]), tuple(map(Segment, ids.behind(0))), truncated=())
        order = [(query, document) if self._query_first else (document, query) for document in documents]
        visuals = [first + second for first, second in order]
        make = self._placeholders.group if self._shares else self._placeholders.apart
        return make(ids, visuals, fields)

    def _split(
        self, request: RerankRequest, texts: Texts, frame: Frame, media: Visuals, limits: Limits
    ) -> dict[int, Chunks]:
        """The chunks of the documents that do not fit, by index, where chunks are asked for."""
        if limits.chunking is None:
            return {}
        prompts = frame.prompts(self._fitting.as_far_as_read(texts, limits).documents, texts.fields)
        documents = [self._seen.reach(text, limits.document, limits.side) for text in texts.documents]
        document_ids = self._tokenizer.ids(documents if limits.document is not None else [""] * len(documents))
        most = limits.prompt if limits.document is None else limits.document
        budget = min(limits.prompt - frame.tokens, most)
        split_documents = {}
        for i, field in enumerate(texts.fields):
            if media.documents[i] or (prompts.length(i) <= limits.prompt and len(document_ids[i]) <= most):
                continue
            text = self._reader.untemplated(request.documents[i], field, texts.templated)
            text = self._tokenizer.reach(text, limits.reach, limits.side)

            def excess(piece: str, field: str = field) -> int:
                piece = self._added.escape(piece)
                ids = self._tokenizer.ids([piece])[0]
                return max(frame.length(piece, field) - limits.prompt, len(ids) - most)

            if chunks := split(text, self._tokenizer.offsets(text), budget, limits, excess, field):
                split_documents[i] = chunks
        return split_documents

    def _in_chunks(self, texts: Texts, split: Mapping[int, Chunks], owners: Sequence[int]) -> Texts:
        """The texts with chunks in place of the documents that were split; `owners` are the documents of all pieces."""
        pieces: list[str] = []
        for i, document in enumerate(texts.documents):
            pieces += [self._added.escape(chunk.text) for chunk in split[i].chunks] if i in split else [document]
        return replace(texts, documents=tuple(pieces), fields=tuple(texts.fields[i] for i in owners))
