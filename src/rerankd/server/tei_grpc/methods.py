"""The methods of TEI's services, by what they are over HTTP, and messages as JSON and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

from rerankd.server.settings import Settings
from rerankd.server.tei_grpc.calls import Answer, App, Refused, spent

PROTO = "rerankd/server/tei_grpc/tei.proto"
STREAM = "Stream"
AT_A_TIME = 64
"""Messages of one stream that are answered at a time."""
T = TypeVar("T")
Result = TypeVar("Result")


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
"""By name; `Stream` behind a name is the same for each message of a stream."""


class Methods:
    """The handlers of all methods."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    def handlers(self, service: Any) -> dict[str, grpc.RpcMethodHandler]:
        """The handlers of a service's methods, by their names. service: its descriptor"""
        return {method.name: self._handler(method) for method in service.methods}

    def _handler(self, method: Any) -> grpc.RpcMethodHandler:
        own, reply = METHODS[method.name.removesuffix(STREAM)], GetMessageClass(method.output_type)
        codec = GetMessageClass(method.input_type).FromString, reply.SerializeToString

        async def one(message: Any, context: Any) -> Any:
            answered = await _or_abort(self._answer(own, reply, message, context), context)
            context.set_trailing_metadata(answered[1])
            return answered[0]

        async def each(messages: Any, context: Any) -> AsyncIterator[Any]:
            async def answer(message: Any) -> Any:
                return (await self._patiently(own, reply, message, context))[0]

            async with aclosing(_in_order(messages, answer)) as answers:
                while (answered := await _or_abort(anext(answers, None), context)) is not None:
                    yield answered

        async def together(messages: Any, context: Any) -> Any:
            answered, metadata = await _or_abort(self._ranked(own, reply, messages, context), context)
            context.set_trailing_metadata(metadata)
            return answered

        if not method.client_streaming:
            return grpc.unary_unary_rpc_method_handler(one, *codec)
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(each, *codec)
        return grpc.stream_unary_rpc_method_handler(together, *codec)

    async def _answer(self, method: Method, reply: Any, message: Any, context: Any) -> tuple[Any, Any]:
        """A message's answer, and its metadata. Raises Refused."""
        began = perf_counter()
        body = partial(json_of, message) if method.reads else None
        answer = await self._app.call(method.path, body, message.ByteSize(), context)
        return _replied(reply, method.reply(answer.content, message), answer, [message], began), answer.metadata

    async def _patiently(self, method: Method, reply: Any, message: Any, context: Any) -> tuple[Any, Any]:
        """The same; it waits while the server is busy, as TEI has it in a stream, which its client's deadline ends."""
        while True:
            try:
                return await self._answer(method, reply, message, context)
            except Refused as refused:
                if not refused.busy:
                    raise
                await asyncio.sleep(refused.retry_after)

    async def _ranked(self, method: Method, reply: Any, messages: Any, context: Any) -> tuple[Any, Any]:
        """The ranks of all texts of a stream. Raises Refused."""
        began = perf_counter()
        try:
            sent = await asyncio.wait_for(self._all(messages), self._settings.body_timeout)
        except asyncio.TimeoutError:
            seconds = self._settings.body_timeout
            raise Refused(408, f"The stream did not end within {seconds:g} seconds (--body-timeout).") from None
        raw_scores, return_text = (sent[0].raw_scores, sent[0].return_text) if sent else (False, False)
        # Texts of one query are one call, as they are where a client sends them so. No texts are a call, to be refused.
        places: dict[tuple[str, bool, int], list[int]] = {} if sent else {("", False, 0): []}
        for place, one in enumerate(sent):
            places.setdefault((one.query, one.truncate, one.truncation_direction), []).append(place)

        async def answer(key: tuple[str, bool, int]) -> Answer:
            query, truncate, direction = key
            texts = [sent[place].text for place in places[key]]
            fields = {"query": query, "texts": texts, "truncate": truncate, "raw_scores": raw_scores}
            size = sum(map(len, texts))
            return await self._app.call(method.path, lambda: {**fields, **_side(direction)}, size, context)

        async with aclosing(_in_order(_one_by_one(places), answer)) as found:
            answers = [one async for one in found]
        ranks = [
            {**rank, "index": own[rank["index"]]}
            for own, one in zip(places.values(), answers, strict=True)
            for rank in one.content
        ]
        if len(answers) > 1:
            ranks.sort(key=lambda rank: -rank["score"])
        if return_text:
            ranks = _with_texts(ranks, [one.text for one in sent])
        results = [result for one in answers for result in one.results]
        whole = Answer(ranks, answers[0].metadata, results)
        return _replied(reply, {"ranks": ranks}, whole, sent, began), whole.metadata

    async def _all(self, messages: Any) -> list[Any]:
        """The messages of a stream, together no larger than one body may be. Raises Refused."""
        found: list[Any] = []
        size, limits = 0, self._settings.limits
        async for message in messages:
            size += message.ByteSize()
            found.append(message)
            if size > self._settings.max_body:
                raise Refused(413, f"The stream is larger than {self._settings.max_body} bytes (--max-body-mb).")
            if len(found) > limits.documents:
                raise Refused(413, f"texts: The stream holds {limits.exceeded('documents')}.")
        return found


def json_of(message: Any) -> dict[str, Any]:
    """A request's message as the body of its HTTP call: the names are the same."""
    found: dict[str, Any] = MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        use_integers_for_enums=True,
    )
    found.pop("return_text", None)
    direction = found.pop("truncation_direction", 0)
    return {**found, **_side(direction)}


def _side(direction: int) -> dict[str, str]:
    """The field of the body. Nobody can tell the right side from a field that is not set: neither is said."""
    return {"truncation_direction": "Left"} if direction else {}


def _with_texts(ranks: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{**rank, "text": texts[rank["index"]]} for rank in ranks]


def _characters(message: Any) -> int:
    """Of all texts of a request, the query as often as it is read."""
    names = message.DESCRIPTOR.fields_by_name
    if "query" in names:
        texts = message.texts if "texts" in names else [message.text]
        return len(message.query) * len(texts) + sum(map(len, texts))
    return len(message.inputs) if isinstance(message.inputs, str) else sum(map(len, message.inputs))


def _replied(reply: Any, fields: Mapping[str, Any], answer: Answer, requests: Sequence[Any], began: float) -> Any:
    """The answer's message, of which the JSON may have more fields."""
    names = reply.DESCRIPTOR.fields_by_name
    known = {name: fields[name] for name in names if name in fields}
    if "metadata" in names:
        known["metadata"] = spent(sum(map(_characters, requests)), began, answer.results)
    return reply(**known)


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
    """The answers to items in their order; some are answered at a time, and no more are read."""
    places = asyncio.Semaphore(AT_A_TIME)
    running: asyncio.Queue[asyncio.Future[Result] | None] = asyncio.Queue()
    left: set[asyncio.Future[Any]] = set()

    async def read() -> None:
        try:
            async for item in items:
                await places.acquire()
                task = asyncio.ensure_future(answer(item))
                left.add(task)
                running.put_nowait(task)
        finally:
            running.put_nowait(None)

    reading = asyncio.ensure_future(read())
    try:
        while (task := await running.get()) is not None:
            result = await task
            left.discard(task)
            places.release()
            yield result
        await reading
    finally:
        reading.cancel()
        for task in left:
            task.cancel()
        await asyncio.gather(reading, *left, return_exceptions=True)
