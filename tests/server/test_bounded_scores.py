"""TEI's and Infinity's APIs give the sigmoid of a model's plain logit, as these do; other models keep their scores."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from rerankd import Reranker
from rerankd.options import LoadOptions
from rerankd.server.settings import Settings
from tests.conftest import MakeCheckpoint
from tests.embedding_checkpoints import embedder
from tests.encoder_checkpoints import edit
from tests.late_checkpoints import stanford
from tests.listwise import jina_v3
from tests.server.grpc_running import Both, both, tei
from tests.t5_checkpoints import t5
from tests.texts import DOCUMENTS, QUERIES

QUERY, TEXTS = QUERIES[0], list(DOCUMENTS[:6])
IDENTITY = {"activation_fn": "torch.nn.modules.linear.Identity"}
ROUTES = ("/tei/rerank", "/infinity/rerank", "/elastic/rerank")
OTHERS = ("/vllm/rerank", "/cohere/v2/rerank", "/jina/rerank")
Scores = dict[int, float]


@pytest.fixture(scope="module", params=["bert_checkpoint", "qwen3_checkpoint"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Both, Scores]]:
    """A cross-encoder, and a decoder, whose folders declare Identity, with their logits."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    shutil.copytree(request.getfixturevalue(request.param), folder)
    edit(folder, sentence_transformers=IDENTITY)
    with Reranker(folder, dtype="float32") as reranker, both(reranker, Settings(names=("m",))) as server:
        yield server, {one.index: one.score for one in reranker.rerank(QUERY, TEXTS)}


def ask(url: str, route: str, **fields: Any) -> Scores:
    texts = "documents" if route in (*OTHERS, "/infinity/rerank") else "texts"
    response = requests.post(url + route, json={"query": QUERY, texts: TEXTS, **fields}, timeout=60)
    assert response.status_code == 200, response.text
    data = response.json()
    found = data if isinstance(data, list) else data["results"]
    scores = {one["index"]: one.get("score", one.get("relevance_score")) for one in found}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    return scores


def sigmoids(logits: Scores) -> Scores:
    return {index: 1 / (1 + math.exp(-logit)) for index, logit in logits.items()}


@pytest.mark.parametrize("route", ROUTES)
def test_a_plain_logits_score_is_its_sigmoid(plain: tuple[Both, Scores], route: str) -> None:
    server, logits = plain
    assert min(logits.values()) < 0 or max(logits.values()) > 1, "these could be sigmoids"
    expected = sigmoids(logits)
    assert ask(server.url, route) == pytest.approx(expected, abs=1e-6)
    third, fourth = sorted(expected.values(), reverse=True)[2:4]
    kept = {index: score for index, score in expected.items() if score > fourth}
    assert ask(server.url, route, min_score=(third + fourth) / 2) == pytest.approx(kept, abs=1e-6)


def test_raw_scores_are_the_logits(plain: tuple[Both, Scores]) -> None:
    server, logits = plain
    for route in ("/tei/rerank", "/infinity/rerank"):
        assert ask(server.url, route, raw_scores=True) == pytest.approx(logits, abs=1e-5)


def test_grpc_gives_what_http_gives(plain: tuple[Both, Scores]) -> None:
    server, logits = plain
    for raw_scores, expected in ((False, sigmoids(logits)), (True, logits)):
        asked = {"query": QUERY, "truncate": True, "raw_scores": raw_scores}
        reply = server.Rerank.Rerank(tei.RerankRequest(texts=TEXTS, **asked))
        streamed = server.Rerank.RerankStream(iter([tei.RerankStreamRequest(text=text, **asked) for text in TEXTS]))
        for answer in (reply, streamed):
            assert {one.index: one.score for one in answer.ranks} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("route", OTHERS)
def test_other_apis_give_what_the_folder_declares(plain: tuple[Both, Scores], route: str) -> None:
    server, logits = plain
    assert ask(server.url, route) == pytest.approx(logits, abs=1e-5)


@pytest.mark.parametrize(("maker", "recipe"), [(embedder, None), (stanford, None), (jina_v3, None), (t5, "monot5")])
def test_a_score_that_is_no_logit_stays(
    make_checkpoint: MakeCheckpoint, maker: Callable[..., Path], recipe: str | None
) -> None:
    """Cosines, their sums, and the logarithm of a probability."""
    options = LoadOptions(str(make_checkpoint(maker)), dtype="float32", recipe=recipe)
    with Reranker(options) as reranker, both(reranker, Settings(names=("m",))) as server:
        expected = {one.index: one.score for one in reranker.rerank(QUERY, TEXTS)}
        for route in ROUTES:
            assert ask(server.url, route) == pytest.approx(expected, abs=1e-5)
