"""The rerank APIs that the load generator speaks: the form of requests, and the figures in answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rerankd.bench.samples import Sample


@dataclass(frozen=True, slots=True)
class Api:
    """One server's rerank API.

    endpoint: its usual path
    body: the request for a model's name and a sample
    results: the list of scored documents in an answer
    tokens: the input tokens that an answer reports (body, headers), or None
    """

    endpoint: str
    body: Callable[[str, Sample], dict[str, Any]]
    results: Callable[[Any], Any]
    tokens: Callable[[Any, Mapping[str, str]], Any]


class BadAnswer(Exception):
    """An answer with status 200 that does not hold one score for each document."""


def rerank_body(**constants: Any) -> Callable[[str, Sample], dict[str, Any]]:
    def body(model: str, sample: Sample) -> dict[str, Any]:
        fields = {"model": model, "query": sample.query, "documents": list(sample.documents)}
        return fields | constants | dict(sample.fields)

    return body


def tei_body(model: str, sample: Sample) -> dict[str, Any]:
    return {"query": sample.query, "texts": list(sample.documents), "truncate": True} | dict(sample.fields)


def usage_tokens(answer: Any, headers: Mapping[str, str]) -> Any:
    usage = answer.get("usage") or {}
    return usage.get("prompt_tokens", usage.get("total_tokens"))


def sglang_tokens(answer: Any, headers: Mapping[str, str]) -> Any:
    counts = [(item.get("meta_info") or {}).get("prompt_tokens") for item in answer]
    return None if None in counts else sum(counts)


def tei_tokens(answer: Any, headers: Mapping[str, str]) -> Any:
    count = headers.get("x-compute-tokens")
    return int(count) if count else None


def cohere_tokens(answer: Any, headers: Mapping[str, str]) -> Any:
    meta = answer.get("meta") or {}
    counts = (meta.get("tokens") or {}).get("input_tokens"), (meta.get("billed_units") or {}).get("input_tokens")
    return next((count for count in counts if count is not None), None)


def in_results(answer: Any) -> Any:
    return answer["results"]


def itself(answer: Any) -> Any:
    return answer


APIS: Mapping[str, Api] = {
    # vLLM's own benchmark sends truncate_prompt_tokens, so that no document is too long for the model.
    "vllm-rerank": Api("/v1/rerank", rerank_body(truncate_prompt_tokens=-1), in_results, usage_tokens),
    "sglang": Api("/v1/rerank", rerank_body(return_documents=False), itself, sglang_tokens),
    "tei": Api("/rerank", tei_body, itself, tei_tokens),
    "infinity": Api("/rerank", rerank_body(), in_results, usage_tokens),
    "cohere": Api("/v2/rerank", rerank_body(), in_results, cohere_tokens),
}


def read_answer(api: Api, sample: Sample, answer: Any, headers: Mapping[str, str]) -> int | None:
    """The input tokens that the server counted, or None where it says nothing of them.

    Raises BadAnswer unless there is one result a document (or `top_n`, where the sample asks for it).
    """
    expected = len(sample.documents)
    top = sample.fields.get("top_n", sample.fields.get("top_k"))
    if isinstance(top, int) and 0 < top < expected:
        expected = top
    try:
        results = api.results(answer)
        count = len(results)
        tokens = api.tokens(answer, headers)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadAnswer("the answer has another shape than this --backend's") from error
    if count != expected:
        raise BadAnswer(f"the answer has {count} results, not {expected}")
    return int(tokens) if tokens is not None else None
