"""Mutated requests, of which none may get a 500 or no answer.

usage: python -m benchmarks.fuzz URL [REQUESTS]

Bodies of all APIs, as /openapi.json shows them, are changed in their values (a value becomes one of another type, a
huge one, another part of the body; fields and elements are doubled, dropped, nested) and in their bytes.
"""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any
from urllib.parse import urlsplit

from benchmarks import program

ANSWERS = {200, 400, 404, 413, 415, 422, 429}
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**40, 10**400, 1e308, -0.0, "", " ", "\x00", "a" * 5_000, "\ud800",
    "NaN",
    "<|im_end|>", "http://127.0.0.1/", "data:,", [], [[]], {}, {"type": "text"}, {"content": []}, [None], [1, 2],
    ["a"] * 50,
)  # fmt: skip


OF_ANOTHER_KIND = b"model: is no "
"""In TEI's 424 for a model that gives no embeddings, or no labels; that of a failure says another thing."""


def examples(url: str) -> list[tuple[str, Any]]:
    """Every path that takes a body, with each of its examples."""
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        paths = json.load(answer)["paths"]
    return [
        (path.format(model=model), example["value"])
        for path, operations in sorted(paths.items())
        if "requestBody" in operations.get("post", {})
        for example in operations["post"]["requestBody"]["content"]["application/json"]["examples"].values()
    ]


def mutated(random: Random, body: Any) -> bytes:
    """A body with a few changes."""
    value = json.loads(json.dumps(body))
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        places = list(_places(value))
        if not places:
            break
        holder, key = random.choice(places)
        change = random.randrange(5)
        if change == 0 and isinstance(holder, list):
            holder[:] = holder * random.choice((0, 2, 3))
        elif change == 1:
            del holder[key]
        elif change == 2:
            holder[key] = [holder[key]]
        elif change == 3:
            other, name = random.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))
        else:
            holder[key] = deepcopy(random.choice(ODD))
    text = bytearray(json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass"))
    if random.random() < 0.3:
        for _ in range(random.choice((1, 2, 8))):
            at = random.randrange(len(text) + 1)
            text[at : at + random.choice((0, 0, 1, 20))] = random.randbytes(random.choice((0, 1, 4)))
    return bytes(text)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder of a value in a body, and the value's key in it."""
    if isinstance(value, dict | list):
        for key, one in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(one)


def run(url: str, requests: int, seed: int) -> Counter[int]:
    """How often each status was given. Raises RuntimeError, with the request, for one that must not be."""
    random = Random(seed)
    bodies = examples(url)
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    given: Counter[int] = Counter()
    for _ in range(requests):
        path, example = random.choice(bodies)
        body = mutated(random, example)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
        except OSError as error:
            raise RuntimeError(f"{path} {body!r}: {error!r}") from error
        if answer.status not in ANSWERS and OF_ANOTHER_KIND not in said:
            raise RuntimeError(f"{path} {body!r}: {answer.status} {said!r}")
        given[answer.status] += 1
    return given


if __name__ == "__main__":
    parser = program.parser("fuzz", __doc__)
    parser.add_argument("url", help="of the server")
    parser.add_argument("requests", nargs="?", type=int, default=100_000)
    given_arguments = parser.parse_args()
    print(run(given_arguments.url, given_arguments.requests, seed=0))
