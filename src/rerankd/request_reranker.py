"""A loaded model that scores requests: prompts are built and queued, and logits become results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rerankd.compute_thread import Compute, in_this_thread
from rerankd.core import (
    EngineDead,
    EngineLoad,
    InvalidRequest,
    PromptBuilder,
    RerankRequest,
    RerankResult,
    Stage,
    Text,
    TextToken,
)
from rerankd.loading import WARM_UP, plan
from rerankd.options import LoadOptions, load_options
from rerankd.preparing import Prepared, Preparer
from rerankd.progress import by_document
from rerankd.prompts.limits import too_many_characters
from rerankd.prompts.tokenizer import LONG_CHARACTERS
from rerankd.ranking import Submitted, rank
from rerankd.starting import start
from rerankd.work import Workers, all_of

if TYPE_CHECKING:
    from rerankd.media.places import LoadedMedia

SOON_RANKED = 1000
"""The event loop makes a result from up to this many logits; a thread does for more."""


class RequestReranker:
    """A loaded model for a server and for file jobs: it answers a `RerankRequest` with a `RerankResult`.

    Any thread may call any method. Raises ModelError if the model cannot be found, read or served.
    """

    def __init__(self, model: str | Path | LoadOptions, *, compute: Compute | None = None, **options: Any) -> None:
        """model: a folder, a hub id, or a `LoadOptions`
        compute: runs the model's batches if several models share a thread; None for a thread of the model's own
        options: fields of `LoadOptions`
        """
        chosen = load_options(model, options)
        planned = plan(chosen)
        self._prompts, self._load_prompts = planned.prompts, planned.load_prompts
        self._media = planned.media_loader()
        self._started = start(planned, compute or in_this_thread)
        self._engine, self._head = self._started.engine, self._started.head
        self.info = planned.loaded_info(self._head)
        vocabulary = self._head.vocabulary
        verbatim = None if vocabulary is None else self._prompts.verbatim(vocabulary, self.info.supports_vision)
        self._preparer = Preparer(self._prompts, verbatim, chosen.request_limits, self._head.outputs)
        self._workers = Workers("rerankd-request")
        self._long_workers = Workers("rerankd-long", 1)
        try:
            self._warm_up()
        except BaseException:
            self.close()
            raise

    def prompts(self, chat_template: str | Path) -> PromptBuilder:
        """Prompts by a Jinja file or text, for `submit`, in place of the loaded ones. Raises ModelError."""
        return self._load_prompts(chat_template=chat_template)

    def tokenize(self, text: str, special: bool = True) -> list[TextToken]:
        """The tokens of a text, by the model's own tokenizer.

        special: whether the tokens that begin and end a prompt are added

        Raises InvalidRequest for a text of too many characters, and what `work.check` and `work.count` raise.
        """
        if len(text) > self._prompts.max_characters:
            raise too_many_characters("text", len(text), self._prompts.max_characters)
        return self._prompts.tokenizer.tokens(text, special)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids, by the model's own tokenizer.

        skip_special: whether special tokens are left out

        Raises InvalidRequest for an id that the tokenizer has no token of.
        """
        tokenizer = self._prompts.tokenizer.tokenizer
        for number in set(ids):
            if tokenizer.id_to_token(number) is None:
                raise InvalidRequest("ids", f"must be ids of the model's tokens; it has none of id {number}")
        # A batch, since `decode` lets no other thread run.
        text: str = tokenizer.decode_batch([ids], skip_special_tokens=skip_special)[0]
        return text

    def load(self) -> EngineLoad:
        """The present load of the engine, and its work since the start."""
        return self._engine.load()

    @property
    def failure(self) -> EngineDead | None:
        """The reason why the engine answers no more requests; None while it works."""
        return self._engine.failure

    def submit(
        self,
        request: RerankRequest,
        on_progress: Callable[[int], object] | None = None,
        prompts: PromptBuilder | None = None,
    ) -> Submitted:
        """Tokenise a request and queue it; `collect` waits for it. Raises InvalidRequest.

        on_progress: called from the engine's thread with the number of documents just scored
        prompts: the prompt builder to use in place of the loaded one
        """
        return self._enqueue(request, self._load_blocking(request), on_progress, prompts)

    def prepare(self, request: RerankRequest) -> Prepared:
        """Tokenise a request without queueing it, for `submit_together`. Raises InvalidRequest."""
        return self._preparer.prepare(request, self._load_blocking(request))

    def submit_together(
        self, prepared: Sequence[Prepared], on_progress: Callable[[int], object] | None = None
    ) -> list[Submitted]:
        """Queue several requests at once, for `collect`.

        If nothing else waits, the same requests are in the same batches each time, and have the same scores to the last
        digit.
        """
        with self._engine.held():
            return [self._queue(request, on_progress) for request in prepared]

    def collect(self, submitted: Submitted) -> RerankResult:
        """Wait for a submitted request and rank its documents. Raises EngineError, EngineClosed, EngineDead."""
        return self._rank(submitted, submitted.logits.result())

    async def answer(self, request: RerankRequest) -> RerankResult:
        """Score a request without blocking the event loop.

        Cancelling the awaiting task drops the documents that wait, and stops the work on the others.
        """
        return (await self.answer_all([request]))[0]

    async def answer_all(self, requests: Sequence[RerankRequest]) -> list[RerankResult]:
        """`answer` for several requests, in order. One thread reads all of them, since switching threads takes time.

        Raises InvalidRequest for the first request that cannot be answered; its `request` is the request's index.
        """
        loaded = await all_of(self._load(request, number) for number, request in enumerate(requests))
        size = sum(map(_characters, requests))
        # Long texts are tokenised one after another, so that they would only keep threads from other requests.
        workers = self._long_workers if any(map(_is_long, requests)) else self._workers
        submitted = await workers.run(partial(self._enqueue_all, requests, loaded), drop_all, size)
        logits = await all_of(asyncio.wrap_future(submission.logits) for submission in submitted)
        if sum(map(len, logits)) <= SOON_RANKED:
            return self._rank_all(submitted, logits)
        return await self._workers.run(partial(self._rank_all, submitted, logits))

    def close(self) -> None:
        """Stop the engine. Waiting requests fail with EngineClosed."""
        self._workers.close()
        self._long_workers.close()
        self._started.close()
        if self._media is not None:
            self._media.close()

    async def _load(self, request: RerankRequest, number: int) -> tuple[LoadedMedia | None, list[Stage]]:
        """The media of a request, and the stage of reading them. Raises InvalidRequest with the request's index."""
        if self._media is None:
            return None, []
        began = perf_counter()
        try:
            media = await self._media.load(request, skip_bad_documents=request.on_error == "skip")
        except InvalidRequest as error:
            raise InvalidRequest(error.field, error.problem, number) from error
        return media, [Stage("media", began, perf_counter() - began)]

    def _enqueue_all(
        self, requests: Sequence[RerankRequest], loaded: Sequence[tuple[LoadedMedia | None, list[Stage]]]
    ) -> list[Submitted]:
        submitted: list[Submitted] = []
        try:
            for request, (media, stages) in zip(requests, loaded, strict=True):
                submitted.append(self._enqueue(request, media, stages=stages))
        except InvalidRequest as error:
            drop_all(submitted)
            raise InvalidRequest(error.field, error.problem, len(submitted)) from error
        except BaseException:
            drop_all(submitted)
            raise
        return submitted

    def _enqueue(
        self,
        request: RerankRequest,
        media: LoadedMedia | None,
        on_progress: Callable[[int], object] | None = None,
        prompts: PromptBuilder | None = None,
        stages: list[Stage] | None = None,
    ) -> Submitted:
        return self._queue(self._preparer.prepare(request, media, prompts, stages), on_progress)

    def _load_blocking(self, request: RerankRequest) -> LoadedMedia | None:
        if self._media is None:
            return None
        return self._media.load_blocking(request, skip_bad_documents=request.on_error == "skip")

    def _queue(self, prepared: Prepared, on_progress: Callable[[int], object] | None = None) -> Submitted:
        group, media = prepared.group, prepared.media
        logits = self._engine.submit(group, on_progress and by_document(group, on_progress), prepared.stages)
        if media is not None:
            logits.add_done_callback(lambda _: media.release())
        return Submitted(prepared.request, group, logits, prepared.places, prepared.failed, prepared.stages)

    def _warm_up(self) -> None:
        """Run once before the first request."""
        try:
            self.collect(self.submit(WARM_UP))
        except Exception:
            self.close()
            raise

    def _rank_all(self, submitted: Iterable[Submitted], logits: Iterable[list[float]]) -> list[RerankResult]:
        return [
            self._rank(submission, request_logits) for submission, request_logits in zip(submitted, logits, strict=True)
        ]

    def _rank(self, submitted: Submitted, logits: list[float]) -> RerankResult:
        has_instruction = submitted.request.instruction is not None
        ignored = ("instruction",) if has_instruction and not self.info.takes_instruction else ()
        # Other kinds of models that apply no function give a cosine, or a logarithm of a probability.
        bounded = submitted.request.bounded and self.info.family in ("cross-encoder", "decoder")
        sigmoid = bounded or self._head.activation == "sigmoid"
        return rank(submitted, logits, sigmoid, ignored, self._head.at_length_1)


def _characters(request: RerankRequest) -> int:
    """The characters of a request; threads take the request with the fewest first."""
    contents = (request.query, *request.documents)
    return sum(len(part.text) for content in contents for part in content if isinstance(part, Text))


def _is_long(request: RerankRequest) -> bool:
    """Whether one of the request's texts is long for the tokenizer."""
    texts = (part.text for content in (request.query, *request.documents) for part in content if isinstance(part, Text))
    return max(map(len, (request.instruction or "", *texts))) > LONG_CHARACTERS


def drop_all(submitted: Iterable[Submitted]) -> None:
    """Drop requests that nobody waits for."""
    for submission in submitted:
        submission.logits.cancel()
