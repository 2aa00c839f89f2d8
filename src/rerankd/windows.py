"""The scores of a listwise model, from the vectors of its windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from rerankd.core import Windows

LEAST = 1e-8
"""The least product of two lengths by which a dot product is divided, as in torch: a vector of zeros scores 0."""


def cosines(windows: Windows, values: Sequence[float]) -> list[float]:
    """The cosine of each document's vector and the query's, in the order of the documents.

    values: the vectors of the windows; each window is padded with zeros to the same number of values

    Each window has a vector of the query. The query's vector is their weighted mean; the weight of a window is
    (1 + c) / 2, where c is the largest cosine in the window. Source: `rerank` in `modeling.py` of
    jinaai/jina-reranker-v3.
    """
    if not windows.documents:
        return []
    vectors = numpy.asarray(values, dtype=numpy.float64).reshape(len(windows.documents), -1, windows.vector)
    documents = [window[:count] for window, count in zip(vectors, windows.documents, strict=True)]
    queries = numpy.stack([window[count] for window, count in zip(vectors, windows.documents, strict=True)])
    weights = [
        (1 + _cosines(query, window_documents).max()) / 2
        for query, window_documents in zip(queries, documents, strict=True)
    ]
    # Where every document is the opposite of its query, all weights are 0.
    query = numpy.average(queries, axis=0, weights=weights if sum(weights) > 0 else None)
    result: list[float] = _cosines(query, numpy.concatenate(documents)).tolist()
    return result


def _cosines(query: NDArray[numpy.float64], documents: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    lengths = numpy.linalg.norm(documents, axis=1) * numpy.linalg.norm(query)
    cosine: NDArray[numpy.float64] = documents @ query / numpy.maximum(lengths, LEAST)
    return cosine
