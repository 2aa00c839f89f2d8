"""A Ray cluster of two nodes on this machine, its replicas, and clients that try again."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds until what has to happen at some time is given up. Nothing is measured by it."""


@dataclass
class RayCluster:
    """Two nodes, each of which has room for one replica that asks for one `place`."""

    url: str
    folder: Path

    def deploy(self, application: dict[str, Any]) -> None:
        """Start an application of a Serve configuration file, as `serve deploy` does."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        config = ServeDeploySchema.model_validate({"applications": [application]})
        _get_global_client().deploy_apps(config, _blocking=False)

    def replicas(self, application: str) -> dict[str, dict[str, Any]]:
        """The running replicas by their ids, as Ray's controller describes them."""
        from ray.serve.context import _get_global_client

        found = _get_global_client().get_serve_details()["applications"].get(application, {"deployments": {}})
        return {
            replica["replica_id"]: replica
            for one in found["deployments"].values()
            for replica in one["replicas"]
            if replica["state"] == "RUNNING"
        }


@contextmanager
def cluster() -> Iterator[RayCluster]:
    """A cluster that ends with the context."""
    from ray.cluster_utils import Cluster

    import ray
    from ray import serve

    # The paths of its sockets have to be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
        patch.setenv("PYTHONPATH", paths)
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("HF_HUB_OFFLINE", "1")
        # The one proxy would send all requests to the replica on its own node.
        patch.setenv("RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING", "0")
        patch.setenv("RAY_metrics_report_interval_ms", "500")
        (folder / "ray").mkdir()
        node: dict[str, Any] = {"num_cpus": 2, "resources": {"place": 1}}
        made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            made.add_node(**node)
            ray.init(address=made.address, log_to_driver=False)
            port = free_port()
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            yield RayCluster(f"http://127.0.0.1:{port}", folder / "ray")
            serve.shutdown()
        finally:
            ray.shutdown()
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The condition's value once that is true."""
    ends = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < ends, what
        time.sleep(0.1)
    return value


@dataclass
class Clients:
    """Threads that send one request over and over, each again after a 5xx or a broken connection.

    pause: seconds from an answer to the next request
    answers: of each thread, how many were right
    tried: statuses of the answers that had a request sent again; 0 for none
    wrong: what else came back
    """

    url: str
    body: Mapping[str, Any]
    right: Callable[[Any], bool]
    count: int
    headers: Mapping[str, str] = field(default_factory=dict)
    pause: float = 0.0
    tried: list[int] = field(default_factory=list)
    wrong: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answers = [0] * self.count
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self.count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def each_has(self, more: int) -> bool:
        """Wait until each thread has so many more right answers than now."""
        before = list(self.answers)
        wait_for(
            lambda: self.wrong or all(now >= then + more for now, then in zip(self.answers, before, strict=True)),
            f"clients wait for answers: {self.answers} after {before}, {self.tried[-5:]}",
        )
        return not self.wrong

    def _run(self, number: int) -> None:
        with httpx.Client(timeout=PATIENCE, headers=dict(self.headers)) as client:
            while not self._stop.is_set():
                if self._answered(client):
                    self.answers[number] += 1
                self._stop.wait(self.pause)

    def _answered(self, client: httpx.Client) -> bool:
        """Send the request until it is answered. Whether the answer is right."""
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            try:
                reply = client.post(self.url, json=self.body)
            except httpx.TransportError:
                self.tried.append(0)
                continue
            if reply.status_code < 500:
                break
            self.tried.append(reply.status_code)
            time.sleep(0.05)
        else:
            self.wrong.append("no answer")
            return False
        if reply.status_code != 200 or not self.right(reply.json()):
            self.wrong.append((reply.status_code, reply.text[:500]))
            return False
        return True
