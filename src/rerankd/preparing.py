"""Requests to prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from rerankd.core import (
    Embeddings,
    InvalidRequest,
    Labels,
    Logits,
    PromptBuilder,
    PromptGroup,
    RerankRequest,
    Stage,
    Tokens,
    Visuals,
)
from rerankd.limits import RequestLimits
from rerankd.work import bounded, leaving_out

if TYPE_CHECKING:
    from rerankd.media.places import LoadedMedia


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose prompts are built, for `submit_together`. `media` is held until the request is answered."""

    request: RerankRequest
    group: PromptGroup
    places: tuple[int, ...]
    failed: Mapping[int, InvalidRequest]
    media: LoadedMedia | None
    stages: list[Stage]


class Preparer:
    """Builds prompts within the limits of one request."""

    def __init__(
        self, prompts: PromptBuilder, verbatim: PromptBuilder | None, limits: RequestLimits | None, outputs: int = 0
    ) -> None:
        """verbatim: the builder for requests with labels; None for a model without probabilities of tokens.

        limits: None for no bounds
        outputs: the number of outputs of the model's head; see `Head`
        """
        self._prompts = prompts
        self._verbatim = verbatim
        self._limits = limits
        self._outputs = outputs

    def prepare(
        self,
        request: RerankRequest,
        media: LoadedMedia | None,
        prompts: PromptBuilder | None = None,
        stages: list[Stage] | None = None,
    ) -> Prepared:
        """Build a request's prompts. Raises InvalidRequest.

        media: the request's images and videos; None for a model that reads text only
        prompts: the prompt builder to use in place of the loaded one
        stages: the stages before; the stage of tokenising is added
        """
        stages = [] if stages is None else stages
        if request.top_n is not None and request.top_n < 1:
            raise InvalidRequest("top_n", f"must be at least 1, not {request.top_n}; leave it out for all documents")
        if request.labels is not None:
            prompts = self._for_labels(request, request.labels)
        elif any(isinstance(part, Tokens) for content in (request.query, *request.documents) for part in content):
            raise InvalidRequest(
                "documents", "are token ids, or the query is; only a request with labels may have them"
            )
        if request.outputs is not None:
            self._check_outputs(request, request.outputs)
        visuals = media.visuals if media is not None else None
        failed = dict(media.failed) if media is not None else {}
        began = perf_counter()
        places, group = _build(prompts or self._prompts, request, visuals, failed, self._limits)
        if self._limits is not None:
            self._limits.check("tokens", group.prompt_tokens, "documents")
        if request.outputs is not None:
            group = replace(group, outputs=self._outputs)
        stages.append(Stage("tokenise", began, perf_counter() - began))
        return Prepared(request, group, places, failed, media, stages)

    def _check_outputs(self, request: RerankRequest, outputs: Embeddings | Logits) -> None:
        """Raises InvalidRequest for more numbers than the limit, and for more values than an embedding has."""
        if self._limits is not None:
            self._limits.check("values", len(request.documents) * self._outputs, "documents")
        dimensions = outputs.dimensions if isinstance(outputs, Embeddings) else None
        if dimensions is not None and self._outputs and not 1 <= dimensions <= self._outputs:
            raise InvalidRequest(
                "outputs.dimensions", f"must be from 1 to {self._outputs}, this model's, not {dimensions}"
            )

    def _for_labels(self, request: RerankRequest, labels: Labels) -> PromptBuilder:
        """The builder of prompts for a request with labels. Raises InvalidRequest if tokens have no probabilities."""
        if self._verbatim is None:
            raise InvalidRequest(
                "model",
                "has no head over its vocabulary, so that no token has a probability: it is no decoder, or one that "
                "was converted to a classifier; use a rerank route",
            )
        if self._limits is not None:
            self._limits.check("values", len(request.documents) * len(labels.token_ids), "labels")
        return self._verbatim


def _build(
    prompts: PromptBuilder,
    request: RerankRequest,
    visuals: Visuals | None,
    failed: dict[int, InvalidRequest],
    limits: RequestLimits | None,
) -> tuple[tuple[int, ...], PromptGroup]:
    """The prompts of the documents that have not failed, and the indices of these documents; more errors may be
    added to `failed`."""

    def build(places: Sequence[int]) -> PromptGroup:
        if len(places) == len(request.documents):
            part = request
        else:
            part = replace(request, documents=tuple(request.documents[place] for place in places))
        part_visuals = visuals and Visuals(visuals.query, tuple(visuals.documents[place] for place in places))
        with bounded(limits):
            return prompts.build(part, part_visuals)

    places = [place for place in range(len(request.documents)) if place not in failed]
    if request.on_error == "skip":
        with leaving_out() as errors:
            group = build(places)
        if not errors:
            return tuple(places), group
        for index, error in errors.items():
            place = places[index]
            field = error.field.replace(f"documents[{index}]", f"documents[{place}]", 1)
            failed[place] = InvalidRequest(field, error.problem)
        places = [place for place in places if place not in failed]
    return tuple(places), build(places)
