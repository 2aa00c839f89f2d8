"""Requests: a query, documents, and limits on their length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rerankd.core.contents import Content

Side: TypeAlias = Literal["left", "right"]
MAX_CHARACTERS = 2_000_000
"""The most characters of a text, unless a model is loaded with another limit; tokenising them takes up to 1.3 GB."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """Limits on the length of a request's texts, in tokens. None means the model's own limit.

    max_tokens: the most tokens of a whole prompt, template included
    max_tokens_per_doc, max_tokens_per_query: the most tokens of these texts
    allowed: whether a prompt that does not fit is cut; otherwise it is an InvalidRequest
    side: "right" cuts the end of a text, "left" its beginning; None for the side that the checkpoint's tokenizer names,
        else "right"
    """

    max_tokens: int | None = None
    max_tokens_per_doc: int | None = None
    max_tokens_per_query: int | None = None
    allowed: bool = True
    side: Side | None = None


@dataclass(frozen=True, slots=True)
class Chunking:
    """Splits a document that does not fit into chunks. The document's score is the best score of its chunks (MaxP).

    max_chunks_per_doc: the most chunks of a document; the text beyond them is cut; None for no limit
    overlap_tokens: the number of tokens at the end of a chunk that the next chunk repeats. More than half a chunk is
        reduced to half, and `RerankResult.ignored` reports it
    """

    max_chunks_per_doc: int | None = None
    overlap_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Labels:
    """Label tokens: the answer is the probability of each as the next token, in place of a document's relevance.

    token_ids: in the order of the answer; a token may occur more than once
    among_themselves: whether the softmax is over these tokens; otherwise it is over the whole vocabulary
    query_last: whether the query follows each document; otherwise it precedes each
    """

    token_ids: tuple[int, ...]
    among_themselves: bool = False
    query_last: bool = False


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Embeddings of the documents, in place of their relevance to a query.

    prompt: the name of a prompt in the model's folder, which is put before each text; None for the folder's default
    normalize: whether each embedding has length 1; None for the form that the model's similarity compares
    dimensions: the number of values to keep, from the first; None for all
    """

    prompt: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Logits:
    """A logit for each of a classifier's labels, for each pair of query and document, or document alone."""


OnError: TypeAlias = Literal["fail", "skip"]


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One query and the documents to score against it. Every dialect and the Python API make such a request.

    instruction: describes which documents are relevant; None for the default
    top_n: the most documents to return; None for all
    activation: False for logits in place of scores
    on_error: whether a document that cannot be read (mostly its image or video) makes the request fail, or is left out
        and reported in `RerankResult.failed`
    chunking: splits documents that do not fit; a document with images or videos is cut instead
    labels: asks for the probabilities of tokens. A prompt is then the query and a document, without a template; the
        string of a special token is that token. Query and documents have one `Text` or one `Tokens` each, all of one
        kind (the query may be empty). Nothing is cut or ranked.
    min_score: documents with a lower score (or logit) are left out and reported in `RerankResult.below_min_score`
    outputs: asks for embeddings or logits, in request order, as `ScoredDocument.values`; embeddings have the query ()
    bounded: True for scores from 0 to 1 of models whose score is a plain logit too: its sigmoid. It needs `activation`
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
    bounded: bool = False
