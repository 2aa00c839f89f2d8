"""A model in two processes, as users run it: the scores of one, and one end for both."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import requests
import torch
from torch import Tensor

from rerankd import Reranker
from rerankd.backends.ranks import Ranks
from rerankd.core import EngineDead, EngineError, ModelError, PackedBatch, PromptGroup, Segment
from rerankd.layers.shard import Shard
from rerankd.models.visual_decoder import VisualDecoder
from rerankd.options import LoadOptions
from rerankd.parallel import leader, messages
from rerankd.parallel.leader import Followers
from tests.media.patterns import pattern
from tests.server.launched import SERVE, launched
from tests.server.test_clients_that_leave import until

QUERY = "what is panda?"
DOCUMENTS = ["hi", "The giant panda is a bear of China.", "a b c d"]
PLAINLY = {"device": "cpu", "dtype": "float32", "backend": "torch"}
FLAGS = ("--device", "cpu", "--dtype", "float32")


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def scores(reranker: Reranker, documents: list[Any]) -> list[float]:
    return sorted_scores(reranker.rerank(QUERY, documents).documents)


def sorted_scores(documents: Any) -> list[float]:
    return [document.score for document in sorted(documents, key=lambda document: document.index)]


def test_two_ranks_score_and_fail_as_one(qwen3_vl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = {"image": PIL.Image.fromarray(pattern(96, 64)), "text": "a picture"}
    with Reranker(str(qwen3_vl_checkpoint), **PLAINLY) as whole:
        expected = scores(whole, [*DOCUMENTS, picture])
    monkeypatch.setattr(leader, "FAIL_TOGETHER_SECONDS", 0.5)
    with Reranker(str(qwen3_vl_checkpoint), **PLAINLY, tensor_parallel_size=2) as reranker:
        assert reranker.info.tensor_parallel_size == 2
        (follower,) = children(os.getpid())
        assert scores(reranker, [*DOCUMENTS, picture]) == pytest.approx(expected, abs=1e-5)
        # A batch that no rank can compute is no reason to end.
        beyond = PromptGroup(Segment([10**7]), (Segment([1, 2]),), (False,))
        with pytest.raises(EngineError, match="index out of range"):
            reranker._engine.submit(beyond).result(60)
        assert scores(reranker, DOCUMENTS) == pytest.approx(expected[:3], abs=1e-5)

        # One that rank 0 alone fails on leaves rank 1 waiting.
        def fail(model: Any, batch: PackedBatch) -> Tensor:
            raise ValueError("no memory here")

        monkeypatch.setattr(VisualDecoder, "__call__", fail)
        with pytest.raises(EngineDead, match=r"Rank 1 of 2 did not compute what rank 0 did"):
            scores(reranker, DOCUMENTS)
    assert not is_alive(follower)


def test_a_rank_that_fails_alone_ends_the_engine(bert_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "FAIL_TOGETHER_SECONDS", 0.5)

    def broadcast(batch: PackedBatch, followers: list[Any], ranks: Ranks) -> None:
        parts = torch.stack([batch.token_ids, batch.positions])
        for follower in followers:
            follower.send(messages.Batch(2, len(batch.token_ids), (), ()))  # of no groups
        ranks.broadcast(parts)

    with Reranker(str(bert_checkpoint), **PLAINLY, tensor_parallel_size=2) as reranker:
        (follower,) = children(os.getpid())
        monkeypatch.setattr(leader, "broadcast", broadcast)
        with pytest.raises(EngineDead, match=r"Rank 1 of 2 (failed alone|did not compute)"):
            scores(reranker, DOCUMENTS)
        assert isinstance(reranker.failure, EngineDead)
    assert not is_alive(follower)


def test_a_rank_that_cannot_load_is_told(tmp_path: Path) -> None:
    followers = Followers(LoadOptions(str(tmp_path), device="cpu", tensor_parallel_size=2), Ranks(Shard(0, 2)))
    try:
        with pytest.raises(ModelError, match=r"Rank 1 of 2 could not load the model: .*config\.json"):
            followers.lead(None, torch.device("cpu"))  # type: ignore[arg-type]
    finally:
        followers.close()


def test_a_server_of_two_processes_sleeps_and_ends_when_one_dies(xlmr_checkpoint: Path) -> None:
    with Reranker(str(xlmr_checkpoint), **PLAINLY) as whole:
        expected = scores(whole, DOCUMENTS)
    with launched(SERVE, str(xlmr_checkpoint), *FLAGS, "-tp", "2", "--sleep-routes", exit_code=1) as server:
        assert re.search(r"device=cpu dtype=float32 backend=torch tensor_parallel_size=2$", server.said, re.MULTILINE)
        (follower,) = children(server.process.pid)
        # What a terminal or a supervisor sends to all processes is for rank 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(follower, number)
        body = {"query": QUERY, "documents": DOCUMENTS}
        assert requests.post(f"{server.url}/sleep", timeout=60).status_code == 200
        assert not is_alive(follower)
        assert requests.post(f"{server.url}/v1/rerank", json=body, timeout=60).status_code == 503
        assert requests.post(f"{server.url}/wake_up", timeout=60).status_code == 200
        (follower,) = children(server.process.pid)
        results = requests.post(f"{server.url}/v1/rerank", json=body, timeout=60).json()["results"]
        found = [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]
        assert found == pytest.approx(expected, abs=1e-5)
        os.kill(follower, signal.SIGKILL)
        said, _ = server.process.communicate(timeout=60)
        server.said += said
        assert "error: The engine has failed: The process of rank 1 of 2 has ended by SIGKILL." in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_process_is_left_when_the_server_ends(bert_checkpoint: Path, number: signal.Signals, code: int) -> None:
    with launched(SERVE, str(bert_checkpoint), *FLAGS, "--tp-size", "2", exit_code=code) as server:
        (follower,) = children(server.process.pid)
        server.stop(number)
        until(lambda: not is_alive(follower))
