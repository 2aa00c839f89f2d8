"""`/v1/embeddings` and TEI's `/embed`: the vectors of sentence-transformers' `encode`, over a real socket."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import requests
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from rerankd import InvalidRequest, Reranker
from rerankd.core import Embeddings, RerankRequest, Truncation, text_content
from rerankd.limits import RequestLimits
from rerankd.server.settings import Settings
from tests.conftest import MakeCheckpoint
from tests.embedding_checkpoints import embedder
from tests.models.test_embedding import QWEN3
from tests.server.fakes import running
from tests.test_scores import PAIRS

TEXTS = [*dict.fromkeys(text for pair in PAIRS[::9] for text in pair)]
PROMPTS = {"query": "query: ", "document": "passage: ", "topic": "The topic of: "}
PROMPTED: dict[str, Any] = {"prompts": PROMPTS, "default_prompt_name": "topic", "normalize": False}
CHAINS: dict[str, dict[str, Any]] = {
    "a default prompt, not at length 1": PROMPTED,
    "last token": QWEN3,
    "dot, dense": {"normalize": False, "similarity_fn_name": "dot", "dense": [{"out_features": 32}]},
    "first values": {"truncate_dim": 24},
}


def embedded(reranker: Reranker, texts: list[str], outputs: Embeddings, **truncation: Any) -> NDArray[numpy.float64]:
    contents = tuple(map(text_content, texts))
    request = RerankRequest((), contents, outputs=outputs, truncation=Truncation(**truncation))
    result = reranker.collect(reranker.submit(request))
    assert [one.index for one in result] == list(range(len(texts)))
    return numpy.array([one.values for one in result])


def near(found: Any, expected: Any) -> bool:
    ours, theirs = numpy.asarray(found), numpy.asarray(expected)
    return ours.shape == theirs.shape and bool(numpy.allclose(ours, theirs, rtol=1e-4, atol=1e-5))


@pytest.mark.parametrize("options", CHAINS.values(), ids=list(CHAINS))
def test_vectors_are_those_of_encode(make_checkpoint: MakeCheckpoint, options: dict[str, Any]) -> None:
    folder = make_checkpoint(embedder, **options)
    model = SentenceTransformer(str(folder), device="cpu")
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        plain = model.encode(TEXTS)
        assert reranker.info.dimensions == plain.shape[1]
        assert numpy.ptp(plain) > 0.2
        assert near(embedded(reranker, TEXTS, Embeddings(normalize=False)), plain)
        assert near(
            embedded(reranker, TEXTS, Embeddings(normalize=True, dimensions=8)),
            model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True),
        )
        for name in ("query", "document"):
            expected = model.encode(TEXTS, prompt_name=name, normalize_embeddings=True)
            assert near(embedded(reranker, TEXTS, Embeddings(name, normalize=True)), expected)
        # As they stand they compare to the scores; all three requests are in one batch.
        query, documents = text_content(TEXTS[0]), tuple(map(text_content, TEXTS[1:5]))
        together = (
            RerankRequest((), (query,), outputs=Embeddings("query")),
            RerankRequest(query, documents),
            RerankRequest((), documents, outputs=Embeddings("document")),
        )
        asked, result, own = map(reranker.collect, reranker.submit_together(list(map(reranker.prepare, together))))
        products = numpy.array([one.values for one in own]) @ numpy.array(asked.documents[0].values)
        assert near([one.score for one in result.in_request_order()], products)


def test_a_long_text_is_cut_as_encode_cuts_it(make_checkpoint: MakeCheckpoint) -> None:
    folder, long = make_checkpoint(embedder, **PROMPTED), "a panda eats bamboo all day " * 200
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        expected = SentenceTransformer(str(folder), device="cpu").encode([long])
        result = reranker.collect(
            reranker.submit(RerankRequest((), (text_content(long),), outputs=Embeddings(normalize=False)))
        )
        assert near([result.documents[0].values], expected)
        assert (result.truncated, result.prompt_tokens) == ((0,), 512)
        with pytest.raises(InvalidRequest, match=r"documents\[0\]"):
            embedded(reranker, [long], Embeddings(), allowed=False)


@pytest.fixture(scope="module")
def model(make_checkpoint: MakeCheckpoint) -> SentenceTransformer:
    return SentenceTransformer(str(make_checkpoint(embedder, **PROMPTED)), device="cpu")


@pytest.fixture(scope="module")
def url(make_checkpoint: MakeCheckpoint) -> Iterator[str]:
    limits = RequestLimits(values=2000)
    folder = make_checkpoint(embedder, **PROMPTED)
    with (
        Reranker(folder, device="cpu", dtype="float32", request_limits=limits) as reranker,
        running(reranker, Settings(names=("m",), limits=limits)) as url,
    ):
        yield url


@pytest.fixture(scope="module")
def cross_encoder(bert_checkpoint: Path) -> Iterator[str]:
    with Reranker(bert_checkpoint, device="cpu") as reranker, running(reranker, Settings(names=("m",))) as url:
        yield url


def post(url: str, path: str, **body: Any) -> requests.Response:
    return requests.post(url + path, json=body, timeout=60)


def test_openais_embeddings(url: str, model: SentenceTransformer) -> None:
    expected = model.encode(TEXTS[:3], normalize_embeddings=True)
    response = post(url, "/v1/embeddings", input=TEXTS[:3], model="m")
    answer = response.json()
    assert near([one["embedding"] for one in answer["data"]], expected)
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    tokens = sum(len(model.tokenizer(PROMPTS["topic"] + text)["input_ids"]) for text in TEXTS[:3])
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert "X-Rerankd-Ignored" not in response.headers
    encoded = post(url, "/v1/embeddings", input=TEXTS[:3], encoding_format="base64").json()
    found = [numpy.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() for one in encoded["data"]]
    assert found == [one["embedding"] for one in answer["data"]]
    (short,) = post(url, "/v1/embeddings", input=TEXTS[0], dimensions=8).json()["data"]
    assert near(short["embedding"], model.encode(TEXTS[0], truncate_dim=8, normalize_embeddings=True))
    for fields in ({"use_activation": False}, {"normalize": False}, {"use_activation": False, "normalize": True}):
        raw = post(url, "/invocations", input=TEXTS[0], **fields)
        assert near(raw.json()["data"][0]["embedding"], model.encode(TEXTS[0]))
        assert "X-Rerankd-Ignored" not in raw.headers
    for name in ("use_activation", "normalize"):
        (one,) = post(url, "/v1/embeddings", input=TEXTS[0], **{name: True}).json()["data"]
        assert near(one["embedding"], expected[0])


@pytest.mark.parametrize("path", ["/tei/v1/embeddings", "/tei/embeddings", "/infinity/embeddings"])
def test_openais_form_in_other_apis(url: str, make_checkpoint: MakeCheckpoint, path: str) -> None:
    """At length 1 always, as in TEI and Infinity; any model's name is taken, and another's is reported."""
    ours = post(url, "/v1/embeddings", input=TEXTS[:3], normalize=True).json()
    for model, ignored in (("m", None), (None, None), ("bge-m3", "model")):
        response = post(url, path, input=TEXTS[:3], model=model)
        assert near([one["embedding"] for one in response.json()["data"]], [one["embedding"] for one in ours["data"]])
        assert (response.json()["model"], response.headers.get("X-Rerankd-Ignored")) == ("m", ignored)
    assert post(url, path, input=[]).status_code == (422 if "infinity" in path else 400)
    folder = make_checkpoint(embedder, normalize=False, similarity_fn_name="dot")
    with Reranker(folder, device="cpu", dtype="float32") as reranker, running(reranker, Settings(names=("m",))) as dot:
        (one,) = post(dot, path, input=TEXTS[0]).json()["data"]
        assert numpy.linalg.norm(one["embedding"]) == pytest.approx(1, abs=1e-5)
        (one,) = post(dot, path, input=TEXTS[0], normalize=False).json()["data"]
        assert numpy.linalg.norm(one["embedding"]) != pytest.approx(1, abs=1e-2)


def test_a_caller_may_ask_for_length_1(make_checkpoint: MakeCheckpoint) -> None:
    """Also of a model that compares embeddings as they are."""
    folder = make_checkpoint(embedder, normalize=False, similarity_fn_name="dot")
    plain = SentenceTransformer(str(folder), device="cpu")
    with Reranker(folder, device="cpu", dtype="float32") as reranker, running(reranker, Settings(names=("m",))) as url:
        for fields, normalized in (({}, False), ({"use_activation": True}, True), ({"normalize": True}, True)):
            (one,) = post(url, "/v1/embeddings", input=TEXTS[0], **fields).json()["data"]
            assert near(one["embedding"], plain.encode(TEXTS[0], normalize_embeddings=normalized))


def test_teis_embed(url: str, model: SentenceTransformer) -> None:
    assert near(post(url, "/embed", inputs=TEXTS[:3]).json(), model.encode(TEXTS[:3], normalize_embeddings=True))
    assert near(post(url, "/tei/embed", inputs=TEXTS[0], normalize=False).json(), [model.encode(TEXTS[0])])
    named = post(url, "/embed", inputs=TEXTS[0], prompt_name="query", normalize=False, dimensions=8).json()
    assert near(named, [model.encode(TEXTS[0], prompt_name="query", truncate_dim=8)])
    cut = post(url, "/embed", inputs="first " + "word " * 600 + "last")
    assert cut.headers["X-Rerankd-Truncated"] == "documents 0"
    left = post(url, "/embed", inputs="first " + "word " * 600 + "last", truncation_direction="Left")
    assert not near(left.json(), cut.json())


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "check_embedding_ctx_length"),
        ({"input": [[1, 2]]}, "check_embedding_ctx_length"),
        ({}, "input"),
        ({"input": "a", "dimensions": 65}, "dimensions: must be from 1 to 64"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "bytes"}, "encoding_format"),
        ({"input": "a", "add_special_tokens": False}, "add_special_tokens"),
        ({"input": "word " * 600, "truncation": False}, "input[0]"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),  # the prompt alone takes as much
        ({"input": ["a"] * 32}, "--max-request-values"),
    ],
)
def test_what_openais_route_refuses(url: str, body: dict[str, Any], names: str) -> None:
    response = post(url, "/v1/embeddings", **body)
    assert response.status_code == 400, response.text
    assert names in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "kind", "names"),
    [
        ({"inputs": []}, 400, "Empty", "inputs"),
        ({"inputs": [[1]]}, 422, "Tokenizer", "token ids"),
        ({"inputs": "a", "prompt_name": "other"}, 422, "Validation", "prompt_name: is 'other'"),
        ({"inputs": "word " * 600, "truncate": False}, 422, "Validation", "inputs[0]"),
        ({"inputs": ["a"] * 32}, 422, "Validation", "--max-request-values"),
    ],
)
def test_what_teis_route_refuses(url: str, body: dict[str, Any], status: int, kind: str, names: str) -> None:
    response = post(url, "/embed", **body)
    assert (response.status_code, response.json()["error_type"]) == (status, kind)
    assert names in response.json()["error"]


def test_a_model_that_gives_none_says_so(cross_encoder: str) -> None:
    refused = post(cross_encoder, "/v1/embeddings", input="a")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    refused = post(cross_encoder, "/embed", inputs="a")
    assert (refused.status_code, refused.json()["error_type"]) == (424, "Backend")
    assert "bi-encoder" in refused.text
