"""A reranker without a model, and a server around any reranker, for tests of what lies above the engine."""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import uvicorn

from rerankd.core import (
    Content,
    Embeddings,
    EngineDead,
    EngineLoad,
    InvalidRequest,
    Labels,
    Logits,
    RerankRequest,
    RerankResult,
    ScoredDocument,
    Text,
    TextToken,
    text_content,
)
from rerankd.options import ModelInfo
from rerankd.server.app import create_app
from rerankd.server.connections import Connections
from rerankd.server.pool import Pool
from rerankd.server.run import bind
from rerankd.server.service import Serves
from rerankd.server.settings import Settings
from rerankd.server.tls import protocol
from tests.labels import written_out

MODEL = "example/reranker"
WIDTH = 2
INFO = ModelInfo(
    model=MODEL,
    path=Path("/nowhere"),
    architecture="FakeForSequenceClassification",
    family="cross-encoder",
    device="cpu",
    dtype="float32",
    max_model_len=512,
    takes_instruction=False,
)


def words(content: Content) -> list[str]:
    return " ".join(part.text for part in content if isinstance(part, Text)).split()


def fake_score(query: Content, document: Content) -> float:
    """A score that any change of either text changes."""
    digest = hashlib.sha256(repr((query, document)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def fake_probability(prompt: str | tuple[int, ...], label: int) -> float:
    """A probability that any change of the prompt or the label changes."""
    return fake_score(text_content(repr(prompt)), text_content(str(label)))


def fake_values(query: Content, document: Content) -> tuple[float, ...]:
    """The outputs of a text; those of a classifier's two labels are as many."""
    return tuple(fake_score((*query, *document), text_content(str(place))) for place in range(WIDTH))


class FakeReranker:
    """Scores by hash, counts words for tokens, cuts documents to `max_tokens` words, and reads no media.

    A query of "wait" is answered once `gate` is set; `cancelled` counts calls that were cancelled.
    """

    def __init__(self) -> None:
        self.info = INFO
        self.failure: EngineDead | None = None
        self.loaded = EngineLoad(waiting=3, batches=2, tokens=100, seconds=0.5, waiting_tokens=40, threads=3)
        self.gate = threading.Event()
        self.waiting = threading.Event()
        self.cancelled = 0
        self.requests: list[RerankRequest] = []
        self.labelled: list[RerankRequest] = []

    def load(self) -> EngineLoad:
        return self.loaded

    def tokenize(self, text: str, special: bool) -> list[TextToken]:
        """A token's id is its length."""
        tokens = [TextToken(len(one[0]), one[0], False, one.span()) for one in re.finditer(r"\S+", text)]
        return [TextToken(3, "<s>", True), *tokens, TextToken(4, "</s>", True)] if special else tokens

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        if 666 in ids:
            raise InvalidRequest("ids", "must be ids of the model's tokens; it has none of id 666")
        return " ".join("x" * number for number in ids if not (skip_special and number in (3, 4)))

    async def answer_all(self, requests: Sequence[RerankRequest]) -> list[RerankResult]:
        results = []
        for number, request in enumerate(requests):
            try:
                results.append(await self.answer(request))
            except InvalidRequest as error:
                error.request = number
                raise
        return results

    async def answer(self, request: RerankRequest) -> RerankResult:
        if request.labels is not None:
            return self._labelled(request, request.labels)
        if request.outputs is not None:
            return self._with_outputs(request, request.outputs)
        self.requests.append(request)
        if words(request.query) == ["wait"]:
            await self._wait()
        if words(request.query) == ["break"]:
            raise RuntimeError("a secret of the engine room")
        limit = request.truncation.max_tokens or INFO.max_model_len
        scored = []
        for index, document in enumerate(request.documents):
            if not all(isinstance(part, Text) for part in document):
                raise InvalidRequest(f"documents[{index}]", "this model reads text only")
            length = len(words(document))
            if length > limit and not request.truncation.allowed:
                raise InvalidRequest(f"documents[{index}]", f"is {length} tokens long, the limit is {limit}")
            score = fake_score(request.query, document)
            scored.append(ScoredDocument(index, score, min(length, limit), length > limit))
        scored.sort(key=lambda one: -one.score)
        return RerankResult(
            documents=tuple(scored[: request.top_n]),
            prompt_tokens=sum(one.prompt_tokens for one in scored),
            computed_tokens=0,
            query_truncated=len(words(request.query)) > limit,
            ignored=("instruction",) if request.instruction else (),
            truncated=tuple(sorted(one.index for one in scored if one.truncated)),
        )

    def _labelled(self, request: RerankRequest, labels: Labels) -> RerankResult:
        self.labelled.append(request)
        if self.info.family != "decoder":
            raise InvalidRequest("model", "has no head over its vocabulary")
        if not labels.token_ids:
            raise InvalidRequest("labels", "must hold at least one token id")
        prompts = written_out(request)
        if any(isinstance(prompt, str) and prompt.startswith("break") for prompt in prompts):
            raise RuntimeError("a secret of the engine room")
        found = [tuple(fake_probability(prompt, label) for label in labels.token_ids) for prompt in prompts]
        documents = tuple(ScoredDocument(index, own[0], 1, labels=own) for index, own in enumerate(found))
        return RerankResult(documents, len(prompts), 0, scored=len(prompts))

    def _with_outputs(self, request: RerankRequest, outputs: Embeddings | Logits) -> RerankResult:
        """Each text with as many numbers as `WIDTH`; an embedding cut to the dimensions that are asked for."""
        self.requests.append(request)
        width = outputs.dimensions if isinstance(outputs, Embeddings) else None
        if width is not None and width > WIDTH:
            raise InvalidRequest("outputs.dimensions", f"must be from 1 to {WIDTH}")
        found = []
        for index, document in enumerate(request.documents):
            if words(document) == ["break"]:
                raise RuntimeError("a secret of the engine room")
            length = len(words((*request.query, *document)))
            limit = request.truncation.max_tokens or INFO.max_model_len
            if length > limit and not request.truncation.allowed:
                raise InvalidRequest(f"documents[{index}]", f"is {length} tokens long, the limit is {limit}")
            values = fake_values(request.query, document)[:width]
            found.append(ScoredDocument(index, values[0], min(length, limit), length > limit, values=values))
        return RerankResult(
            tuple(found), sum(one.prompt_tokens for one in found), 0, scored=len(found),
            truncated=tuple(one.index for one in found if one.truncated),
        )  # fmt: skip

    async def _wait(self) -> None:
        self.waiting.set()
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@contextmanager
def running(
    models: Serves | Pool,
    settings: Settings,
    connections: Connections | None = None,
    tls: ssl.SSLContext | None = None,
    loop: Literal["auto", "asyncio"] = "auto",
) -> Iterator[str]:
    """The base URL of a server on a port that the system picked."""
    listener = bind("127.0.0.1", 0)
    listener.listen()  # clients wait for the server instead of being refused
    config = uvicorn.Config(
        create_app(models, settings),
        http=protocol(connections or Connections(), tls),  # type: ignore[arg-type]
        loop=loop,
        log_level="warning",
        lifespan="off",
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
