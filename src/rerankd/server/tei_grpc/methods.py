"""The methods of TEI's services as calls over HTTP, and messages as JSON and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

from rerankd.core import RerankResult
from rerankd.server.access import Keys
from rerankd.server.settings import Settings
from rerankd.server.tei_grpc.calls import Answer, App, Refused, aside, spent
from rerankd.server.tei_grpc.intake import Intake
from rerankd.server.tei_grpc.wire import parsed

PROTO = "rerankd/server/tei_grpc/tei.proto"
STREAM = "Stream"
AT_A_TIME = 64
"""Messages of one stream that are answered at a time."""
T = TypeVar("T")
Result = TypeVar("Result")
Replied: TypeAlias = tuple[Any, tuple[tuple[str, str], ...]]
"""A message, and its metadata."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """The classes of a method's messages."""

    request: Any
    reply: Any


@dataclass(frozen=True, slots=True)
class Method:
    """A method over HTTP. reply: the fields of the answer's message, of the JSON and the request's message"""

    path: str
    reply: Callable[[Any, Any], Mapping[str, Any]]
    reads: bool = True


def _info(answer: Any, request: Any) -> Mapping[str, Any]:
    return {**answer, "model_type": "MODEL_TYPE_RERANKER"}


def _ranks(answer: Any, request: Any) -> Mapping[str, Any]:
    """Texts are not sent to the app and back."""
    return {"ranks": _with_texts(answer, request.texts) if request.return_text else answer}


_PREDICT = Method("/tei/predict", lambda answer, request: {"predictions": answer})
METHODS: Mapping[str, Method] = {
    "Info": Method("/tei/info", _info, reads=False),
    "Embed": Method("/tei/embed", lambda answer, request: {"embeddings": answer[0]}),
    "Predict": _PREDICT,
    "PredictPair": _PREDICT,
    "Rerank": Method("/tei/rerank", _ranks),
    "Tokenize": Method("/tei/tokenize", lambda answer, request: {"tokens": answer[0]}),
    "Decode": Method("/tei/decode", lambda answer, request: {"text": answer[0]}),
}
"""By name. A name with `Stream` behind it is the same method for each message of a stream."""


class Methods:
    """The handlers of all methods."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._keys = Keys(settings.keys)
        self._intake = Intake(settings)

    def handlers(self, service: Any) -> dict[str, grpc.RpcMethodHandler]:
        """The handlers of a service's methods, by their names. service: its descriptor"""
        return {method.name: self._handler(method) for method in service.methods}

    def _handler(self, method: Any) -> grpc.RpcMethodHandler:
        target = METHODS[method.name.removesuffix(STREAM)]
        kinds = Kinds(GetMessageClass(method.input_type), GetMessageClass(method.output_type))
        answered = self._ranked if method.client_streaming else self._single

        async def answer_all(messages: Any, context: Any) -> Any:
            reply, metadata = await _or_abort(answered(target, kinds, messages, context), context)
            context.set_trailing_metadata(metadata)
            return reply

        async def answer_each(messages: Any, context: Any) -> AsyncIterator[Any]:
            async def answer(raw: bytes) -> Any:
                return (await self._patiently(target, kinds, raw, context))[0]

            await _or_abort(self._admit(target, context), context)
            async with aclosing(_in_order(self._each(messages), answer)) as answers:
                while (reply := await _or_abort(anext(answers, None), context)) is not None:
                    yield reply

        # On the wire one message is a stream of one. A handler of streams chooses when, and how long, it is received.
        codec = None, kinds.reply.SerializeToString
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(answer_each, *codec)
        return grpc.stream_unary_rpc_method_handler(answer_all, *codec)

    async def _admit(self, method: Method, context: Any) -> None:
        """Raises Refused for a caller without a key. Not a byte of its messages is received."""
        if not self._keys.known(str(dict(context.invocation_metadata()).get("authorization", ""))):
            await self._app.call(method.path, dict, 0, context)  # which says so, and counts it

    async def _each(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        while (raw := await self._intake.received(messages)) is not None:
            yield raw

    async def _single(self, method: Method, kinds: Kinds, messages: AsyncIterator[bytes], context: Any) -> Replied:
        """The answer to a call's one message, and its metadata. Raises Refused."""
        await self._admit(method, context)
        raw = await self._intake.received(messages, self._settings.body_timeout)
        if raw is None:
            raise Refused(400, "The call has no message.")
        return await self._answer(method, kinds, raw, context)

    async def _answer(self, method: Method, kinds: Kinds, raw: bytes, context: Any) -> Replied:
        """A message's answer, and its metadata. Raises Refused."""
        began = perf_counter()
        with self._intake.held(len(raw)):
            message = await aside(partial(parsed, kinds.request, raw, self._settings.limits), len(raw))
            body = partial(json_of, message) if method.reads else None
            answer = await self._app.call(method.path, body, len(raw), context)

            def replied() -> Any:
                return _replied(kinds.reply, method.reply(answer.content, message), answer.results, [message], began)

            return await aside(replied, answer.size), answer.metadata

    async def _patiently(self, method: Method, kinds: Kinds, raw: bytes, context: Any) -> Replied:
        """The same; it waits while the server is busy, as TEI has it in a stream, which its client's deadline ends."""
        while True:
            try:
                return await self._answer(method, kinds, raw, context)
            except Refused as refused:
                if not refused.busy:
                    raise
                await asyncio.sleep(refused.retry_after)

    async def _ranked(self, method: Method, kinds: Kinds, messages: AsyncIterator[bytes], context: Any) -> Replied:
        """The ranks of all texts of a stream. Raises Refused."""
        await self._admit(method, context)
        with ExitStack() as counted:
            return await self._all_ranked(method, kinds, messages, context, counted)

    async def _all_ranked(
        self, method: Method, kinds: Kinds, messages: AsyncIterator[bytes], context: Any, counted: ExitStack
    ) -> Replied:
        began = perf_counter()
        try:
            requests = await asyncio.wait_for(self._all(kinds, messages, counted), self._settings.body_timeout)
        except asyncio.TimeoutError:
            seconds = self._settings.body_timeout
            raise Refused(408, f"The stream did not end within {seconds:g} seconds (--body-timeout).") from None
        raw_scores, return_text = (requests[0].raw_scores, requests[0].return_text) if requests else (False, False)
        # Texts of one query are one call, as they are where a client sends them so. No texts are a call, to be refused.
        places: dict[tuple[str, bool, int], list[int]] = {} if requests else {("", False, 0): []}
        for place, request in enumerate(requests):
            places.setdefault((request.query, request.truncate, request.truncation_direction), []).append(place)

        async def answer(key: tuple[str, bool, int]) -> Answer:
            query, truncate, direction = key
            texts = [requests[place].text for place in places[key]]
            fields = {"query": query, "texts": texts, "truncate": truncate, "raw_scores": raw_scores}
            size = sum(map(len, texts))
            return await self._app.call(method.path, lambda: {**fields, **_side(direction)}, size, context)

        async with aclosing(_in_order(_one_by_one(places), answer)) as stream:
            answers = [reply async for reply in stream]

        def replied() -> Any:
            ranks = [
                {**rank, "index": indices[rank["index"]]}
                for indices, reply in zip(places.values(), answers, strict=True)
                for rank in reply.content
            ]
            if len(answers) > 1:
                ranks.sort(key=lambda rank: -rank["score"])
            if return_text:
                ranks = _with_texts(ranks, [request.text for request in requests])
            results = [result for reply in answers for result in reply.results]
            return _replied(kinds.reply, {"ranks": ranks}, results, requests, began)

        return await aside(replied, sum(reply.size for reply in answers)), answers[0].metadata

    async def _all(self, kinds: Kinds, messages: AsyncIterator[bytes], counted: ExitStack) -> list[Any]:
        """The messages of a stream, together no larger than one body may be, and `counted`. Raises Refused."""
        requests: list[Any] = []
        size, limits = 0, self._settings.limits
        while (raw := await self._intake.received(messages)) is not None:
            counted.enter_context(self._intake.held(len(raw)))
            size += len(raw)
            if size > self._settings.max_body:
                raise Refused(413, f"The stream is larger than {self._settings.max_body} bytes (--max-body-mb).")
            if len(requests) == limits.documents:
                raise Refused(413, f"texts: The stream holds {limits.exceeded('documents')}.")
            requests.append(parsed(kinds.request, raw, limits))
        return requests


def json_of(message: Any) -> dict[str, Any]:
    """A request's message as the body of its HTTP call: the names are the same."""
    body: dict[str, Any] = MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        use_integers_for_enums=True,
    )
    body.pop("return_text", None)
    direction = body.pop("truncation_direction", 0)
    return {**body, **_side(direction)}


def _side(direction: int) -> dict[str, str]:
    """The field of the body for a side. The right side is left out: it looks like a field that is not set."""
    return {"truncation_direction": "Left"} if direction else {}


def _with_texts(ranks: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{**rank, "text": texts[rank["index"]]} for rank in ranks]


def _characters(message: Any) -> int:
    """The characters of all texts of a request; the query counts as often as it is read."""
    names = message.DESCRIPTOR.fields_by_name
    if "query" in names:
        texts = message.texts if "texts" in names else [message.text]
        return len(message.query) * len(texts) + sum(map(len, texts))
    return len(message.inputs) if isinstance(message.inputs, str) else sum(map(len, message.inputs))


def _replied(
    reply: Any, fields: Mapping[str, Any], results: Sequence[RerankResult], requests: Sequence[Any], began: float
) -> Any:
    """The answer's message. Fields of the JSON that the message lacks are left out."""
    names = reply.DESCRIPTOR.fields_by_name
    values = {name: fields[name] for name in names if name in fields}
    if "metadata" in names:
        values["metadata"] = spent(sum(map(_characters, requests)), began, results)
    return reply(**values)


async def _or_abort(work: Awaitable[Result], context: Any) -> Result:
    """Await `work`; where that is refused, the call of gRPC ends with the error's code."""
    try:
        return await work
    except Refused as refused:
        await context.abort(refused.code, str(refused), refused.metadata)
        raise  # `abort` has raised


async def _one_by_one(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


async def _in_order(items: AsyncIterator[T], answer: Callable[[T], Awaitable[Result]]) -> AsyncGenerator[Result, None]:
    """The answers to items, in order. At most AT_A_TIME items are read and not answered yet."""
    places = asyncio.Semaphore(AT_A_TIME)
    running: asyncio.Queue[asyncio.Future[Result] | None] = asyncio.Queue()
    unanswered: set[asyncio.Future[Any]] = set()

    async def read() -> None:
        try:
            async for item in items:
                await places.acquire()
                task = asyncio.ensure_future(answer(item))
                unanswered.add(task)
                running.put_nowait(task)
        finally:
            running.put_nowait(None)

    reading = asyncio.ensure_future(read())
    try:
        while (task := await running.get()) is not None:
            result = await task
            unanswered.discard(task)
            places.release()
            yield result
        await reading
    finally:
        reading.cancel()
        for task in unanswered:
            task.cancel()
        await asyncio.gather(reading, *unanswered, return_exceptions=True)
