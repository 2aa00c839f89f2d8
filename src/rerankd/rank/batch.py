"""`rerankd run-batch`: requests of a file in vLLM's and OpenAI's batch format, answered as the server answers them.

Format: vLLM's `vllm/entrypoints/openai/run_batch.py`, and OpenAI's Batch API.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sys
from collections.abc import Iterator
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

AT_ONCE = 16
"""Requests that are answered at a time."""
NO_LIMITS = RequestLimits(**{field.name: sys.maxsize for field in fields(RequestLimits)})
"""Whoever owns the file owns the machine."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A line of the input."""

    number: int
    id: str
    url: str
    body: Any
    digest: str


def run_batch(
    reranker: Serves, names: tuple[str, ...], input: str, output: str, bad: BadLines, *, restart: bool, progress: bool
) -> tuple[int, int]:
    """Answer every line of `input` as `rerankd serve` would, without a socket; how many, how many failed.

    Answers are in the order of the input. A run that was stopped goes on. Raises RerankdError.
    """
    settings = Settings(names=names, docs=False, max_body=sys.maxsize, max_bodies=sys.maxsize, limits=NO_LIMITS)
    service = Service(reranker, settings)
    with Journal(output, {"batch": names[0]}, restart) as journal:
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
    lines = _asked(source, bad)
    with tqdm(unit="request", disable=not progress) as bar:
        bad.tell = lambda text: bar.write(text, file=sys.stderr)
        stopped = False

        async def work() -> None:
            for asked in lines:
                if journal.digest(asked.number) != asked.digest:
                    answer = await _answer(service, asked)
                    if stopped:  # the service answers a cancelled call all the same, that it is shutting down
                        return
                    journal.add(asked.number, asked.digest, answer)
                bar.update()

        workers = [asyncio.ensure_future(work()) for _ in range(AT_ONCE)]
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            for worker in done:
                worker.result()
        finally:
            stopped = True
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _answer(service: Service, asked: Asked) -> dict[str, Any]:
    # A path is what comes before a query string, and may be quoted.
    reply = await service.call("POST", unquote(asked.url.partition("?")[0]), json.dumps(asked.body).encode())
    body = json.loads(reply.body) if reply.body else ""
    return {
        "id": f"rerankd-{secrets.token_hex(16)}",
        "custom_id": asked.id,
        # OpenAI puts what went wrong in the body, vLLM beside it.
        "response": {"status_code": reply.status, "request_id": reply.headers["X-Request-Id"], "body": body},
        "error": None if reply.status == 200 else body,
    }


def _asked(source: Source, bad: BadLines) -> Iterator[Asked]:
    seen: dict[str, int] = {}
    for number, raw in source.lines():
        if not raw.strip():
            continue
        try:
            asked = _line(source, number, raw)
            if asked.id in seen:
                raise BadLine(source.name, number, f"`custom_id` {asked.id!r} is on line {seen[asked.id]} too.")
            seen[asked.id] = number
        except BadLine as problem:
            bad.add(problem)
        else:
            yield asked


def _line(source: Source, number: int, raw: bytes) -> Asked:
    sent = json_object(source, number, decoded(source, number, raw))
    for name in ("custom_id", "url"):
        if not isinstance(sent.get(name), str):
            raise BadLine(source.name, number, f"has no string `{name}`.")
    method, url = sent.get("method", "POST"), sent["url"]
    if method != "POST":
        raise BadLine(source.name, number, f"`method` is {method!r}, not POST.")
    if not url.startswith("/"):
        raise BadLine(source.name, number, f"`url` is {url!r}, not a path such as /v1/rerank.")
    if not isinstance(sent.get("body"), dict):
        raise BadLine(source.name, number, "has no object `body`.")
    return Asked(number, sent["custom_id"], url, sent["body"], hashlib.sha256(raw).hexdigest()[:16])
