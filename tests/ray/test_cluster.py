"""Ray Serve on a real cluster of two nodes: scores, handles, metrics, a killed replica, more and fewer replicas.

The tests of one application follow each other: starting a replica takes seconds.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from rerankd import Chunking, InvalidRequest, Reranker
from tests import encoder_checkpoints
from tests.conftest import MakeCheckpoint
from tests.ray.cluster import PATIENCE, Clients, RayCluster, cluster, wait_for

ray = pytest.importorskip("ray", reason="ray is not installed: make test-ray")

pytestmark = pytest.mark.timeout(600)
KEY = {"Authorization": "Bearer of-the-test"}
WORDS = ("panda", "bear", "bamboo", "river", "capital", "city", "music", "green", "old", "water", "light", "stone")


def texts(count: int, length: int, seed: int) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=length)) for _ in range(count)]


QUERY, *DOCUMENTS = texts(9, 12, 1)
BODY = {"query": QUERY, "documents": DOCUMENTS}


def by_index(results: Any, score: str = "relevance_score") -> list[float]:
    return [one[score] for one in sorted(results, key=lambda one: one["index"])]


def offline(folder: Path, query: str = QUERY, documents: list[str] = DOCUMENTS, **options: Any) -> list[float]:
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        result = reranker.rerank(query, documents, **options)
    return [one.score for one in result.in_request_order()]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[RayCluster]:
    with cluster() as made:
        yield made


@pytest.fixture(scope="module")
def folders(bert_checkpoint: Path, make_checkpoint: MakeCheckpoint) -> tuple[Path, Path]:
    return bert_checkpoint, make_checkpoint(encoder_checkpoints.distilbert)


@pytest.fixture(scope="module")
def expected(folders: tuple[Path, Path]) -> tuple[list[float], list[float]]:
    """The scores of two models, which differ."""
    first, second = map(offline, folders)
    assert max(first) - min(first) > 0.01
    assert first != pytest.approx(second, abs=1e-3)
    return first, second


@pytest.fixture(scope="module")
def handle(two_nodes: RayCluster, folders: tuple[Path, Path]) -> Iterator[Any]:
    """An application of two models and two replicas, one on each node, below /ai."""
    import rerankd.ray.replica
    from ray import serve
    from tests.ray.breakable import BreakableReplica

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rerankd.ray.replica, "Replica", BreakableReplica)
        application = rerankd.ray.deployment(
            {
                "models": [
                    {"model": str(folders[0]), "served-model-name": "first"},
                    {"model": str(folders[1]), "served-model-name": "second"},
                ],
                "device": "cpu",
                "dtype": "float32",
                "shutdown-timeout": PATIENCE,
                "max-num-batched-tokens": 512,
                "api-key": KEY["Authorization"].split()[1],
                "deployment": {"num_replicas": 2, "ray_actor_options": {"num_cpus": 1, "resources": {"place": 1}}},
            }
        )
    yield serve.run(application, name="fixed", route_prefix="/ai")
    serve.delete("fixed")


def post(two_nodes: RayCluster, path: str, body: Any = BODY, **headers: str) -> httpx.Response:
    return httpx.post(f"{two_nodes.url}/ai{path}", json=body, headers={**KEY, **headers}, timeout=PATIENCE)


def test_scores_are_those_of_offline_over_every_way_in(
    two_nodes: RayCluster, handle: Any, expected: tuple[list[float], list[float]]
) -> None:
    first, second = expected
    assert len({one["node_id"] for one in two_nodes.replicas("fixed").values()}) == 2
    for _ in range(4):  # of either replica
        assert by_index(post(two_nodes, "/v1/rerank").json()["results"]) == pytest.approx(first, abs=1e-5)
    of_second = post(two_nodes, "/v1/rerank", {**BODY, "model": "second"}).json()["results"]
    assert by_index(of_second) == pytest.approx(second, abs=1e-5)
    assert by_index(post(two_nodes, "/cohere/v2/rerank", {**BODY, "model": "first"}).json()["results"]) == (
        pytest.approx(first, abs=1e-5)
    )
    of_tei = post(two_nodes, "/tei/rerank", {"query": QUERY, "texts": DOCUMENTS}).json()
    assert by_index(of_tei, "score") == pytest.approx(first, abs=1e-5)

    result = handle.rerank.remote(QUERY, DOCUMENTS, top_n=3).result()
    best = sorted(first, reverse=True)[:3]
    assert [one.score for one in result] == pytest.approx(best, abs=1e-5)
    pairs = [(QUERY, document) for document in DOCUMENTS]
    assert handle.score.remote(pairs, model="second").result() == pytest.approx(second, abs=1e-5)


def test_options_of_a_handle_are_those_of_reranker(handle: Any, folders: tuple[Path, Path]) -> None:
    long = [" ".join(texts(40, 20, 2)), *DOCUMENTS]
    for options in ({"chunking": Chunking()}, {"activation": False}):
        result = handle.rerank.remote(QUERY, long, **options).result()
        scores = [one.score for one in result.in_request_order()]
        assert scores == pytest.approx(offline(folders[0], documents=long, **options), abs=1e-4)
    assert handle.rerank.remote(QUERY, long).result().truncated == (0,)


def test_errors_keep_their_shapes(two_nodes: RayCluster, handle: Any) -> None:
    assert httpx.post(f"{two_nodes.url}/ai/v1/rerank", json=BODY, timeout=PATIENCE).status_code == 401
    missing = post(two_nodes, "/v1/rerank", {"query": QUERY})
    assert (missing.status_code, missing.json()["error"]["type"]) == (400, "BadRequestError")
    unknown = post(two_nodes, "/v1/rerank", {**BODY, "model": "third"})
    assert unknown.status_code == 404
    assert "`first`, `second`" in unknown.text
    with pytest.raises(InvalidRequest, match=r"model: The model `third` does not exist\. This server has `first`"):
        handle.rerank.remote(QUERY, DOCUMENTS, model="third").result()
    with pytest.raises(InvalidRequest, match="documents: must be a list of documents, not one string") as raised:
        handle.rerank.remote(QUERY, "a document").result()
    assert raised.value.field == "documents"


def test_an_answer_has_one_id_that_is_the_clients(two_nodes: RayCluster, handle: Any) -> None:
    reply = post(two_nodes, "/v1/rerank", **{"X-Request-Id": "of-a-client"})
    assert reply.headers.get_list("x-request-id") == ["of-a-client"]
    assert len(post(two_nodes, "/v1/rerank").headers.get_list("x-request-id")) == 1


def test_metrics_say_which_replica_they_are_of(two_nodes: RayCluster, handle: Any) -> None:
    ids = set(two_nodes.replicas("fixed"))
    seen: set[str] = set()

    def of_each() -> bool:
        text = httpx.get(f"{two_nodes.url}/ai/metrics", timeout=PATIENCE).text
        series = [line for line in text.splitlines() if line and not line.startswith("#")]
        (replica,) = {match[1] for line in series if (match := re.search(r'ray_replica="([^"]+)"', line))}
        assert all(f'ray_application="fixed",ray_deployment="rerankd",ray_replica="{replica}"' in one for one in series)
        assert re.search(r'^rerankd_batch_tokens_total\{model_name="first",ray_', text, re.MULTILINE) or (
            re.search(r'^rerankd_batch_tokens_total\{ray_[^}]+model_name="first"', text, re.MULTILINE)
        )
        seen.add(replica)
        return seen == ids

    wait_for(of_each, "both replicas answer /metrics")


def test_rays_own_metrics_have_each_replica(two_nodes: RayCluster, handle: Any) -> None:
    ids = set(two_nodes.replicas("fixed"))
    ports = [node["MetricsExportPort"] for node in ray.nodes()]

    def exported() -> bool:
        text = "".join(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE).text for port in ports)
        series = re.findall(r"^ray_rerankd_batch_tokens_total\{(.*)\} (\S+)$", text, re.MULTILINE)
        found = {
            match[1]: float(value)
            for labels, value in series
            if 'application="fixed"' in labels and (match := re.search(r'replica="([^"]+)"', labels))
        }
        return found.keys() >= ids and all(found[one] > 0 for one in ids)

    wait_for(exported, "Ray exports the tokens of both replicas")


def test_lines_are_in_rays_log_of_the_replica(two_nodes: RayCluster, handle: Any) -> None:
    post(two_nodes, "/v1/rerank", **{"X-Request-Id": "of-a-line"})

    def logged() -> bool:
        folder = two_nodes.folder / "session_latest/logs/serve"
        logs = {one.name: one.read_text() for one in folder.glob("replica_fixed_rerankd_*.log")}
        ready = [name for name, text in logs.items() if re.search(r"rerankd \S+ is ready: first, second", text)]
        called = [line for text in logs.values() for line in text.splitlines() if '"POST /ai/v1/rerank' in line]
        return len(ready) == 2 and any("of-a-line" in line and line.endswith(" 200") for line in called)

    wait_for(logged, "the log has the call")


def test_nothing_is_lost_with_a_killed_replica(
    two_nodes: RayCluster, handle: Any, expected: tuple[list[float], list[float]]
) -> None:
    right = pytest.approx(expected[0], abs=1e-5)
    url = f"{two_nodes.url}/ai/v1/rerank"
    with Clients(url, BODY, lambda answer: by_index(answer["results"]) == right, 6, KEY) as clients:
        assert clients.each_has(3)
        before = two_nodes.replicas("fixed")
        lost = min(before)
        os.kill(before[lost]["pid"], signal.SIGKILL)
        assert clients.each_has(3)
        wait_for(lambda: lost not in (now := two_nodes.replicas("fixed")) and len(now) == 2, "another replica runs")
        assert clients.each_has(3)
    assert not clients.wrong


def test_a_replica_whose_engine_fails_is_replaced(
    two_nodes: RayCluster, handle: Any, expected: tuple[list[float], list[float]]
) -> None:
    right = pytest.approx(expected[0], abs=1e-5)
    url = f"{two_nodes.url}/ai/v1/rerank"
    before = set(two_nodes.replicas("fixed"))
    with Clients(url, BODY, lambda answer: by_index(answer["results"]) == right, 2, KEY) as clients:
        with suppress(ray.exceptions.RayError):  # the process may have ended before it has answered
            handle.break_engine.remote().result()
        wait_for(lambda: len(now := set(two_nodes.replicas("fixed"))) == 2 and now != before, "another replica runs")
        assert clients.each_has(3)
    assert not clients.wrong


def test_a_request_in_flight_is_answered_when_the_application_ends(
    two_nodes: RayCluster, handle: Any, tmp_path: Path
) -> None:
    from ray import serve

    gate = tmp_path / "open"
    long = texts(500, 12, 3)
    answers: list[httpx.Response] = []
    handle.broadcast("hold", str(gate)).results(timeout_s=PATIENCE)
    asked = threading.Thread(target=lambda: answers.append(post(two_nodes, "/v1/rerank", {**BODY, "documents": long})))
    asked.start()
    wait_for(lambda: any(handle.broadcast("waiting").results(timeout_s=PATIENCE)), "the request waits for the model")
    ending = threading.Thread(target=serve.delete, args=("fixed",))
    ending.start()
    wait_for(lambda: not two_nodes.replicas("fixed"), "no replica runs any more")
    gate.touch()
    asked.join()
    ending.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["results"]) == len(long)


def test_replicas_come_and_go_with_the_tokens_that_wait(
    two_nodes: RayCluster, folders: tuple[Path, Path], expected: tuple[list[float], list[float]]
) -> None:
    """Of an application as a configuration file has it."""
    from ray import serve

    documents = DOCUMENTS * 16
    right = pytest.approx(expected[0] * 16, abs=1e-5)
    args = {
        "model": str(folders[0]),
        "device": "cpu",
        "dtype": "float32",
        "max-num-batched-tokens": 64,
        "deployment": {
            "ray_actor_options": {"num_cpus": 1, "resources": {"place": 1}},
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 2,
                "target_queue_tokens": 500,
                "metrics_interval_s": 0.2,
                "look_back_period_s": 1,
                "upscale_delay_s": 0,
                "downscale_delay_s": 1,
            },
        },
    }
    two_nodes.deploy(
        {"name": "scaled", "route_prefix": "/scaled", "import_path": "rerankd.ray:deployment", "args": args}
    )
    wait_for(lambda: len(two_nodes.replicas("scaled")) == 1, "there is one replica")
    url = f"{two_nodes.url}/scaled/v1/rerank"
    body = {**BODY, "documents": documents}
    with Clients(url, body, lambda answer: by_index(answer["results"]) == right, 8) as clients:
        wait_for(lambda: clients.wrong or len(two_nodes.replicas("scaled")) == 2, "there are two replicas")
        assert clients.each_has(2)
    few = {**BODY, "documents": DOCUMENTS}
    right_of_few = pytest.approx(expected[0], abs=1e-5)
    with Clients(url, few, lambda answer: by_index(answer["results"]) == right_of_few, 1, pause=0.2) as rest:
        wait_for(lambda: rest.wrong or len(two_nodes.replicas("scaled")) == 1, "there is one replica again")
        assert rest.each_has(2)
    assert not clients.wrong
    assert not rest.wrong
    # Nothing failed on the way either: Ray drains a replica, and sends requests to those that run.
    assert clients.tried == rest.tried == []
    serve.delete("scaled")
