"""`rerankd run-batch`: answer the requests of a file as the server would answer them.

The file has the batch format of vLLM (`vllm/entrypoints/openai/run_batch.py`) and of OpenAI's Batch API.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import unquote

from tqdm import tqdm

from rerankd.limits import RequestLimits
from rerankd.rank.files import BadLine, BadLines, Source, whole_file
from rerankd.rank.journal import Journal
from rerankd.rank.rows import decoded, json_object
from rerankd.server.service import Serves, Service
from rerankd.server.settings import Settings

CONCURRENT_REQUESTS = 16
"""Number of requests that are answered concurrently."""
NO_LIMITS = RequestLimits(**{field.name: sys.maxsize for field in fields(RequestLimits)})
"""No limits. Limits protect a server from its callers; here the caller owns the machine."""


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A request of the input file.

    number: its line in the file, from 1
    digest: identifies the bytes of that line, so that a resumed run notices a changed request
    """

    number: int
    id: str
    url: str
    body: Any
    digest: str


def run_batch(
    reranker: Serves,
    names: tuple[str, ...],
    input: str,
    output: str,
    about: Mapping[str, Any],
    bad: BadLines,
    *,
    restart: bool,
    progress: bool,
) -> tuple[int, int]:
    """Answer every request of `input` as `rerankd serve` would, without a socket, in the order of the input.

    about: the model and its options, as JSON-ready data; a journal with other values is refused

    A stopped run resumes from its journal. Returns the number of answers, and how many of them are errors. Raises
    RerankdError.
    """
    settings = Settings(names=names, docs=False, max_body=sys.maxsize, max_bodies=sys.maxsize, limits=NO_LIMITS)
    service = Service(reranker, settings)
    with Journal(output, {**about, "served_model_name": list(names)}, restart) as journal:
        asyncio.run(_run(service, input, journal, bad, progress))
        answered = failed = 0
        with whole_file(output) as stream:
            for result, _ in journal.results():
                answered += 1
                failed += result["error"] is not None
                stream.write(json.dumps(result, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        journal.finish()
    return answered, failed


async def _run(service: Service, input: str, journal: Journal, bad: BadLines, progress: bool) -> None:
    source = Source(input)
    requests = _requests(source, bad)
    with tqdm(unit="request", disable=not progress) as bar:
        bad.tell = lambda text: bar.write(text, file=sys.stderr)
        stopped = False

        async def work() -> None:
            for request in requests:
                if journal.digest(request.number) != request.digest:
                    answer = await _answer(service, request)
                    if stopped:  # a cancelled call has an answer too: that the service shuts down
                        return
                    journal.add(request.number, request.digest, answer)
                bar.update()

        workers = [asyncio.ensure_future(work()) for _ in range(CONCURRENT_REQUESTS)]
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            for worker in done:
                worker.result()
        finally:
            stopped = True
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _answer(service: Service, request: BatchRequest) -> dict[str, Any]:
    # A URL's path ends where its query string begins, and may be percent-encoded.
    reply = await service.call("POST", unquote(request.url.partition("?")[0]), json.dumps(request.body).encode())
    body = json.loads(reply.body) if reply.body else ""
    return {
        "id": f"rerankd-{secrets.token_hex(16)}",
        "custom_id": request.id,
        # OpenAI puts an error into the response's body, vLLM into `error`. Clients of both must find the error.
        "response": {"status_code": reply.status, "request_id": reply.headers["X-Request-Id"], "body": body},
        "error": None if reply.status == 200 else body,
    }


def _requests(source: Source, bad: BadLines) -> Iterator[BatchRequest]:
    seen: dict[str, int] = {}
    for number, raw in source.lines():
        if not raw.strip():
            continue
        try:
            request = _parse(source, number, raw)
            if request.id in seen:
                raise BadLine(source.name, number, f"the id {request.id!r} is already on line {seen[request.id]}.")
            seen[request.id] = number
        except BadLine as problem:
            bad.add(problem)
        else:
            yield request


def _parse(source: Source, number: int, raw: bytes) -> BatchRequest:
    request = json_object(source, number, decoded(source, number, raw))
    for name in ("custom_id", "url"):
        if not isinstance(request.get(name), str):
            raise BadLine(source.name, number, f"`{name}` is missing or not a string.")
    method, url = request.get("method", "POST"), request["url"]
    if method != "POST":
        raise BadLine(source.name, number, f"`method` is {method!r}; only POST is supported.")
    if not url.startswith("/"):
        raise BadLine(source.name, number, f"`url` is {url!r}; give a path, such as /v1/rerank.")
    if not isinstance(request.get("body"), dict):
        raise BadLine(source.name, number, "`body` is missing or not an object.")
    return BatchRequest(number, request["custom_id"], url, request["body"], hashlib.sha256(raw).hexdigest()[:16])
