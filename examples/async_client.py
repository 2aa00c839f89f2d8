"""Send many queries at once, at most CONCURRENCY at a time, and ask again where the server is busy.

usage: rerankd serve                                  (in another terminal)
       python examples/async_client.py [URL]

URL is the server's, by default http://127.0.0.1:8000. Needs `pip install httpx`.
"""

from __future__ import annotations

import argparse
import asyncio

import httpx

CONCURRENCY = 8
ATTEMPTS = 5
DOCUMENTS = [
    "The giant panda is a bear species endemic to China.",
    "Bread is made from flour, water and yeast.",
    "The Eiffel Tower stands in Paris.",
    "A violin has four strings.",
]
QUERIES = ["what is panda?", "how is bread made?", "where is the Eiffel Tower?", "how many strings has a violin?"] * 4


async def rerank(client: httpx.AsyncClient, free: asyncio.Semaphore, query: str) -> tuple[str, float]:
    """The best document and its score. A server that is busy (429) or not ready (503) says when to ask again."""
    body = {"query": query, "documents": DOCUMENTS, "top_n": 1}
    async with free:
        for attempt in range(1, ATTEMPTS + 1):
            answer = await client.post("/v1/rerank", json=body)
            if answer.status_code not in (429, 503) or attempt == ATTEMPTS:
                break
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
    answer.raise_for_status()
    best = answer.json()["results"][0]
    return DOCUMENTS[best["index"]], best["relevance_score"]


async def main(url: str) -> None:
    free = asyncio.Semaphore(CONCURRENCY)
    # One client for all requests: its connections stay open.
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        found = await asyncio.gather(*(rerank(client, free, query) for query in QUERIES))
    for query, (document, score) in zip(QUERIES, found, strict=True):
        print(f"{score:.4f}  {query} -> {document}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help="of the server")
    given = parser.parse_args()
    asyncio.run(main(given.url))
