"""Probabilities of tokens as the next one: what a decoder tells beside relevance."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter

from rerankd.core import InvalidRequest, LabelRequest, LabelResult, PromptGroup, Stage
from rerankd.engine.engine import Engine
from rerankd.limits import RequestLimits
from rerankd.prompts.verbatim import VerbatimPrompts
from rerankd.work import bounded


@dataclass(frozen=True, slots=True)
class SubmittedLabels:
    """A request that the engine works on: its prompts, and the labels' log-probabilities to come, prompt by prompt."""

    group: PromptGroup
    logits: Future[list[float]]
    stages: list[Stage] = field(default_factory=list)

    def result(self, values: list[float]) -> LabelResult:
        """The answer, of the values that came."""
        group, width = self.group, self.group.values
        suffixes = sum(map(len, group.suffixes))
        return LabelResult(
            probabilities=tuple(
                tuple(map(math.exp, values[start : start + width])) for start in range(0, len(values), width)
            ),
            prompt_tokens=group.prompt_tokens,
            computed_tokens=len(group.prefix) + suffixes,
            scored=len(group.suffixes),
            stages=tuple(self.stages),
        )


class Labelling:
    """A loaded model's answers to `LabelRequest`s; `prompts` is None for one without a head over its vocabulary."""

    def __init__(self, engine: Engine, prompts: VerbatimPrompts | None, limits: RequestLimits | None) -> None:
        self._engine = engine
        self._prompts = prompts
        self._limits = limits

    def submit(self, request: LabelRequest) -> SubmittedLabels:
        """Tokenise a request and queue it. Raises InvalidRequest."""
        if self._prompts is None:
            raise InvalidRequest(
                "model",
                "has no head over its vocabulary, so that no token has a probability: it is no decoder, or one that "
                "was converted to a classifier; use a rerank route",
            )
        if self._limits is not None:
            self._limits.check("values", len(request.prompts) * len(request.labels.token_ids), "labels")
        stages: list[Stage] = []
        began = perf_counter()
        with bounded(self._limits):
            group = self._prompts.build(request)
        if self._limits is not None:
            self._limits.check("tokens", group.prompt_tokens, "prompts")
        stages.append(Stage("tokenise", began, perf_counter() - began))
        return SubmittedLabels(group, self._engine.submit(group, stages=stages), stages)
