"""vLLM's score API and the routes around a model, over a real socket."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
import transformers

from rerankd.core import Labels, RerankRequest, RerankResult, text_content
from rerankd.reranker import Reranker
from rerankd.server.settings import Settings
from rerankd.version import __version__
from tests.labels import label_request, written_out
from tests.server.fakes import INFO, MODEL, FakeReranker, fake_probability, fake_score, running

PATHS = ["/score", "/v1/score", "/vllm/score", "/vllm/v1/score"]
FORMS = [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items")]


def post(base: str, path: str = "/v1/score", **body: Any) -> requests.Response:
    return requests.post(base + path, json=body, timeout=30)


def score(query: str, document: str) -> float:
    return fake_score(text_content(query), text_content(document))


@pytest.mark.parametrize("path", PATHS)
def test_answer_has_vllms_shape(vllm_server: str, path: str) -> None:
    answer = post(vllm_server, path, text_1="a b", text_2=["c", "d e"], model=MODEL, request_id="mine").json()
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "id": "score-mine",
        "object": "list",
        "model": MODEL,
        "data": [
            {"index": 0, "object": "score", "score": score("a b", "c")},
            {"index": 1, "object": "score", "score": score("a b", "d e")},
        ],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


@pytest.mark.parametrize(("first", "second"), FORMS)
@pytest.mark.parametrize(
    ("left", "right", "pairs"),
    [
        ("a", "b", [("a", "b")]),
        (["a"], "b", [("a", "b")]),
        ("a", ["b", "c"], [("a", "b"), ("a", "c")]),
        (["a"], ["b", "c"], [("a", "b"), ("a", "c")]),
        (["a", "x", "a"], ["b", "c", "d"], [("a", "b"), ("x", "c"), ("a", "d")]),
        ("a", {"content": [{"type": "text", "text": "b"}]}, [("a", "b")]),
    ],
)
def test_pairs_are_scored_in_their_order(
    vllm_server: str, first: str, second: str, left: Any, right: Any, pairs: list[tuple[str, str]]
) -> None:
    response = post(vllm_server, **{first: left, second: right})
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [one["index"] for one in data] == list(range(len(pairs)))
    assert [one["score"] for one in data] == [score(*pair) for pair in pairs]


def test_pairs_of_one_query_are_one_request(vllm_server: str, fake: FakeReranker) -> None:
    before = len(fake.requests)
    post(vllm_server, text_1=["a", "x", "a"], text_2=["b", "c", "d"], use_activation=False, truncate_prompt_tokens=9)
    made = {request.query: request for request in fake.requests[before:]}
    assert len(fake.requests) - before == len(made) == 2
    assert made[text_content("a")].documents == (text_content("b"), text_content("d"))
    assert all(not one.activation and one.truncation.max_tokens == 9 for one in made.values())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text_1"),
        ({"text_1": "a"}, "text_2"),
        ({"items": ["a"]}, "queries"),
        ({"text_1": "a", "data_2": "b"}, "text_1"),
        ({"text_1": "a", "text_2": "b", "data_1": "a"}, "text_2"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ({"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1"),
        ({"text_1": [], "text_2": ["c"]}, "text_1"),
        ({"text_1": "a", "text_2": []}, "text_2"),
        ({"text_1": 1, "text_2": "b"}, "text_1"),
        ({"text_1": "a", "text_2": ["b", 1]}, "text_2[1]"),
    ],
)
def test_a_bad_field_is_named(vllm_server: str, body: dict[str, Any], param: str) -> None:
    response = post(vllm_server, **body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param, response.text


def test_errors_and_reports_name_the_pair(vllm_server: str) -> None:
    texts = {"text_1": ["a", "x", "a"], "text_2": ["b", "c", "d d d"]}
    response = post(vllm_server, **texts, truncate_prompt_tokens=2, truncation=False)
    assert response.json()["error"]["param"] == "text_2[2]"
    assert post(vllm_server, **texts, truncate_prompt_tokens=2).headers["X-Rerankd-Truncated"] == "documents 2"
    response = post(vllm_server, **texts, foo=1, instruction="find")
    assert response.headers["X-Rerankd-Ignored"] == "foo, instruction"


def test_another_model_is_not_found(vllm_server: str) -> None:
    for path, body in (("/score", {"text_1": "a", "text_2": "b"}), ("/tokenize", {"prompt": "a"})):
        response = post(vllm_server, path, **body, model="other")
        assert (response.status_code, response.json()["error"]["param"]) == (404, "model")


@pytest.mark.parametrize("special", [True, False])
def test_tokenize(vllm_server: str, special: bool) -> None:
    answer = post(vllm_server, "/tokenize", prompt="one three", add_special_tokens=special, return_token_strs=True)
    tokens = ["<s>", "one", "three", "</s>"] if special else ["one", "three"]
    assert answer.json() == {
        "count": len(tokens),
        "max_model_len": INFO.max_model_len,
        "tokens": [len(token) for token in tokens],
        "token_strs": tokens,
    }
    assert post(vllm_server, "/tokenize", prompt="one").json()["token_strs"] is None
    assert post(vllm_server, "/tokenize", messages=[]).json()["error"]["param"] == "prompt"


def test_version_ping_and_load(vllm_server: str) -> None:
    assert requests.get(f"{vllm_server}/version", timeout=30).json() == {"version": __version__}
    ping = requests.get(f"{vllm_server}/ping", timeout=30)
    assert (ping.status_code, ping.content) == (200, b"")
    assert requests.get(f"{vllm_server}/load", timeout=30).json() == {"server_load": 0}


class Decoder(FakeReranker):
    """A model that tells how probable tokens are."""

    def __init__(self) -> None:
        super().__init__()
        self.info = replace(INFO, family="decoder")


def test_sglangs_score_gives_the_labels_probabilities() -> None:
    decoder = Decoder()
    with running(decoder, Settings(names=(MODEL,), dialect="sglang")) as url:
        body = {"query": "q", "items": ["b", "a"], "label_token_ids": [9, 2], "model": "default"}
        for path in ("/v1/score", "/sglang/v1/score"):
            answer = post(url, path, **body)
            assert answer.status_code == 200, answer.text
            assert answer.json() == {
                "scores": [[fake_probability(prompt, label) for label in (9, 2)] for prompt in ("qb", "qa")],
                "model": MODEL,
                "usage": {"prompt_tokens": 2, "total_tokens": 2, "completion_tokens": 0},
                "object": "scoring",
            }
            assert answer.headers["X-Rerankd-Ignored"] == "model"
            assert decoder.labelled[-1].labels == Labels((9, 2), among_themselves=False)
        post(url, **body, item_first=True, apply_softmax=True)
        labels = Labels((9, 2), among_themselves=True)
        assert decoder.labelled[-1] == label_request(("b", "a"), labels, shared="q", shared_last=True)
        post(url, **{**body, "query": [1, 2], "items": [[3], []]})
        assert written_out(decoder.labelled[-1]) == [(1, 2, 3), (1, 2)]
        assert requests.get(f"{url}/health_generate", timeout=30).status_code == 200
        # vLLM's own fields are told apart on the route that both have.
        assert post(url, text_1="a", text_2="b").json()["data"][0]["score"] == score("a", "b")


def test_sglangs_score_is_for_decoders(vllm_server: str) -> None:
    response = post(vllm_server, query="q", items=["a"], label_token_ids=[1, 2], apply_softmax=True)
    assert (response.status_code, response.json()["param"]) == (400, "model")


def test_model_info(sglang_server: str) -> None:
    info = requests.get(f"{sglang_server}/get_model_info", timeout=30).json()
    assert (info["model_path"], info["is_generation"], info["architectures"]) == (MODEL, False, [INFO.architecture])


def test_tokens_are_the_tokenizers(qwen3_checkpoint: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(qwen3_checkpoint)
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32") as reranker:
        text = "What is panda? 熊猫"
        assert [token.id for token in reranker.tokenize(text, special=False)] == tokenizer.encode(
            text, add_special_tokens=False
        )


def test_health_generate_says_when_the_model_fails() -> None:
    class Broken(FakeReranker):
        async def answer(self, request: RerankRequest) -> RerankResult:
            raise RuntimeError("broken")

    with running(Broken(), Settings(names=(MODEL,))) as url:
        assert requests.get(f"{url}/health_generate", timeout=30).status_code == 500
        assert requests.get(f"{url}/ping", timeout=30).status_code == 200
