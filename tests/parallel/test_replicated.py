"""Replicas as processes: the scores of one, one memory of weights, and nothing lost when one is killed."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from rerankd import Reranker
from rerankd.core import EngineError, ModelError, PromptGroup, ReplicaLost, RerankRequest, Segment, Text
from rerankd.loading import WARM_UP, Plan, plan
from rerankd.options import LoadOptions
from rerankd.parallel.processes import Processes
from rerankd.parallel.replicas import Replicas
from rerankd.starting import homes
from tests.media.patterns import pattern
from tests.parallel.test_processes import children, is_alive, scores
from tests.server.launched import SERVE, launched
from tests.server.test_clients_that_leave import until

PLAINLY = {"device": "cpu", "dtype": "float32", "max_batch_tokens": 600}
DOCUMENTS: list[Any] = [f"The giant panda number {number} is a bear. " * (1 + number % 5) for number in range(40)]
PICTURE = {"image": PIL.Image.fromarray(pattern(96, 64)), "text": "a picture"}


def processes(reranker: Reranker) -> list[int]:
    """Those of the replicas, in order."""
    assert isinstance(reranker._engine, Replicas)
    found = [place.replica.pid for place in reranker._engine._places if place.replica is not None]
    return [pid for pid in found if pid is not None]


@pytest.fixture(scope="module")
def expected(qwen3_vl_checkpoint: Path) -> list[float]:
    """By one process."""
    with Reranker(str(qwen3_vl_checkpoint), **PLAINLY) as whole:
        return scores(whole, [*DOCUMENTS, PICTURE])


@pytest.fixture(scope="module")
def reranker(qwen3_vl_checkpoint: Path) -> Iterator[Reranker]:
    with Reranker(str(qwen3_vl_checkpoint), **PLAINLY, data_parallel_size=2) as reranker:
        (loader,) = children(os.getpid())
        yield reranker
        left = [loader, *processes(reranker)]
        assert len(left) == 3
    assert not any(map(is_alive, left))


def test_two_replicas_score_as_one(reranker: Reranker, expected: list[float]) -> None:
    assert reranker.info.data_parallel_size == 2
    before = reranker.load().replicas
    found = reranker.rerank("what is panda?", [*DOCUMENTS, PICTURE], show_progress=False)
    assert [one.score for one in found.in_request_order()] == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 6) for score in expected}) > 30
    after = reranker.load()
    assert all(now.tokens > then.tokens for now, then in zip(after.replicas, before, strict=True)), "one did it all"
    assert (after.waiting, after.running, [one.held_tokens for one in after.replicas]) == (0, 0, [0, 0])
    assert {stage.name for stage in found.stages} >= {"queue", "model"}


def test_what_fails_in_a_replica_fails_and_is_logged_here(
    reranker: Reranker, expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    beyond = PromptGroup(Segment([10**7]), (Segment([1, 2]),), (False,))
    with reranker._engine.held():
        failed, other = (reranker._engine.submit(one) for one in (beyond, replace(beyond, prefix=Segment([1]))))
    with pytest.raises(EngineError, match="index out of range"):
        failed.result(60)
    assert other.result(60)
    said = [line for line in caplog.messages if line.startswith("Replica")]
    assert re.match(r"Replica \d: A batch of 2 requests failed", said[0])
    assert scores(reranker, DOCUMENTS[:3]) == pytest.approx(expected[:3], abs=1e-5)


def test_replicas_may_be_killed_at_any_time(reranker: Reranker, expected: list[float]) -> None:
    wrong: list[Any] = []
    lost: list[Exception] = []
    answered = threading.Semaphore(0)
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                found = scores(reranker, DOCUMENTS[:20])
            except ReplicaLost as error:
                lost.append(error)
                continue
            except Exception as error:
                wrong.append(error)
                return
            wrong.extend([found] if found != pytest.approx(expected[:20], abs=1e-5) else [])
            answered.release()

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    for _ in range(3):
        for _ in range(6):
            assert answered.acquire(timeout=60)
        before = processes(reranker)
        os.kill(before[-1], signal.SIGKILL)
        until(lambda before=before: len(set(processes(reranker)) - {before[-1]}) == 2)  # type: ignore[misc]
    assert sum(one.restarts for one in reranker.load().replicas) == 3
    over.set()
    for thread in asking:
        thread.join(60)
    assert not wrong
    assert reranker.failure is None
    assert not lost, "a request that one process died of is answered by another"
    (loader,) = children(os.getpid())
    assert sorted(children(loader)) == sorted(processes(reranker))
    assert scores(reranker, [*DOCUMENTS, PICTURE]) == pytest.approx(expected, abs=1e-5)


def test_a_loading_process_that_is_stopped_is_ended_when_it_is_asked(
    bert_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once: every replica whose process has ended asks it, and all requests wait for them."""
    monkeypatch.setattr("rerankd.parallel.processes.ANSWER_SECONDS", 2.0)
    with Reranker(str(bert_checkpoint), **PLAINLY, data_parallel_size=2) as reranker:
        first = scores(reranker, DOCUMENTS)
        assert isinstance(reranker._engine, Replicas)
        replica = reranker._engine._places[0].replica
        assert replica is not None
        assert replica.pid is not None
        pid = replica.loader._child.process.pid
        os.kill(pid, signal.SIGSTOP)
        assert replica.loader.reap(replica.pid) == "with the one that it was forked from"
        until(lambda: not is_alive(pid))
        for process in processes(reranker):
            os.kill(process, signal.SIGKILL)
        until(lambda: [one.restarts for one in reranker.load().replicas] == [1, 1])
        assert scores(reranker, DOCUMENTS) == pytest.approx(first, abs=1e-5)


def test_a_replica_that_is_stopped_is_ended_and_its_requests_are_answered(
    bert_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**PLAINLY, "data_parallel_size": 2, "engine_timeout": 3.0}
    others = children(os.getpid())
    with Reranker(str(bert_checkpoint), **options) as reranker:
        first = scores(reranker, DOCUMENTS)
        stopped, _ = processes(reranker)
        os.kill(stopped, signal.SIGSTOP)
        asked = [reranker.submit(RerankRequest((Text("what is panda?"),), ((Text(one),),))) for one in DOCUMENTS]
        found = [one.logits.result(60)[0] for one in asked]
        until(lambda: [one.restarts for one in reranker.load().replicas] == [1, 0])
        assert not is_alive(stopped)
        assert "Replica 0 gives no sign of life" in caplog.text
        assert scores(reranker, DOCUMENTS) == pytest.approx(first, abs=1e-5)
        assert len({round(one, 4) for one in found}) > 4
        (loader,) = set(children(os.getpid())).difference(others)
        left = [loader, *processes(reranker)]
    assert not any(map(is_alive, left))


def test_replicas_share_the_memory_of_the_weights(reranker: Reranker) -> None:
    """Nearly all that a replica has in memory is the loader's too."""
    for pid in processes(reranker):
        kilobytes = dict(re.findall(r"(\w+): +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text()))
        shared = int(kilobytes["Shared_Clean"]) + int(kilobytes["Shared_Dirty"])
        assert shared > 4 * int(kilobytes["Private_Dirty"]), kilobytes


def test_a_cancelled_request_is_dropped(reranker: Reranker, expected: list[float]) -> None:
    content = tuple((Text(document),) for document in DOCUMENTS * 20)
    submitted = reranker.submit(RerankRequest((Text("what is panda?"),), content))
    assert submitted.logits.cancel()
    until(lambda: not any(one.held_tokens for one in reranker.load().replicas))
    assert reranker.load().waiting == 0
    assert scores(reranker, DOCUMENTS[:3]) == pytest.approx(expected[:3], abs=1e-5)


def test_a_server_of_two_replicas_outlives_one_sleeps_and_leaves_none(
    bert_checkpoint: Path, bert_two_labels_checkpoint: Path, tmp_path: Path
) -> None:
    body = {"query": "what is panda?", "documents": ["hi", "The giant panda is a bear of China."]}
    config = tmp_path / "server.yaml"
    config.write_text(
        "{device: cpu, dtype: float32, sleep-routes: true, models: ["
        f"{{model: {bert_checkpoint}, served-model-name: many, data-parallel-size: 2}}, "
        f"{{model: {bert_two_labels_checkpoint}, served-model-name: one}}]}}"
    )
    with launched(SERVE, "--config", str(config), exit_code=-signal.SIGKILL) as server:
        assert re.search(r"model=many .* device=cpu dtype=float32 .* data_parallel_size=2$", server.said, re.MULTILINE)
        (loader,) = children(server.process.pid)
        replicas = children(loader)
        assert len(replicas) == 2
        # What a terminal or a supervisor sends to all processes is for the server's.
        for number in (signal.SIGINT, signal.SIGTERM):
            for pid in (loader, *replicas):
                os.kill(pid, number)

        def post(path: str, **body: Any) -> requests.Response:
            return requests.post(f"{server.url}{path}", json=body, timeout=60)

        def ask(model: str = "many") -> Any:
            answer = post("/v1/rerank", **body, model=model)
            assert answer.status_code == 200
            return answer.json()["results"]

        def counted(name: str) -> list[float]:
            text = requests.get(f"{server.url}/metrics", timeout=60).text
            samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
            own = [one for one in samples if one.name == name and "replica" in one.labels]
            assert {one.labels["model_name"] for one in own} <= {"many"}
            return [one.value for one in own]

        first, other = ask(), ask("one")
        assert first != other
        os.kill(replicas[0], signal.SIGKILL)
        until(lambda: sum(counted("rerankd_replica_restarts_total")) == 1)
        until(lambda: counted("rerankd_replica_up") == [1, 1])
        assert ask() == first
        assert requests.get(f"{server.url}/health", timeout=60).status_code == 200
        assert sum(counted("rerankd_replica_batches_total")) >= 2
        left = [loader, *children(loader)]
        assert len(left) == 3
        # Asleep, it has no process.
        assert post("/sleep?model=many").status_code == 200
        assert not any(map(is_alive, left))
        assert post("/v1/rerank", **body).status_code == 503
        assert ask("one") == other
        assert post("/wake_up").status_code == 200
        assert ask() == first
        (loader,) = children(server.process.pid)
        left = [loader, *children(loader)]
        assert len(left) == 3
        # One that is stopped cannot see that the server is gone.
        os.kill(left[1], signal.SIGSTOP)
        server.stop(signal.SIGKILL)
        assert "The process of replica" in server.said
        assert "has ended by SIGKILL." in server.said
        until(lambda: not any(map(is_alive, left)))


def test_a_server_that_ends_answers_what_its_replicas_have_and_leaves_no_process(bert_checkpoint: Path) -> None:
    body = {"query": "what is panda?", "documents": ["hi", "The giant panda is a bear of China."]}
    flags = ("--device", "cpu", "--dtype", "float32", "-dp", "2", "--shutdown-timeout", "60")
    with launched(SERVE, str(bert_checkpoint), *flags) as server, ThreadPoolExecutor(8) as pool:
        (loader,) = children(server.process.pid)
        replicas = children(loader)

        def ask() -> requests.Response:
            return requests.post(f"{server.url}/v1/rerank", json=body, timeout=60)

        expected = [document["relevance_score"] for document in ask().json()["results"]]
        # They hold what they get, until they may go on.
        for pid in replicas:
            os.kill(pid, signal.SIGSTOP)
        asked = [pool.submit(ask) for _ in range(6)]
        until(lambda: "rerankd_running_requests 6.0" in requests.get(f"{server.url}/metrics", timeout=60).text)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: requests.get(f"{server.url}/ready", timeout=60).status_code == 503)
        for pid in replicas:
            os.kill(pid, signal.SIGCONT)
        assert [one.result().status_code for one in asked] == [200] * 6
        for one in asked:
            found = [document["relevance_score"] for document in one.result().json()["results"]]
            assert found == pytest.approx(expected, abs=1e-5)
        assert server.process.wait(60) == 0
        until(lambda: not any(map(is_alive, (loader, *replicas))))


def test_replicas_that_load_for_themselves(bert_checkpoint: Path) -> None:
    """As on GPUs: no process is forked, and one that takes another's place loads anew."""
    planned = plan(LoadOptions(str(bert_checkpoint), device="cpu", dtype="float32", data_parallel_size=2))
    others = children(os.getpid())
    replicas = Replicas(Processes(homes(planned), forks=False), 600)
    try:
        first, second = set(children(os.getpid())).difference(others)
        group = planned.prompts.build(WARM_UP)
        expected = replicas.submit(group).result(60)
        os.kill(first, signal.SIGKILL)
        assert replicas.submit(group).result(60) == pytest.approx(expected, abs=1e-5)
        until(lambda: sorted(one.restarts for one in replicas.load().replicas) == [0, 1])
        assert all(one.running for one in replicas.load().replicas)
        left = set(children(os.getpid())).difference(others)
        assert len(left) == 2
        assert second in left
        with replicas.held():
            futures = [replicas.submit(group) for _ in range(200)]
        assert all(future.result(60) == pytest.approx(expected, abs=1e-5) for future in futures)
        assert all(one.batches for one in replicas.load().replicas)
    finally:
        replicas.close()
    assert not any(map(is_alive, left))


def test_weights_are_counted_for_each_copy(bert_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, three = (plan(LoadOptions(str(bert_checkpoint), device="cpu", data_parallel_size=n)) for n in (1, 3))
    assert three.weight_bytes() == one.weight_bytes() > 0
    monkeypatch.setattr(Plan, "forks", False)
    assert three.weight_bytes() == 3 * one.weight_bytes()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"data_parallel_size": 0}, "must be at least 1, not 0"),
        ({"device": "cpu,cpu", "data_parallel_size": 3}, "3 replicas cannot share out 2 devices evenly"),
        ({"device": "cpu,cuda:0"}, "cuda:0"),
        ({"data_parallel_size": 2, "tensor_parallel_size": 2}, "cannot be combined"),
    ],
)
def test_what_cannot_be_replicated_is_refused(bert_checkpoint: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        Reranker(str(bert_checkpoint), **{"device": "cpu", **options})
