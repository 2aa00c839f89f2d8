"""How the cost of a request grows: with its documents, their length, and the query that they share.

usage: python -m benchmarks.growth MODEL [int8]

One of the three grows at a time from 16 documents of 100 words and a query of 10; milliseconds are medians of ROUNDS
requests whose texts no cache has seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from benchmarks import program
from rerankd.bench.workloads import Corpus
from rerankd.reranker import Reranker

ROUNDS = 5
DOCUMENTS, WORDS, QUERY_WORDS = 16, 100, 10


def shapes() -> Iterator[tuple[str, int, int, int]]:
    """What grows; documents, words of each, words of the query."""
    yield from (("documents", count, WORDS, QUERY_WORDS) for count in (1, 4, 16, 64, 256))
    yield from (("words of a document", DOCUMENTS, words, QUERY_WORDS) for words in (25, 50, 100, 200, 400))
    yield from (("words of the query", DOCUMENTS, WORDS, words) for words in (10, 100, 400, 1600))


def measure(reranker: Reranker, corpus: Corpus, documents: int, words: int, query_words: int) -> tuple[float, int]:
    """Seconds, the median, and tokens that the model was given."""
    seconds, tokens = [], 0
    for _ in range(ROUNDS):
        query, texts = corpus.text(query_words), [corpus.text(words) for _ in range(documents)]
        start = time.perf_counter()
        tokens = reranker.rerank(query, texts, show_progress=False).computed_tokens
        seconds.append(time.perf_counter() - start)
    return median(seconds), tokens


def main() -> None:
    parser = program.parser("growth", __doc__)
    parser.add_argument("model")
    parser.add_argument("quantization", nargs="?", choices=("int8",))
    given = parser.parse_args()
    corpus = Corpus(1)
    with Reranker(given.model, quantization=given.quantization) as reranker:
        measure(reranker, corpus, DOCUMENTS, WORDS, QUERY_WORDS)
        print("| grows | documents | words | words of the query | tokens computed | ms | documents/s |")
        print("|---|---|---|---|---|---|---|")
        for name, documents, words, query_words in shapes():
            took, tokens = measure(reranker, corpus, documents, words, query_words)
            row = (name, documents, words, query_words, tokens, f"{1e3 * took:.0f}", f"{documents / took:.1f}")
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    program.run(main)
