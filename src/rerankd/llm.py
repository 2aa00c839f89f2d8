"""vLLM's offline interface, `LLM(model=...).score(query, documents)`, for scripts that change their import only.

Reference: vLLM's `LLM.score` and its outputs. A warning names arguments without effect.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NoReturn, TypeAlias

from pydantic import TypeAdapter, ValidationError
from tqdm.auto import tqdm

from rerankd.compat.flags import Given, UsageProblem
from rerankd.compat.peers import VLLM
from rerankd.compat.variables import VLLM_VARIABLES, modelscope
from rerankd.core import Content, InvalidRequest, PromptBuilder, RerankRequest
from rerankd.media.sources import Access
from rerankd.models.checkpoint.hub import Hub
from rerankd.options import LoadOptions
from rerankd.pooling import PoolingParams, asked, no_adapter
from rerankd.ranking import Submitted
from rerankd.reranker import Reranker
from rerankd.schemas.contents import ContentBody, to_content
from rerankd.schemas.processor_kwargs import ProcessorKwargs
from rerankd.schemas.wording import first_problem

log = logging.getLogger("rerankd")

ScoreInput: TypeAlias = str | Mapping[str, Any]
"""A text, or vLLM's `{"content": [...]}`."""

RUNNERS = ("auto", "pooling")
LOADING = (
    "revision", "dtype", "quantization", "gpu_memory_utilization", "tensor_parallel_size", "data_parallel_size",
    "max_model_len", "hf_overrides", "recipe", "label", "cutoff_layers", "model_impl", "trust_remote_code",
    "chat_template", "device",
    "backend", "hub", "default_instruction",
)  # fmt: skip
"""Fields of `LoadOptions` that are arguments of `LLM` as they are."""
_CONTENT: TypeAdapter[ContentBody] = TypeAdapter(ContentBody)


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """The score of one pair."""

    score: float


@dataclass(frozen=True, slots=True)
class ScoringRequestOutput:
    """The result of `LLM.score` for one pair, in vLLM's words.

    num_cached_tokens: tokens of the prompt that were computed once for several documents
    error: always None; errors are raised
    """

    request_id: str
    outputs: ScoringOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int
    finished: bool = True
    error: None = None


class LLM:
    """A reranker under vLLM's offline interface.

    runner: "auto" or "pooling"; other runners do not score
    revision, dtype, quantization, gpu_memory_utilization, tensor_parallel_size, data_parallel_size, max_model_len,
        hf_overrides, recipe, label, cutoff_layers, model_impl, trust_remote_code, chat_template, device, backend, hub,
        default_instruction: as in `LoadOptions`
    max_num_batched_tokens: `LoadOptions.max_batch_tokens`
    allowed_local_media_path: the only folder that images and videos may be read from; "" or None for any
    mm_processor_kwargs: `min_pixels`, `max_pixels` (or `size`), `fps` and `max_frames` of images and videos
    others: vLLM's other arguments. One warning names those without effect. An argument is refused if scores or the
        placement would differ without it (pipeline parallelism, adapters, another tokenizer, ...)

    The variable VLLM_USE_MODELSCOPE is read. Raises ModelError if the model cannot be found, read or served, and
    ValueError for another runner, other processor arguments, and arguments that are not supported.
    """

    def __init__(
        self,
        model: str,
        *,
        runner: str = "auto",
        max_num_batched_tokens: int | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        allowed_local_media_path: str | None = None,
        **others: Any,
    ) -> None:
        arguments = {name: value for name, value in others.items() if value is not None}
        loading = {name: arguments.pop(name) for name in LOADING if name in arguments}
        if loading.get("model_impl") == "vllm":
            loading["model_impl"] = "native"
        if runner not in RUNNERS:
            raise ValueError(f"runner: {runner!r} does not score; give 'pooling', or leave it out")
        if callable(loading.get("hf_overrides")):
            raise ValueError("hf_overrides: a function is not supported; give the entries that it changes")
        ignored = _judged(model, arguments)
        if ignored:
            log.warning("LLM: arguments without effect here: %s", ", ".join(ignored))
        for note in VLLM_VARIABLES.notes(os.environ, ("--hub",)):
            log.info("LLM: %s", note)
        folders = (Path(allowed_local_media_path),) if allowed_local_media_path else None
        self._reranker = Reranker(
            LoadOptions(
                model=model,
                max_batch_tokens=max_num_batched_tokens,
                media_access=Access(folders, allow_private=True),
                media_sizing=_sizing(mm_processor_kwargs or {}),
                **{"hub": _hub(), **loading},
            )
        )
        self._templates: dict[str, PromptBuilder] = {}
        self._scored = 0
        self._warned: set[str] = set()

    def score(
        self,
        data_1: ScoreInput | Sequence[ScoreInput],
        data_2: ScoreInput | Sequence[ScoreInput],
        /,
        *,
        use_tqdm: bool | Callable[..., tqdm[Any]] = True,
        pooling_params: PoolingParams | None = None,
        lora_request: object = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[ScoringRequestOutput]:
        """Score queries against documents, 1:1, 1:N or N:N, in order.

        use_tqdm: whether to show progress, or a function that makes a bar
        pooling_params: see `PoolingParams`
        lora_request: must be None: adapters are not supported
        tokenization_kwargs: `truncation`, `max_length`, `truncation_side` and `truncate_prompt_tokens`
        chat_template: Jinja text in place of the model's own prompt
        truncate_prompt_tokens: the most tokens of a prompt; -1 for the model's own limit

        A warning, once, names each argument without effect. Raises InvalidRequest (a ValueError) for lists that do not
        match, unreadable contents, impossible limits, and an adapter.
        """
        no_adapter(lora_request)
        settings = asked(self._reranker.info.max_model_len, truncate_prompt_tokens, pooling_params, tokenization_kwargs)
        for name in settings.ignored:
            if name not in self._warned:
                self._warned.add(name)
                log.warning("LLM: argument without effect here: %s", name)
        queries, documents = _contents("data_1", data_1), _contents("data_2", data_2)
        if len(queries) not in (1, len(documents)):
            problem = f"has {len(queries)} queries for {len(documents)} documents; give one query, or as many"
            raise InvalidRequest("data_1", problem)
        parts = [tuple(documents)] if len(queries) == 1 else [(document,) for document in documents]
        requests = [
            RerankRequest(
                query, part, settings.instruction, truncation=settings.truncation, activation=settings.activation
            )
            for query, part in zip(queries, parts, strict=True)
        ]
        bar = use_tqdm if callable(use_tqdm) else partial(tqdm, disable=not use_tqdm)
        return self._score(requests, None if chat_template is None else self._prompts(chat_template), bar)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"LLM.{name} does not exist here; LLM.score scores pairs")

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
        self, requests: Sequence[RerankRequest], prompts: PromptBuilder | None, progress: Callable[..., tqdm[Any]]
    ) -> list[ScoringRequestOutput]:
        """Submit everything behind one bar, then watch it being scored behind another."""
        total = sum(len(request.documents) for request in requests)
        events: SimpleQueue[int | None] = SimpleQueue()
        submitted: list[Submitted] = []
        with progress(total=total, desc="Adding requests") as bar:
            for request in requests:
                submission = self._reranker.submit(request, events.put, prompts)
                submission.logits.add_done_callback(lambda _: events.put(None))
                submitted.append(submission)
                bar.update(len(request.documents))
        tokens = sum(_prompt_tokens(submission) for submission in submitted)
        with progress(total=total, desc="Processed prompts", postfix=_speed(0.0)) as bar:
            start, settled = time.perf_counter(), 0
            while settled < len(submitted):
                scored = events.get()
                if scored is None:
                    settled += 1
                    continue
                bar.update(scored)
                bar.set_postfix_str(_speed(tokens * bar.n / total / (time.perf_counter() - start)), refresh=False)
        return [output for submission in submitted for output in self._outputs(submission)]

    def _outputs(self, submitted: Submitted) -> list[ScoringRequestOutput]:
        result, group = self._reranker.collect(submitted), submitted.group
        if result.query_truncated or result.truncated:
            log.warning("LLM: cut to fit: %s", "the query" if result.query_truncated else "some documents")
        outputs, places = [], group.places()
        for document in result.in_request_order():
            ids = group.prefix.token_ids + group.suffixes[places[document.index].start].token_ids
            shared = len(group.prefix) if document.index else 0
            outputs.append(ScoringRequestOutput(str(self._scored), ScoringOutput(document.score), ids, shared))
            self._scored += 1
        return outputs


def _judged(model: str, others: Mapping[str, Any]) -> list[str]:
    """The names of arguments without effect. Raises ValueError for arguments that `rerankd serve` refuses as flags."""
    names = sorted(others)
    flags = {name: name.replace("_", "-") for name in names}
    for name in names:
        known = [*LOADING, *(flag.replace("-", "_") for flag in VLLM.flags)]
        if name not in known and (near := get_close_matches(name, known, n=1, cutoff=0.8)):
            raise ValueError(f"LLM: there is no argument {name!r}; the nearest is {near[0]!r}")
    switches = {name for name in names if isinstance(others[name], bool)}
    peer_flags = [
        Given(name, flags[name], None if name in switches else _written(others[name]), off=others[name] is False)
        for name in names
        if flags[name] in VLLM.flags
    ]
    try:
        list(VLLM.judge(peer_flags, str(model)))
    except UsageProblem as problem:
        raise ValueError(f"LLM: {problem}") from None
    return names


def _written(value: object) -> str:
    """An argument as the flag has it."""
    return json.dumps(value, default=str) if isinstance(value, dict) else str(value)


def _hub() -> Hub:
    return "modelscope" if modelscope(os.environ) else "huggingface"


def _sizing(processor_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        kwargs = ProcessorKwargs.model_validate(processor_kwargs)
    except ValidationError as error:
        raise ValueError(": ".join(first_problem(error, "mm_processor_kwargs"))) from None
    for name in kwargs.without_effect():
        raise ValueError(f"mm_processor_kwargs: {name!r} has no effect here; leave it out")
    return kwargs.values()


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
