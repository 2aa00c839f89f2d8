"""What /metrics counts, and the ids that calls go by."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from rerankd.backends.select import CPU_BATCH_TOKENS
from rerankd.core import ReplicaLoad, RerankRequest, RerankResult, Stage
from rerankd.reranker import Reranker
from rerankd.server.run import SWITCH_SECONDS
from rerankd.server.settings import Settings
from tests.server.fakes import INFO, MODEL, FakeReranker, running
from tests.server.grpc_running import both
from tests.server.test_clients_that_leave import until

LABELS = ("stage", "route", "dialect", "status")
BODY = {"query": "a b", "documents": ["c d", "e"]}


@pytest.fixture
def url() -> Iterator[str]:
    with running(FakeReranker(), Settings(names=(MODEL,))) as url:
        yield url


def counted(url: str) -> dict[str, float]:
    """Every sample that is not about how long a bucket is, by name and labels."""
    text = requests.get(f"{url}/metrics", timeout=30).text
    return {
        sample.name + "".join(f" {sample.labels[name]}" for name in LABELS if name in sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "_bucket" not in sample.name
    }


def test_answers_are_counted_by_route_dialect_and_status(url: str) -> None:
    requests.post(f"{url}/v1/rerank", json=BODY, timeout=30)
    requests.post(f"{url}/v1/rerank", json={**BODY, "top_k": 1}, timeout=30)
    requests.post(f"{url}/cohere/v2/rerank", json={**BODY, "query": 1}, timeout=30)
    requests.post(f"{url}/tei/rerank", json={"query": "a", "texts": ["b " * (INFO.max_model_len + 1)]}, timeout=30)
    requests.get(f"{url}/nowhere", timeout=30)
    counts = counted(url)
    assert counts["rerankd_requests_total /v1/rerank vllm 200"] == 1
    assert counts["rerankd_requests_total /v1/rerank voyage 200"] == 1
    assert counts["rerankd_requests_total /cohere/v2/rerank cohere 400"] == 1
    assert counts["rerankd_requests_total none vllm 404"] == 1
    assert counts["rerankd_request_seconds_count /v1/rerank vllm"] == 1
    assert counts["rerankd_rejected_requests_total"] == 2
    assert counts["rerankd_truncated_documents_total"] == 1
    assert counts["rerankd_prompt_tokens_total"] == 6 + INFO.max_model_len
    assert counts["rerankd_queue_documents"] == 3
    assert counts["rerankd_queue_tokens"] == 40
    assert counts["rerankd_batches_total"] == 2
    assert counts["rerankd_batch_tokens_total"] == 100
    assert counts["rerankd_tokens_per_second"] == 200
    assert counts["rerankd_threads"] == 3
    assert counts["rerankd_cores"] == len(os.sched_getaffinity(0))
    assert counts["rerankd_running_requests"] == 0


def test_replicas_compute_at_the_same_time() -> None:
    fake = FakeReranker()
    fake.loaded = replace(fake.loaded, replicas=(ReplicaLoad(True, 0, 1, 50, 0.25, 0),) * 2)
    with running(fake, Settings(names=(MODEL,))) as url:
        assert counted(url)["rerankd_tokens_per_second"] == 400


def test_servers_count_apart(url: str) -> None:
    requests.post(f"{url}/v1/rerank", json=BODY, timeout=30)
    with running(FakeReranker(), Settings(names=(MODEL,))) as other:
        assert not [name for name in counted(other) if name.startswith("rerankd_requests_total ")]


def test_every_series_has_the_labels_of_the_settings() -> None:
    labels = {"ray_replica": "a", "rack": 'the "first"'}
    with running(FakeReranker(), Settings(names=(MODEL,), labels=labels, vllm_metrics=True)) as url:
        requests.post(f"{url}/v1/rerank", json=BODY, timeout=30)
        families = list(text_string_to_metric_families(requests.get(f"{url}/metrics", timeout=30).text))
    found = {sample.name: sample.labels for family in families for sample in family.samples}
    assert all(one.items() >= labels.items() for one in found.values())
    own = {"route": "/v1/rerank", "dialect": "vllm", "status": "200"}
    assert found["rerankd_requests_total"] == {**labels, **own}
    assert "rerankd_batches_total" in found
    assert "vllm:num_requests_waiting" in found


def test_clients_that_hang_up_are_counted() -> None:
    fake = FakeReranker()
    with running(fake, Settings(names=(MODEL,))) as url:
        body = {"query": "wait", "documents": ["b"]}
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{url}/v1/rerank", json=body, timeout=0.5)
        for _ in range(300):
            if counted(url)["rerankd_cancelled_requests_total"] == 1:
                break
            threading.Event().wait(0.02)
        else:
            raise AssertionError("never counted")
        fake.gate.set()


def test_a_missing_key_is_counted() -> None:
    with running(FakeReranker(), Settings(names=(MODEL,), keys=("k",))) as url:
        requests.post(f"{url}/tei/rerank", json=BODY, timeout=30)
        assert counted(url)["rerankd_requests_total none tei 401"] == 1


def test_the_engines_own_numbers(minilm_path: Path) -> None:
    with Reranker(minilm_path, device="cpu") as reranker, running(reranker, Settings(names=(MODEL,))) as url:
        before = counted(url)
        assert requests.post(f"{url}/v1/rerank", json=BODY, timeout=60).status_code == 200
        after = counted(url)
        assert after["rerankd_batches_total"] == before["rerankd_batches_total"] + 1
        computed = after["rerankd_computed_tokens_total"]
        assert after["rerankd_batch_tokens_total"] - before["rerankd_batch_tokens_total"] == computed > 0
        assert after["rerankd_prefix_tokens_saved_total"] == after["rerankd_prompt_tokens_total"] - computed > 0
        assert after["rerankd_documents_total"] == 2
        assert after["rerankd_queue_documents"] == 0
        assert after["rerankd_tokens_per_second"] > 0
        assert after["rerankd_max_batch_tokens"] == CPU_BATCH_TOKENS
        for stage in ("tokenise", "queue", "model"):
            assert after[f"rerankd_stage_seconds_count {stage}"] == 1
            assert after[f"rerankd_stage_seconds_sum {stage}"] > 0


@pytest.mark.parametrize("query", ["a", 1])
def test_a_calls_id_comes_back(url: str, query: str | int) -> None:
    headers = {"X-Request-Id": "mine"}
    for path in ("/v1/rerank", "/cohere/v2/rerank"):
        response = requests.post(url + path, json={**BODY, "query": query}, headers=headers, timeout=30)
        assert response.headers["X-Request-Id"] == "mine"


def test_a_call_without_an_id_gets_one(url: str) -> None:
    response = requests.post(f"{url}/v1/rerank", json=BODY, timeout=30)
    assert response.json()["id"] == f"rerank-{response.headers['X-Request-Id']}"
    response = requests.post(f"{url}/v1/rerank", json={**BODY, "request_id": "bär\n"}, timeout=30)
    assert response.json()["id"] == "rerank-bär\n"
    assert response.headers["X-Request-Id"] == '"b\\u00e4r\\n"'


@pytest.mark.parametrize("computes", [True, False])
def test_how_late_the_event_loop_is_and_whether_it_computed_is_measured(computes: bool) -> None:
    """A reranker that holds up the loop shows, and so does whether it computes or waits."""

    class Rude(FakeReranker):
        async def answer(self, request: RerankRequest) -> RerankResult:
            if computes:
                end = time.thread_time() + 0.3
                while time.thread_time() < end:
                    pass
            else:
                time.sleep(0.3)
            return await super().answer(request)

    def slow(url: str, of: str) -> float:
        text = requests.get(f"{url}/metrics", timeout=30).text
        counts = dict(re.findall(rf'rerankd_event_loop_{of}_seconds_bucket{{le="(.*)"}} (.*)', text))
        return float(counts["+Inf"]) - float(counts["0.1"])

    with running(Rude(), Settings(names=(MODEL,))) as url:
        requests.get(f"{url}/health", timeout=30)
        before, held = slow(url, "delay"), slow(url, "held")
        requests.post(f"{url}/v1/rerank", json={"query": "a", "documents": ["b"]}, timeout=30)
        until(lambda: slow(url, "delay") > before)
        assert (slow(url, "held") > held) == computes


VLLM = {"model_name": MODEL, "engine": "0"}


def test_vllms_names_are_there_on_request(url: str) -> None:
    assert not any(name.startswith("vllm:") for name in counted(url))
    fake = FakeReranker()
    fake.loaded = replace(fake.loaded, running=2, waiting_requests=5)
    stages = (Stage("queue", 0.0, 0.25), Stage("model", 0.25, 0.5), Stage("model", 0.75, 0.5))
    with (
        patch.object(fake, "answer", lambda request: staged(request, stages)),
        running(fake, Settings(names=(MODEL, "short"), vllm_metrics=True)) as own,
    ):
        for body in (BODY, BODY, {**BODY, "query": 1}):
            requests.post(f"{own}/v1/rerank", json=body, timeout=30)
        text = requests.get(f"{own}/metrics", timeout=30).text
    samples = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("vllm:") and not sample.name.endswith(("_bucket", "_created"))
    ]
    assert all(VLLM.items() <= sample.labels.items() for sample in samples)
    found = {sample.name.removeprefix("vllm:"): sample.value for sample in samples}
    assert found.pop("e2e_request_latency_seconds_sum") > 0
    assert found == {
        "num_requests_running": 2,
        "num_requests_waiting": 5,
        "kv_cache_usage_perc": 0,
        "prompt_tokens_total": 14,
        "request_success_total": 2,
        "e2e_request_latency_seconds_count": 2,
        "request_queue_time_seconds_count": 2,
        "request_queue_time_seconds_sum": 0.5,
        "request_inference_time_seconds_count": 2,
        "request_inference_time_seconds_sum": 2.0,
    }
    assert "rerankd_prompt_tokens_total 14.0" in text


async def staged(request: RerankRequest, stages: tuple[Stage, ...]) -> RerankResult:
    return RerankResult((), 7, 0, scored=2, stages=stages)


def test_the_event_loop_waits_little_for_threads_that_run_python() -> None:
    before = sys.getswitchinterval()
    try:
        with both(FakeReranker(), Settings(names=(MODEL,))):
            assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    finally:
        sys.setswitchinterval(before)
