"""Several models behind one port, on real sockets: which of them answers, and when each is in memory."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import requests

from rerankd import Reranker
from rerankd.cli.hosting import Named, open_pool
from rerankd.compute_thread import ComputeThread
from rerankd.core import ModelError, PackedBatch
from rerankd.options import LoadOptions
from rerankd.server.pool import LEAST_PAUSE, Model, Pool
from rerankd.server.problems import ASLEEP
from rerankd.server.settings import Residence, Settings
from tests.server.fakes import INFO, FakeReranker, running
from tests.server.test_clients_that_leave import open_call, until

QUERY = "what is panda?"
DOCUMENTS = ["hi", "The giant panda is a bear.", "Bread rises in the oven.", "panda panda"]
NAMES = ("org/bert", "two", "org/roberta")
BODIES: dict[str, dict[str, Any]] = {
    "/v1/rerank": {"query": QUERY, "documents": DOCUMENTS},
    "/score": {"text_1": QUERY, "text_2": DOCUMENTS},
    "/cohere/v2/rerank": {"query": QUERY, "documents": DOCUMENTS},
    "/tei/rerank": {"query": QUERY, "texts": DOCUMENTS},
    "/sglang/v1/rerank": {"query": QUERY, "documents": DOCUMENTS},
    "/jina/v1/rerank": {"query": QUERY, "documents": DOCUMENTS},
    "/weaviate/rerank": {"query": QUERY, "documents": DOCUMENTS},
}


@dataclass
class Several:
    """The folders of models by name, and the scores that each gives when it is loaded alone."""

    folders: dict[str, Path]
    scores: dict[str, list[float]]

    def named(self, *names: str) -> list[Named]:
        return [Named((name, f"{name}-again"), LoadOptions(str(self.folders[name]), dtype="float32")) for name in names]

    def right(self, name: str, answer: requests.Response) -> bool:
        assert answer.status_code == 200, answer.text
        return scores_of(answer.json()) == pytest.approx(self.scores[name], abs=1e-5)


def scores_of(answer: Any) -> list[float]:
    """An answer's scores in the order of the documents."""
    listed = answer if isinstance(answer, list) else answer.get("results") or answer.get("data") or answer["scores"]
    if "document" in listed[0] and "index" not in listed[0]:
        return [one["score"] for one in listed]
    key = "relevance_score" if "relevance_score" in listed[0] else "score"
    return [one[key] for one in sorted(listed, key=lambda one: one["index"])]


@pytest.fixture(scope="module")
def several(bert_checkpoint: Path, bert_two_labels_checkpoint: Path, roberta_checkpoint: Path) -> Several:
    folders = dict(zip(NAMES, (bert_checkpoint, bert_two_labels_checkpoint, roberta_checkpoint), strict=True))
    scores = {}
    for name, folder in folders.items():
        with Reranker(str(folder), dtype="float32") as alone:
            scores[name] = alone.score([(QUERY, document) for document in DOCUMENTS])
    assert min(abs(one - other) for one, other in zip(scores["org/bert"], scores["two"], strict=True)) > 1e-3
    return Several(folders, scores)


@contextmanager
def serving(
    named: Sequence[Named],
    residence: Residence = Residence(),  # noqa: B008 - frozen
    **settings: Any,
) -> Iterator[tuple[str, Pool]]:
    pool = open_pool(named, residence)
    try:
        with running(pool, Settings(names=named[0].names, sleep_routes=residence.sleep_routes, **settings)) as url:
            yield url, pool
    finally:
        pool.close()


@pytest.fixture(scope="module")
def server(several: Several) -> Iterator[str]:
    """All models, none of which is loaded at the start."""
    with serving(several.named(*NAMES), Residence(first_use=True)) as (url, pool):
        assert not any(model.reranker for model in pool.models)
        yield url


def ask(url: str, name: str | None, path: str = "/v1/rerank") -> requests.Response:
    body = BODIES[path] if name is None else {**BODIES[path], "model": name}
    return requests.post(url + path, json=body, timeout=120)


class Gated:
    """A model that computes nothing until `gate` is set."""

    def __init__(self, reranker: Any) -> None:
        self.model = reranker._engine.model
        self.shares_prefix = self.model.shares_prefix
        self.gate, self.entered = threading.Event(), threading.Event()
        reranker._engine.model = self

    def __call__(self, batch: PackedBatch) -> Any:
        self.entered.set()
        assert self.gate.wait(60)
        return self.model(batch)


@pytest.mark.parametrize("path", BODIES)
def test_the_model_that_a_request_names_answers(several: Several, server: str, path: str) -> None:
    for name in reversed(NAMES):
        for alias in (name, f"{name}-again"):
            answer = ask(server, alias, path)
            assert several.right(name, answer)
            assert "X-Rerankd-Ignored" not in answer.headers
    assert several.right(NAMES[0], ask(server, None, path))
    assert several.right(NAMES[0], ask(server, "", path))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"error": {"message": ..., "type": "NotFoundError", "param": "model", "code": 404}}),
        ("/score", {"error": {"message": ..., "type": "NotFoundError", "param": "model", "code": 404}}),
        ("/cohere/v2/rerank", {"message": ...}),
        ("/tei/rerank", {"error": ..., "error_type": "Validation"}),
        ("/jina/v1/rerank", {"detail": ...}),
    ],
)
def test_a_name_that_no_model_has_is_a_404_of_its_api(server: str, path: str, body: dict[str, Any]) -> None:
    answer = ask(server, "org/other", path)
    assert answer.status_code == 404
    told = answer.json()
    text = str(told)
    assert "org/other" in text
    assert all(name in text for name in NAMES)
    assert told.keys() == body.keys()
    for key, value in body.items():
        if isinstance(value, dict):
            assert {**told[key], "message": ...} == value
        elif value is not ...:
            assert told[key] == value


def test_a_name_without_its_organisation_counts_where_names_are_not_exact(several: Several, server: str) -> None:
    assert several.right("org/roberta", ask(server, "roberta", "/cohere/v2/rerank"))
    assert ask(server, "roberta").status_code == 404
    assert ask(server, "4", "/tei/rerank").status_code == 404
    number = requests.post(f"{server}/tei/rerank", json={**BODIES["/tei/rerank"], "model": 4}, timeout=30)
    assert number.status_code == 422


def test_routes_around_the_models_know_them_all(server: str, several: Several) -> None:
    def get(path: str, **query: str) -> Any:
        answer = requests.get(server + path, params=query, timeout=30)
        assert answer.status_code == 200
        return answer.json()

    every = [name for own in NAMES for name in (own, f"{own}-again")]
    cards = get("/v1/models")["data"]
    assert [card["id"] for card in cards] == every
    assert [card["root"] for card in cards[::2]] == [str(several.folders[name]) for name in NAMES]
    assert get("/v1/models/two-again")["root"] == str(several.folders["two"])
    assert [card["id"] for card in get("/infinity/models")["data"]] == every
    assert [one["names"][0] for one in get("/playground/info")["models"]] == list(NAMES)
    assert get("/tei/info")["served_model_name"] == "org/bert"
    assert get("/tei/info", model="two")["model_id"] == str(several.folders["two"])
    assert requests.get(f"{server}/tei/info", params={"model": "other"}, timeout=30).status_code == 404
    tokens = requests.post(f"{server}/tokenize", json={"model": "org/roberta", "prompt": "panda"}, timeout=30).json()
    assert (
        tokens["tokens"] != requests.post(f"{server}/tokenize", json={"prompt": "panda"}, timeout=30).json()["tokens"]
    )
    assert get("/kserve/v2/models/two/ready") == {"name": "two", "ready": True}
    assert get("/kserve/v2/models/org/roberta")["name"] == "org/roberta"
    assert requests.get(f"{server}/kserve/v2/models/other/ready", timeout=30).status_code == 404
    for path in ("/health", "/ready", "/ping"):
        assert requests.get(server + path, timeout=30).status_code == 200


@pytest.mark.parametrize("path", ["/classify", "/invocations"])
def test_labels_are_known_to_the_first_call_of_a_model(several: Several, path: str) -> None:
    """A classifier's labels, which loading tells, decide what the call is and stand in its answer."""
    with serving(several.named("org/bert", "two"), Residence(first_use=True)) as (url, _):
        answers = [requests.post(url + path, json={"model": "two", "input": ["panda"]}, timeout=60) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        first, second = (answer.json()["data"] for answer in answers)
        assert first == second
        assert first[0]["num_classes"] == 2
        assert first[0]["label"].startswith("LABEL_")


def test_metrics_say_which_model(several: Several) -> None:
    with serving(several.named("org/bert", "two"), Residence(first_use=True)) as (url, _):
        for name in ("two", "two", "other"):
            ask(url, name)
        said = requests.get(f"{url}/metrics", timeout=30).text
    for line in (
        'rerankd_documents_total{model_name="two"} 8.0',
        'rerankd_requests_total{dialect="vllm",model_name="two",route="/v1/rerank",status="200"} 2.0',
        'rerankd_requests_total{dialect="vllm",model_name="none",route="/v1/rerank",status="404"} 1.0',
        'rerankd_batches_total{model_name="org/bert"} 0.0',
        'rerankd_batches_total{model_name="two"} 3.0',  # one of them when it was loaded
        'rerankd_model_loaded{model_name="org/bert"} 0.0',
        'rerankd_model_loaded{model_name="two"} 1.0',
        'rerankd_model_loads_total{model_name="two"} 1.0',
    ):
        assert line in said.splitlines()


def test_models_that_idle_are_unloaded_and_loaded_again_without_a_wrong_answer(several: Several) -> None:
    """Clients of two models ask one after another; each model is unloaded and loaded several times meanwhile."""
    names = ("org/bert", "two")
    with serving(several.named(*names), Residence(idle_unload=0.001)) as (url, pool):
        enough = threading.Event()

        def client(number: int) -> list[bool]:
            right = []
            while not enough.is_set() and len(right) < 500:
                name = names[(number + len(right)) % 2]
                right.append(several.right(name, ask(url, name)))
                if all(model.loads > 2 for model in pool.models):
                    enough.set()
            return right

        with ThreadPoolExecutor(3) as clients:
            answers = [one for done in clients.map(client, range(3)) for one in done]
        assert enough.is_set()
        assert all(answers)
        until(lambda: not any(model.reranker for model in pool.models))
        # What was counted of models that are gone: a batch of each load, and those of the answers.
        assert pool.load().batches > sum(model.loads for model in pool.models)


class Closing(FakeReranker):
    """A reranker that says whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_model_that_is_used_again_while_it_waits_to_be_unloaded_stays() -> None:
    """One model idles while another is loaded; a call of it comes before that load ends, and outlives it."""
    gate = threading.Event()

    def slow() -> Closing:
        assert gate.wait(60)
        return Closing()

    async def scenario() -> None:
        models = first, second = Model(("first",), INFO, Closing), Model(("second",), INFO, slow)
        pool = Pool(models, idle_unload=0.01)

        async def use() -> None:
            async with pool.lend(second):
                pass

        async with pool.lend(first):
            loading = asyncio.ensure_future(use())
            while second.loading is None:
                await asyncio.sleep(0)
        while not pool._tasks:
            await asyncio.sleep(0.001)
        async with pool.lend(first) as reranker:
            gate.set()
            await loading
            while any(not task.done() for task in pool._tasks):
                await asyncio.sleep(0.001)
            assert first.reranker is reranker
            assert isinstance(reranker, Closing)
            assert not reranker.closed
        while not reranker.closed:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_client_that_leaves_does_not_end_the_load_that_others_wait_for(several: Several) -> None:
    with serving(several.named("org/bert", "two"), Residence(first_use=True)) as (url, pool):
        model, gate = pool.models[1], threading.Event()
        make = model.make
        assert make is not None

        def slow() -> Any:
            assert gate.wait(60)
            return make()

        model.make = slow
        with ThreadPoolExecutor(1) as clients:
            waiting = clients.submit(ask, url, "two")
            until(lambda: len(model.users) == 1)
            leaving = open_call(url, {**BODIES["/v1/rerank"], "model": "two"})
            until(lambda: len(model.users) == 2)
            leaving.close()
            until(lambda: len(model.users) == 1)
            gate.set()
            assert several.right("two", waiting.result())
        assert model.loads == 1


def test_a_request_that_waits_for_a_model_has_its_time_and_the_load_goes_on(several: Several) -> None:
    with serving(several.named("org/bert", "two"), Residence(first_use=True), request_timeout=0.2) as (url, pool):
        model, gate = pool.models[1], threading.Event()
        make = model.make
        assert make is not None

        def slow() -> Any:
            assert gate.wait(60)
            return make()

        model.make = slow
        assert ask(url, "two").status_code == 504
        gate.set()
        until(lambda: model.reranker is not None)
        assert model.loads == 1


@pytest.mark.parametrize("error", [ModelError("the disk is gone"), RuntimeError("the disk is gone")])
def test_a_model_that_cannot_be_loaded_is_tried_again_after_a_while(several: Several, error: Exception) -> None:
    """Else whoever asks for it again and again keeps the others from being loaded."""
    with serving(several.named("org/bert", "two"), Residence(first_use=True)) as (url, pool):
        model, tries = pool.models[0], []

        def fails() -> Any:
            tries.append(monotonic())
            raise error

        model.make, works = fails, model.make
        for _ in range(5):
            refused = ask(url, None)
            assert refused.status_code == 500
            assert "cannot be loaded" in refused.text
            assert "disk" not in refused.text
        assert all(after - before >= LEAST_PAUSE for before, after in pairwise(tries))
        assert several.right("two", ask(url, "two"))
        model.make = works
        until(lambda: ask(url, None).status_code == 200)  # another disk


def test_memory_is_for_the_models_that_were_used_last(several: Several) -> None:
    two = several.named("org/bert", "two")
    sizes = [model.size for model in open_pool(two, Residence(first_use=True, memory=1 << 40)).models]
    weights = several.folders["org/bert"] / "model.safetensors"
    assert sizes[0] == pytest.approx(weights.stat().st_size, rel=0.1)
    with serving(two, Residence(memory=max(sizes) + min(sizes) // 2)) as (url, pool):
        first, second = pool.models
        assert [model.reranker is not None for model in pool.models] == [True, False]  # no room for both
        for name, model, other in (("two", second, first), ("org/bert", first, second)):
            assert several.right(name, ask(url, name))
            assert (model.reranker is not None, other.reranker) == (True, None)
        gated = Gated(first.reranker)
        with ThreadPoolExecutor(1) as client:
            waiting = client.submit(ask, url, "org/bert")
            assert gated.entered.wait(60)
            refused = ask(url, "two")
            assert refused.status_code == 503
            assert "`two`" in refused.text
            assert "--max-model-memory-gb" in refused.text
            assert refused.headers["Retry-After"] == "1"
            gated.gate.set()
            assert several.right("org/bert", waiting.result())
        assert several.right("two", ask(url, "two"))
    with pytest.raises(ModelError, match=r"org/bert take .* GB, and --max-model-memory-gb allows"):
        open_pool(two, Residence(memory=sizes[0] - 1))


def test_calls_that_do_not_end_keep_their_model_awake(several: Several) -> None:
    with serving(several.named("org/bert", "two"), Residence(sleep_routes=True), shutdown_timeout=0.2) as (url, pool):
        gated = Gated(pool.models[0].reranker)
        with ThreadPoolExecutor(1) as clients:
            waiting = clients.submit(ask, url, "org/bert")
            assert gated.entered.wait(60)
            late = requests.post(f"{url}/sleep?mode=wait", timeout=60)
            assert late.status_code == 504
            assert "`org/bert`" in late.json()["error"]["message"]
            assert "`two`" not in late.json()["error"]["message"]
            assert not any(model.asleep for model in pool.models)
            assert all(model.reranker for model in pool.models)
            gated.gate.set()
            assert several.right("org/bert", waiting.result())
        for name in ("org/bert", "two"):
            assert several.right(name, ask(url, name))
        assert requests.post(f"{url}/sleep?mode=wait", timeout=60).status_code == 200
        assert all(model.asleep for model in pool.models)


def test_a_model_sleeps_until_it_is_woken(several: Several) -> None:
    with serving(several.named("org/bert", "two"), Residence(sleep_routes=True)) as (url, pool):

        def post(path: str) -> requests.Response:
            return requests.post(url + path, timeout=60)

        def asleep(query: str = "") -> bool:
            told: bool = requests.get(f"{url}/is_sleeping{query}", timeout=30).json()["is_sleeping"]
            return told

        gated = Gated(pool.models[0].reranker)
        with ThreadPoolExecutor(2) as clients:
            waiting = clients.submit(ask, url, None)
            assert gated.entered.wait(60)
            sleeping = clients.submit(post, "/sleep?level=1&model=org/bert")
            refused = waiting.result()
            assert refused.status_code == 503
            assert "/wake_up" in refused.json()["error"]["message"]
            gated.gate.set()
            assert sleeping.result().status_code == 200
        assert pool.models[0].reranker is None
        assert ask(url, "org/bert").status_code == 503
        assert several.right("two", ask(url, "two"))
        assert (asleep(), asleep("?model=org/bert"), asleep("?model=two")) == (False, True, False)
        for name, status in (("org/bert", 503), ("two", 200)):
            assert requests.get(f"{url}/v2/models/{name}/ready", timeout=30).status_code == status
        assert requests.get(f"{url}/ready", timeout=30).status_code == 200

        gated, known = Gated(pool.models[1].reranker), weakref.ref(pool.models[1].reranker)  # type: ignore[arg-type]
        with ThreadPoolExecutor(2) as clients:
            waiting = clients.submit(ask, url, "two")
            assert gated.entered.wait(60)
            sleeping = clients.submit(post, "/sleep?mode=wait")
            until(lambda: asleep("?model=two"))
            assert ask(url, "two").status_code == 503
            gated.gate.set()
            assert several.right("two", waiting.result())
            assert sleeping.result().status_code == 200
        assert asleep()
        gc.collect()
        assert known() is None  # its memory is free
        assert [requests.get(url + path, timeout=30).status_code for path in ("/ready", "/health")] == [503, 200]
        assert ASLEEP.__traceback__ is None  # it would grow with each call, and keep what the calls held

        assert post("/wake_up?tags=weights").headers["X-Rerankd-Ignored"] == "tags"
        assert not asleep()
        for name in ("org/bert", "two"):
            assert several.right(name, ask(url, name))
        assert [post(f"/sleep?{query}").status_code for query in ("level=0", "mode=keep", "model=other")] == [
            400,
            400,
            404,
        ]


def test_a_model_that_cannot_be_loaded_keeps_no_other_asleep(several: Several, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(several.folders["org/bert"], folder)
    named = [Named(("moved",), LoadOptions(str(folder), dtype="float32")), *several.named("two")]
    with serving(named, Residence(sleep_routes=True)) as (url, pool):
        assert requests.post(f"{url}/sleep", timeout=60).status_code == 200
        folder.rename(tmp_path / "elsewhere")
        woken = requests.post(f"{url}/wake_up", timeout=60)
        assert woken.status_code == 500
        assert "moved" in woken.json()["error"]["message"]
        assert [model.asleep for model in pool.models] == [False, False]
        assert several.right("two", ask(url, "two"))


@pytest.mark.parametrize("mode", ["abort", "wait"])
def test_models_that_are_put_to_sleep_while_others_are_woken_sleep(several: Several, mode: str) -> None:
    with serving(several.named("org/bert", "two"), Residence(sleep_routes=True)) as (url, pool):
        assert requests.post(f"{url}/sleep", timeout=60).status_code == 200
        first, gate, begins = pool.models[0], threading.Event(), threading.Event()
        begin = first.begin

        def slowly() -> Any:
            begins.set()
            assert gate.wait(60)
            return begin()

        first.begin = slowly  # type: ignore[method-assign]
        with ThreadPoolExecutor(2) as clients:
            woken = clients.submit(requests.post, f"{url}/wake_up", timeout=60)
            assert begins.wait(60)
            sleeping = clients.submit(requests.post, f"{url}/sleep?mode={mode}", timeout=60)
            until(lambda: first.asleep)
            gate.set()
            assert sleeping.result().status_code == 200
            assert woken.result().status_code in (200, 503)
        assert [model.asleep for model in pool.models] == [True, True]
        until(lambda: not any(model.reranker for model in pool.models))


def test_a_page_of_another_site_puts_no_model_to_sleep(several: Several) -> None:
    with serving(several.named("two"), Residence(sleep_routes=True)) as (url, pool):
        for headers in (
            {"Origin": "https://evil.example", "Content-Type": "text/plain"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Origin": "null"},
        ):
            for path in ("/sleep", "/wake_up"):
                assert requests.post(url + path, headers=headers, data=b"x", timeout=30).status_code == 403
        assert not pool.models[0].asleep
        for headers in ({"Origin": url}, {"Sec-Fetch-Site": "same-origin", "Origin": url}):
            assert requests.post(f"{url}/sleep", headers=headers, timeout=60).status_code == 200


def test_a_probe_loads_no_model(several: Several) -> None:
    with serving(several.named("org/bert", "two"), Residence(first_use=True)) as (url, pool):
        assert requests.get(f"{url}/health_generate?model=two", timeout=60).status_code == 200
        assert not any(model.reranker for model in pool.models)


def test_sleep_routes_are_there_where_they_are_asked_for_and_behind_the_key(several: Several) -> None:
    named = several.named("org/bert")
    with serving(named, Residence(first_use=True)) as (url, _):
        assert requests.post(f"{url}/sleep", timeout=30).status_code == 404
    with serving(named, Residence(first_use=True, sleep_routes=True), keys=("key",)) as (url, pool):
        for call in (requests.post(f"{url}/sleep", timeout=30), requests.get(f"{url}/is_sleeping", timeout=30)):
            assert call.status_code == 401
        assert requests.post(f"{url}/sleep", headers={"Authorization": "Bearer key"}, timeout=30).status_code == 200
        assert pool.models[0].asleep


def test_a_full_queue_of_one_model_keeps_nobody_from_another(several: Several) -> None:
    with serving(several.named("org/bert", "two"), max_queued_calls=1) as (url, pool):
        own = ComputeThread()  # else the other model waits for the batch that the gate holds
        pool.models[0].reranker._engine._compute = own.run  # type: ignore[union-attr]
        gated = Gated(pool.models[0].reranker)
        with ThreadPoolExecutor(2) as clients:
            running_one = clients.submit(ask, url, None)
            assert gated.entered.wait(60)
            queued = clients.submit(ask, url, None)
            until(lambda: pool.models[0].load().waiting > 0)
            assert ask(url, None).status_code == 429
            assert several.right("two", ask(url, "two"))
            gated.gate.set()
            assert several.right("org/bert", running_one.result())
            assert several.right("org/bert", queued.result())


def test_engines_that_share_a_thread_take_turns(several: Several) -> None:
    """One batch is computed at a time, in one thread, and neither model waits for all batches of the other."""
    threads: set[str] = set()
    order: list[str] = []

    def watched(name: str, model: Callable[[PackedBatch], Any]) -> Any:
        def run(batch: PackedBatch) -> Any:
            threads.add(threading.current_thread().name)
            order.append(name)
            return model(batch)

        vars(run)["shares_prefix"] = model.shares_prefix  # type: ignore[attr-defined]
        return run

    thread = ComputeThread()
    folders = [str(several.folders[name]) for name in ("org/bert", "two")]
    with (
        Reranker(folders[0], dtype="float32", max_batch_tokens=16, compute=thread.run) as first,
        Reranker(folders[1], dtype="float32", max_batch_tokens=16, compute=thread.run) as second,
    ):
        gate = threading.Event()
        blocked = threading.Thread(target=thread.run, args=(lambda: gate.wait(60),))
        blocked.start()
        for name, reranker in (("first", first), ("second", second)):
            reranker._engine.model = watched(name, reranker._engine.model)
        with ThreadPoolExecutor(2) as clients:
            pairs = [(QUERY, document) for document in DOCUMENTS * 5]
            scores = [clients.submit(reranker.score, pairs) for reranker in (first, second)]
            until(lambda: all(reranker.load().running for reranker in (first, second)))
            gate.set()
            found = [one.result() for one in scores]
        blocked.join()
    assert found[0] == pytest.approx(several.scores["org/bert"] * 5, abs=1e-5)
    assert found[1] == pytest.approx(several.scores["two"] * 5, abs=1e-5)
    assert len(threads) == 1
    assert not threads & {"rerankd-engine"}
    assert len(order) > 8
    assert sum(one != other for one, other in pairwise(order)) > len(order) // 2


def test_models_that_cannot_be_served_together_are_refused(several: Several) -> None:
    (named,) = several.named("two")
    with pytest.raises(ModelError, match="Two models have the name two"):
        open_pool([named, named], Residence())
    missing = Named(("missing",), LoadOptions("/nowhere/at/all"))
    with pytest.raises(ModelError, match="/nowhere/at/all"):
        open_pool([named, missing], Residence(first_use=True))
