"""vLLM's offline face: `LLM(model=...).score(query, documents)`, for scripts that change their import only.

Reference: vLLM's `LLM.score` and the outputs that it returns. What has no meaning here is said in a warning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError
from tqdm.auto import tqdm

from rerankd.core import Content, InvalidRequest, PromptBuilder, RerankRequest, Truncation
from rerankd.media.sizing import Sizing
from rerankd.options import LoadOptions
from rerankd.reranker import Reranker, Submitted
from rerankd.server.dialects.contents import ContentBody, to_content
from rerankd.server.dialects.processor_kwargs import ProcessorKwargs

log = logging.getLogger("rerankd")

ScoreInput: TypeAlias = str | Mapping[str, Any]
"""A text, or vLLM's `{"content": [...]}`."""

RUNNERS = ("auto", "pooling")
_CONTENT: TypeAdapter[ContentBody] = TypeAdapter(ContentBody)


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """The score of one pair."""

    score: float


@dataclass(frozen=True, slots=True)
class ScoringRequestOutput:
    """What `LLM.score` gives for one pair, in vLLM's words.

    num_cached_tokens: tokens of the prompt that were computed once for several documents
    """

    request_id: str
    outputs: ScoringOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int
    finished: bool = True


class LLM:
    """A reranker under vLLM's offline interface.

    runner: "auto" or "pooling"; nothing else scores
    model, revision, dtype, max_model_len, hf_overrides, device: as in `LoadOptions`
    max_num_batched_tokens: `LoadOptions.max_batch_tokens`
    mm_processor_kwargs: `min_pixels`, `max_pixels` (or `size`), `fps` and `max_frames` of images and videos
    Every other argument of vLLM's is accepted, and named in one warning.

    Raises ModelError where the model cannot be found, read or served, ValueError for another runner and other
    processor arguments.
    """

    def __init__(
        self,
        model: str,
        *,
        runner: str = "auto",
        revision: str | None = None,
        dtype: str = "auto",
        max_model_len: int | None = None,
        hf_overrides: Mapping[str, Any] | None = None,
        max_num_batched_tokens: int | None = None,
        device: str = "auto",
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        **ignored: Any,
    ) -> None:
        if runner not in RUNNERS:
            raise ValueError(f"runner: {runner!r} does not score; give 'pooling', or leave it out")
        if ignored:
            log.warning("LLM: no effect here: %s", ", ".join(sorted(ignored)))
        self._reranker = Reranker(
            LoadOptions(
                model=model,
                revision=revision,
                dtype=dtype,
                max_model_len=max_model_len,
                hf_overrides=hf_overrides or {},
                max_batch_tokens=max_num_batched_tokens,
                device=device,
                media_sizing=_sizing(mm_processor_kwargs or {}),
            )
        )
        self._templates: dict[str, PromptBuilder] = {}
        self._scored = 0

    def score(
        self,
        data_1: ScoreInput | Sequence[ScoreInput],
        data_2: ScoreInput | Sequence[ScoreInput],
        /,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
        chat_template: str | None = None,
    ) -> list[ScoringRequestOutput]:
        """Score queries against documents, 1:1, 1:N or N:N, in order.

        truncate_prompt_tokens: the longest prompt in tokens; -1 for the model's own limit
        chat_template: Jinja text in place of the model's own prompt

        Raises InvalidRequest (a ValueError) for lists that do not match and contents that cannot be read.
        """
        queries, documents = _contents("data_1", data_1), _contents("data_2", data_2)
        if len(queries) not in (1, len(documents)):
            problem = f"has {len(queries)} queries for {len(documents)} documents; give one query, or as many"
            raise InvalidRequest("data_1", problem)
        truncation = Truncation(max_tokens=None if truncate_prompt_tokens == -1 else truncate_prompt_tokens)
        parts = [tuple(documents)] if len(queries) == 1 else [(document,) for document in documents]
        requests = [
            RerankRequest(query, part, truncation=truncation) for query, part in zip(queries, parts, strict=True)
        ]
        return self._score(requests, None if chat_template is None else self._prompts(chat_template), use_tqdm)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reranker.close()

    def _prompts(self, chat_template: str) -> PromptBuilder:
        if chat_template not in self._templates:
            self._templates[chat_template] = self._reranker.prompts(chat_template)
        return self._templates[chat_template]

    def _score(
        self, requests: Sequence[RerankRequest], prompts: PromptBuilder | None, use_tqdm: bool
    ) -> list[ScoringRequestOutput]:
        """Submit everything behind one bar, then watch it being scored behind another."""
        total = sum(len(request.documents) for request in requests)
        events: SimpleQueue[int | None] = SimpleQueue()
        submitted: list[Submitted] = []
        with tqdm(total=total, desc="Adding requests", disable=not use_tqdm) as bar:
            for request in requests:
                one = self._reranker.submit(request, events.put, prompts)
                one.logits.add_done_callback(lambda _: events.put(None))
                submitted.append(one)
                bar.update(len(request.documents))
        tokens = sum(_prompt_tokens(one) for one in submitted)
        with tqdm(total=total, desc="Processed prompts", disable=not use_tqdm, postfix=_speed(0.0)) as bar:
            start, settled = time.perf_counter(), 0
            while settled < len(submitted):
                scored = events.get()
                if scored is None:
                    settled += 1
                    continue
                bar.update(scored)
                bar.set_postfix_str(_speed(tokens * bar.n / total / (time.perf_counter() - start)), refresh=False)
        return [output for one in submitted for output in self._outputs(one)]

    def _outputs(self, submitted: Submitted) -> list[ScoringRequestOutput]:
        result, group = self._reranker.collect(submitted), submitted.group
        if result.query_truncated or result.truncated:
            log.warning("LLM: cut to fit: %s", "the query" if result.query_truncated else "some documents")
        outputs = []
        for document in result.in_request_order():
            ids = group.prefix.token_ids + group.suffixes[document.index].token_ids
            shared = len(group.prefix) if document.index else 0
            outputs.append(ScoringRequestOutput(str(self._scored), ScoringOutput(document.score), ids, shared))
            self._scored += 1
        return outputs


def _sizing(processor_kwargs: Mapping[str, Any]) -> Sizing:
    try:
        given = ProcessorKwargs.model_validate(processor_kwargs)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"mm_processor_kwargs: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for name in given.without_effect():
        raise ValueError(f"mm_processor_kwargs: {name!r} has no effect here; leave it out")
    return Sizing(**given.told())


def _contents(name: str, data: ScoreInput | Sequence[ScoreInput]) -> list[Content]:
    listed = [data] if isinstance(data, str | Mapping) else list(data)
    contents = []
    for index, item in enumerate(listed):
        try:
            contents.append(to_content(_CONTENT.validate_python(item)))
        except ValidationError as error:
            raise InvalidRequest(f"{name}[{index}]", error.errors(include_url=False)[0]["msg"]) from None
    return contents


def _prompt_tokens(submitted: Submitted) -> int:
    group = submitted.group
    return sum(len(group.prefix) + len(suffix) for suffix in group.suffixes)


def _speed(tokens_per_second: float) -> str:
    return f"est. speed input: {tokens_per_second:.2f} toks/s, output: 0.00 toks/s"
