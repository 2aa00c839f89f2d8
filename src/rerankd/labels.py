"""Probabilities of tokens as the next one: what a decoder tells beside relevance."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter

from rerankd.core import InvalidRequest, LabelRequest, LabelResult, PromptGroup, Stage
from rerankd.engine.engine import Engine
from rerankd.prompts.verbatim import VerbatimPrompts


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
            prompt_tokens=len(group.prefix) * len(group.suffixes) + suffixes,
            computed_tokens=len(group.prefix) + suffixes,
            scored=len(group.suffixes),
            stages=tuple(self.stages),
        )


class Labelling:
    """A loaded model's answers to `LabelRequest`s; `prompts` is None for one without a head over its vocabulary."""

    def __init__(self, engine: Engine, prompts: VerbatimPrompts | None) -> None:
        self._engine = engine
        self._prompts = prompts

    def submit(self, request: LabelRequest) -> SubmittedLabels:
        """Tokenise a request and queue it. Raises InvalidRequest."""
        if self._prompts is None:
            raise InvalidRequest(
                "model",
                "has no head over its vocabulary, so that no token has a probability: it is no decoder, or one that "
                "was converted to a classifier; use a rerank route",
            )
        stages: list[Stage] = []
        began = perf_counter()
        group = self._prompts.build(request)
        stages.append(Stage("tokenise", began, perf_counter() - began))
        return SubmittedLabels(group, self._engine.submit(group, stages=stages), stages)
