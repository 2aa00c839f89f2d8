"""Call one server in two APIs: vLLM's with httpx, Cohere's with requests.

usage: rerankd serve                                  (in another terminal)
       python examples/http_two_apis.py [URL]

URL is the server's, by default http://127.0.0.1:8000. A server with --api-key reads the key from RERANKD_API_KEY here.
Needs `pip install httpx requests`.
"""

from __future__ import annotations

import argparse
import os

import httpx
import requests

QUERY = "what is panda?"
DOCUMENTS = [
    "hi",
    "The giant panda is a bear species endemic to China.",
    "Bread is made from flour, water and yeast.",
]


def main(url: str) -> None:
    key = os.environ.get("RERANKD_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    # vLLM's API: the answer repeats the documents.
    answer = httpx.post(
        f"{url}/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, "top_n": 2}, headers=headers, timeout=60
    )
    answer.raise_for_status()
    for result in answer.json()["results"]:
        print(f"vLLM    {result['relevance_score']:.4f}  {result['document']['text']}")

    # Cohere's API, below its own prefix: the answer holds places in the list of documents.
    response = requests.post(
        f"{url}/cohere/v2/rerank",
        json={"model": "rerank-v3.5", "query": QUERY, "documents": DOCUMENTS, "top_n": 2},
        headers=headers,
        timeout=60,
    )
    response.raise_for_status()
    for result in response.json()["results"]:
        print(f"Cohere  {result['relevance_score']:.4f}  {DOCUMENTS[result['index']]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help="of the server")
    given = parser.parse_args()
    main(given.url)
