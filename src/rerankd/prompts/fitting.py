"""Cuts the texts of a request to their own limits, and the query so that documents fit into the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rerankd import work
from rerankd.core import InvalidRequest
from rerankd.models.recipes.template import Template
from rerankd.prompts.frame import Frames
from rerankd.prompts.limits import Limits, limit_too_low
from rerankd.prompts.texts import Texts
from rerankd.prompts.tokenizer import LoadedTokenizer
from rerankd.prompts.visuals import SeenTexts


class Fitting:
    """Cuts texts, and keeps their images and videos."""

    def __init__(self, tokenizer: LoadedTokenizer, template: Template, seen: SeenTexts, frames: Frames) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._seen = seen
        self._frames = frames

    def query(self, texts: Texts, limits: Limits) -> Texts:
        """The texts with a query that leaves tokens for documents. Raises InvalidRequest."""
        return self._with_fitting_query(self._within_own_limit(texts, limits), limits)

    def documents(self, texts: Texts, limits: Limits) -> Texts:
        """The documents, each cut to its own limit."""
        if limits.document is None:
            return texts
        return replace(texts, documents=tuple(self._within(texts.fields, texts.documents, limits.document, limits)))

    def as_far_as_read(self, texts: Texts, limits: Limits) -> Texts:
        """The documents without the text that lies so far beyond the limit that it is certainly cut."""
        if not limits.may_cut or not self._template.verbatim:
            return texts
        return replace(
            texts,
            documents=tuple(self._seen.reach(document, limits.prompt, limits.side) for document in texts.documents),
        )

    def shortened(self, text: str, excess: Callable[[str], int], limits: Limits) -> str:
        """The longest part of a text with no excess; where there is none, the images and videos alone.

        excess: the tokens by which the prompt with a text is too long
        """
        while (over := excess(text)) > 0:
            tokens = len(self._tokenizer.ids([text])[0])
            shorter = self._seen.cut(text, tokens - over, limits.side)
            if shorter == text:
                break
            text = shorter
        return text

    def _within_own_limit(self, texts: Texts, limits: Limits) -> Texts:
        """The query cut to its own limit."""
        if limits.query is None:
            return texts
        return replace(texts, query=self._within(["query"], [texts.query], limits.query, limits)[0])

    def _within(self, fields: Sequence[str], texts: Sequence[str], limit: int, limits: Limits) -> list[str]:
        if limits.may_cut:
            texts = [self._seen.reach(text, limit, limits.side) for text in texts]
        return [
            self._cut_to(field, text, limit, limits) if limits.exceeded(field, "it", len(ids), limit) else text
            for field, text, ids in zip(fields, texts, self._tokenizer.ids(texts), strict=True)
        ]

    def _cut_to(self, field: str, text: str, limit: int, limits: Limits) -> str:
        """A text cut to its own limit, with its images and videos; InvalidRequest where no text fits."""
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

    def _with_fitting_query(self, texts: Texts, limits: Limits) -> Texts:
        """The texts with the query cut until it leaves tokens for documents: the same query for all prompts.

        The authors cut the end of a prompt: behind such a query no document would keep a token, and all would have the
        same score. Here documents have a quarter of the tokens that the template leaves to query and document, and so
        do empty documents: the score of one does not depend on the others of its request.
        """
        if limits.may_cut and self._template.verbatim:
            texts = replace(texts, query=self._seen.reach(texts.query, limits.prompt, limits.side))
        needed, least = self._frames.of(texts).tokens, int(any((texts.query, *texts.documents)))
        if needed + least <= limits.prompt:
            return texts
        shown = self._seen.cut(texts.query, 0, limits.side)
        bare = self._frames.of(replace(texts, query=shown)).tokens
        budget = limits.prompt - bare
        if budget < least + (shown != texts.query):
            raise self._limit_too_low(texts, shown, bare, limits)
        limits.exceeded("query", "the prompt without any document", needed, limits.prompt)
        if not limits.may_cut:
            return texts
        most = limits.prompt - least * max(budget // 4, 1)
        query = self.shortened(
            texts.query, lambda query: self._frames.of(replace(texts, query=query)).tokens - most, limits
        )
        return replace(texts, query=limits.not_nothing("query", texts.query, query, budget))

    def _limit_too_low(self, texts: Texts, shown: str, bare: int, limits: Limits) -> InvalidRequest:
        """The error for a prompt that takes `bare` tokens without any text of query and document."""
        if shown and self._frames.of(replace(texts, query="")).tokens + 2 <= limits.prompt:
            return InvalidRequest(
                "query",
                f"the prompt with nothing but its images and videos takes {bare} tokens and {limits.prompt} are "
                "allowed; send fewer or smaller ones (max_pixels, max_frames), or raise the limit",
            )
        if self._frames.of(replace(texts, query="", instruction=None)).tokens + 2 <= limits.prompt:
            return InvalidRequest(
                "instruction",
                f"the prompt without query and document takes {bare} tokens with it and {limits.prompt} are "
                "allowed; shorten it",
            )
        return limit_too_low(limits.prompt, bare, 2)
