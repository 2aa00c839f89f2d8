"""A server of TEI's gRPC API beside one of HTTP, as `rerankd serve` starts them, and stubs of gRPC's own client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
import uvicorn

from rerankd.server.app import create_app
from rerankd.server.pool import Pool
from rerankd.server.run import Lifetime, Server, bind
from rerankd.server.service import Serves
from rerankd.server.settings import Settings
from rerankd.server.tei_grpc.methods import PROTO
from rerankd.server.tei_grpc.server import Bounds, GrpcServer

tei, services = grpc.protos_and_services(PROTO)


@dataclass
class Both:
    """url: of HTTP; channel: to the port of gRPC, without a key"""

    url: str
    port: int
    channel: Any
    server: Server

    def __getattr__(self, name: str) -> Any:
        """A service's stub: `both.Rerank.Rerank(...)`."""
        return getattr(stubs(self.channel), name)


def stubs(channel: Any) -> Any:
    names = tei.DESCRIPTOR.services_by_name
    return SimpleNamespace(**{name: getattr(services, f"{name}Stub")(channel) for name in names})


@contextmanager
def both(models: Serves | Pool, settings: Settings, bounds: Bounds = Bounds()) -> Iterator[Both]:  # noqa: B008
    app = create_app(models, settings)
    ready = lambda: not (settings.draining.is_set() or models.failure)  # noqa: E731
    beside = GrpcServer(app, "127.0.0.1", 0, settings, ready, bounds=bounds)
    started = threading.Event()
    lifetime = Lifetime(started.set, lambda: None, 20.0, settings.draining)
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
        server = Server(config, lifetime, beside)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert started.wait(30)
            with grpc.insecure_channel(f"127.0.0.1:{beside.port}") as channel:
                yield Both(f"http://127.0.0.1:{listener.getsockname()[1]}", beside.port, channel, server)
        finally:
            server.drain()
            thread.join(30)
    assert not thread.is_alive()
