"""Requests: a query, documents, and limits on their length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rerankd.core.contents import Content

Side: TypeAlias = Literal["left", "right"]
MAX_CHARACTERS = 2_000_000
"""Characters of one text at most, unless a model is loaded with another limit: tokenising them takes up to 1.3 GB."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """Limits on the length of a request's texts, in tokens. None means the model's own limit.

    `max_tokens` bounds a whole prompt, template included. With `allowed=False` a prompt that does not fit
    is an `InvalidRequest` instead of a shorter prompt. `side` is where a text is cut: "right" loses its end,
    "left" its beginning, None is what the checkpoint's tokenizer says, "right" where it says nothing.
    """

    max_tokens: int | None = None
    max_tokens_per_doc: int | None = None
    max_tokens_per_query: int | None = None
    allowed: bool = True
    side: Side | None = None


@dataclass(frozen=True, slots=True)
class Chunking:
    """A document that does not fit is split, and its best chunk scores it (MaxP), instead of being cut.

    `max_chunks_per_doc` bounds the number of chunks (None: no bound); the text beyond them is cut.
    `overlap_tokens` is how many of a chunk's tokens the next one begins with, at most half of them: a larger overlap
    is reported in `RerankResult.ignored`.
    """

    max_chunks_per_doc: int | None = None
    overlap_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Labels:
    """Label tokens: the answer is the probability of each as the next token, in place of a document's relevance.

    token_ids: in the order of the answer; a token may occur more than once
    among_themselves: whether the softmax is over these tokens, else over the whole vocabulary
    query_last: whether the query stands behind each document, else before it
    """

    token_ids: tuple[int, ...]
    among_themselves: bool = False
    query_last: bool = False


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Embeddings of the documents, in place of their relevance to a query.

    prompt: the name of the text that is put before each, as the model's folder has it; None for the folder's default
    normalize: whether each has length 1; None for what the model's similarity compares
    dimensions: how many of the first values are kept; None for all
    """

    prompt: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Logits:
    """A logit for each of a classifier's labels, of each document behind the query; of it alone without a query."""


OnError: TypeAlias = Literal["fail", "skip"]


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One query and the documents to score against it. Every dialect and the Python API produce this.

    `activation=False` asks for logits in place of scores. `on_error` says whether a document that cannot be read (its
    image or video, above all) fails the request or is left out and reported in `RerankResult.failed`. With `chunking`
    a document that does not fit is split; one with images or videos is cut all the same. Documents of a lower score (or
    logit) than `min_score` are left out and reported in `RerankResult.below_min_score`.

    With `labels` each prompt is the query and a document as they stand, nothing put around them, in which a special
    token's string is that token; the answer is how probable the labels are as what comes next. Query and documents hold
    one `Text` or one `Tokens` each, all of one kind (the query may be empty), and nothing is ever cut or ranked.

    With `outputs` the answer holds those of each document in request order, as `ScoredDocument.values`. Embeddings have
    no query: it is ().
    """

    query: Content
    documents: tuple[Content, ...]
    instruction: str | None = None
    top_n: int | None = None
    truncation: Truncation = Truncation()
    activation: bool = True
    on_error: OnError = "fail"
    chunking: Chunking | None = None
    labels: Labels | None = None
    min_score: float | None = None
    outputs: Embeddings | Logits | None = None
