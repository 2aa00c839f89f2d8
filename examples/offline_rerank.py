"""Rerank in this process, without a server.

usage: python examples/offline_rerank.py [MODEL]

MODEL is a folder or an id on the hub, by default Qwen/Qwen3-Reranker-0.6B.
"""

from __future__ import annotations

import argparse

from rerankd import Reranker

QUERY = "what is panda?"
DOCUMENTS = [
    "hi",
    "The giant panda is a bear species endemic to China.",
    "Bread is made from flour, water and yeast.",
    "Red pandas sleep in trees and eat bamboo.",
]


def main(model: str) -> None:
    with Reranker(model) as reranker:
        # The documents, best first.
        for document in reranker.rerank(QUERY, DOCUMENTS, top_n=3):
            print(f"{document.score:.4f}  {DOCUMENTS[document.index]}")

        # Several queries over the same documents: one result for each query.
        queries = [QUERY, "how is bread made?"]
        for query, result in zip(queries, reranker.rerank(queries, DOCUMENTS), strict=True):
            print(f"{query} -> {DOCUMENTS[result.documents[0].index]}")

        # Scores of pairs, in their order.
        print(" ".join(f"{score:.4f}" for score in reranker.score([(QUERY, document) for document in DOCUMENTS])))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="Qwen/Qwen3-Reranker-0.6B", help="a folder, or an id on the hub")
    given = parser.parse_args()
    main(given.model)
