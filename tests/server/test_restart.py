"""A server that is killed in the middle of its work and started again on its port: clients that retry lose nothing."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
import requests

from rerankd import Reranker
from tests.server.launched import SERVE, launched

CLIENTS, REQUESTS, KILLS = 8, 25, 1
DOCUMENTS = [f"document {number} " + "of words " * (number % 17) for number in range(40)]


class Client(threading.Thread):
    """Sends its requests one after another, each again until it is answered."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.number = number
        self.scores: list[dict[int, float]] = []
        self.lost = 0

    def run(self) -> None:
        for turn in range(REQUESTS):
            places = [(self.number + turn * step) % len(DOCUMENTS) for step in range(1, 9)]
            body = {"query": f"query {self.number}", "documents": [DOCUMENTS[place] for place in places]}
            while True:
                try:
                    answer = requests.post(f"{self.url}/v1/rerank", json=body, timeout=60)
                except requests.ConnectionError:
                    self.lost += 1
                    time.sleep(0.05)
                    continue
                if answer.status_code == 200:
                    break
                assert answer.status_code == 503
            self.scores.append({places[one["index"]]: one["relevance_score"] for one in answer.json()["results"]})


def test_clients_that_retry_lose_nothing_when_the_server_is_killed(bert_checkpoint: Path) -> None:
    clients: list[Client] = []
    port = "0"
    for _ in range(KILLS):
        killed = -signal.SIGKILL
        with launched(SERVE, str(bert_checkpoint), "--dtype", "float32", port=port, exit_code=killed) as server:
            if not clients:
                port = server.port
                clients = [Client(server.url, number) for number in range(CLIENTS)]
                for client in clients:
                    client.start()
            answered = sum(len(client.scores) for client in clients)
            while sum(len(client.scores) for client in clients) < answered + 20:
                time.sleep(0.01)
            server.process.kill()
            server.process.wait(timeout=30)
    with launched(SERVE, str(bert_checkpoint), "--dtype", "float32", port=port):
        for client in clients:
            client.join(timeout=120)
    assert all(len(client.scores) == REQUESTS for client in clients)
    assert sum(client.lost for client in clients) > 0
    with Reranker(str(bert_checkpoint), dtype="float32") as reranker:
        for client in clients:
            result = reranker.rerank(f"query {client.number}", DOCUMENTS)
            wanted = {one.index: one.score for one in result}
            for scores in client.scores:
                assert scores == pytest.approx({place: wanted[place] for place in scores}, abs=1e-5)
