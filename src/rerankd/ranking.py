"""From logits to a result: the score of each document, the best of its chunks, their order."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy
from numpy.typing import NDArray

from rerankd.core import (
    Embeddings,
    InvalidRequest,
    Logits,
    PromptGroup,
    RerankRequest,
    RerankResult,
    ScoredDocument,
    Stage,
    identity,
)
from rerankd.windows import cosines

SHORTEST = 1e-12
"""The least length by which an embedding is divided, as in torch."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request in the engine: its prompts, and the logits to come.

    places: the index of each prompt's document; all documents but those in `failed`
    failed: the error of each document that is left out
    stages: complete once the logits are there
    """

    request: RerankRequest
    group: PromptGroup
    logits: Future[list[float]]
    places: tuple[int, ...]
    failed: Mapping[int, InvalidRequest]
    stages: list[Stage] = field(default_factory=list)


def rank(
    submitted: Submitted,
    logits: list[float],
    sigmoid: bool,
    ignored: tuple[str, ...] = (),
    at_length_1: bool = False,
) -> RerankResult:
    """The result of a request from its logits.

    logits: for each suffix one logit; with labels, their log-probabilities; for a listwise model, the vectors of the
        window; with outputs, these
    sigmoid: whether a score is the sigmoid of its logit; otherwise it is the logit
    ignored: names of further fields without effect
    at_length_1: whether embeddings have length 1 if the request does not say
    """
    request, group = submitted.request, submitted.group
    if request.labels is not None:
        documents = list(_labelled(submitted, logits))
        order = list(range(len(documents)))
    elif request.outputs is not None:
        documents = list(_with_outputs(submitted, request.outputs, logits, at_length_1))
        order = list(range(len(documents)))
    else:
        if group.windows is not None:
            logits = cosines(group.windows, logits)
        documents, best = _scored(submitted, logits, sigmoid and request.activation)
        # By logits, since these still differ where all scores round to 1.
        order = sorted(range(len(documents)), key=lambda document: -best[document])
    bound = -math.inf if request.min_score is None else request.min_score
    below = tuple(document.index for document in documents if document.score < bound)
    order = [place for place in order if documents[place].score >= bound]
    return RerankResult(
        documents=tuple(documents[document] for document in order[: request.top_n]),
        prompt_tokens=group.prompt_tokens,
        computed_tokens=len(group.prefix) + sum(len(suffix) for suffix in group.suffixes),
        query_truncated=group.query_truncated,
        ignored=(*ignored, *group.ignored),
        truncated=tuple(document.index for document in documents if document.truncated),
        failed=submitted.failed,
        scored=len(documents),
        stages=tuple(submitted.stages),
        below_min_score=below,
        contents=request.documents,
        windows=0 if group.windows is None else len(group.windows.documents),
    )


def _scored(submitted: Submitted, logits: list[float], sigmoid: bool) -> tuple[list[ScoredDocument], list[float]]:
    """The best chunk of each document, and its logit.

    Rows of a batch differ in the last digits by their places. Equal documents have the logit of the first of them, so
    that they keep the order of the request.

    logits: one for each suffix, or one for each document if suffixes hold several documents
    """
    group = submitted.group
    activate = _sigmoid if sigmoid else float
    documents: list[ScoredDocument] = []
    best_logits: list[float] = []
    firsts: dict[Hashable, int] = {}
    for document, (index, places) in enumerate(zip(submitted.places, group.places(), strict=True)):
        chunks = group.chunks[document] if group.chunks else ()
        if group.windows is not None:
            best, logit = document, logits[document]
        else:
            best = max(places, key=logits.__getitem__)
            first = firsts.setdefault(tuple(map(identity, submitted.request.documents[index])), document)
            logit = logits[best] if first == document else best_logits[first]
        best_logits.append(logit)
        documents.append(
            ScoredDocument(
                index=index,
                score=activate(logit),
                prompt_tokens=sum(len(group.prefix) + len(group.suffixes[place]) for place in places),
                truncated=group.truncated[document],
                best_chunk=chunks[best - places.start] if chunks else None,
                chunks=len(places),
            )
        )
    return documents, best_logits


def _labelled(submitted: Submitted, logarithms: list[float]) -> Iterator[ScoredDocument]:
    """Each document with the probabilities of the labels."""
    group, width = submitted.group, submitted.group.values
    for place, (index, suffix) in enumerate(zip(submitted.places, group.suffixes, strict=True)):
        probabilities = tuple(map(math.exp, logarithms[place * width : (place + 1) * width]))
        yield ScoredDocument(index, probabilities[0], len(group.prefix) + len(suffix), labels=probabilities)


def _with_outputs(
    submitted: Submitted, outputs: Embeddings | Logits, numbers: list[float], at_length_1: bool
) -> Iterator[ScoredDocument]:
    """Each document with its outputs."""
    group = submitted.group
    values = numpy.asarray(numbers, dtype=numpy.float32).reshape(-1, group.values)
    if isinstance(outputs, Embeddings):
        values = _embeddings(
            values[:, : outputs.dimensions], at_length_1 if outputs.normalize is None else outputs.normalize
        )
    rows = zip(submitted.places, group.suffixes, group.truncated, values.tolist(), strict=True)
    for index, suffix, truncated, row in rows:
        yield ScoredDocument(index, row[0], len(suffix), truncated, values=tuple(row))


def _embeddings(values: NDArray[numpy.float32], normalize: bool) -> NDArray[numpy.float32]:
    """float32 [documents, dimensions]; a row of zeros stays."""
    if not normalize:
        return values
    lengths = numpy.linalg.norm(values.astype(numpy.float64), axis=1, keepdims=True)
    normalized: NDArray[numpy.float64] = values / numpy.maximum(lengths, SHORTEST)
    return normalized.astype(numpy.float32)


def _sigmoid(logit: float) -> float:
    # The two forms keep exp() from overflowing.
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
