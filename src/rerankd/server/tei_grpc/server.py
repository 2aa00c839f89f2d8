"""The server of TEI's gRPC API, with gRPC's health checks and reflection, in the event loop of the HTTP server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from starlette.types import ASGIApp

from rerankd.server.access import Keys
from rerankd.server.run import BESIDE, ListenError, bind, most_connections
from rerankd.server.settings import Settings
from rerankd.server.tei_grpc.calls import App
from rerankd.server.tei_grpc.intake import most_bytes
from rerankd.server.tei_grpc.methods import PROTO, Methods
from rerankd.server.tls import Tls

UNCOMPRESSED = 1
"""The bit of that algorithm."""
SECONDS_BETWEEN_LOOKS = 1.0
"""Between two looks whether a client that watches the server's health has news to hear."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits on clients.

    connections: open at a time; more are closed at once
    streams: calls of one connection at a time; its client has more wait
    handshake_seconds: the time in which a connection has to speak HTTP/2
    idle_seconds: after which a connection without a call is closed; its client opens another when it has one
    """

    connections: int = 4096
    streams: int = 256
    handshake_seconds: float = 30.0
    idle_seconds: float = 300.0


class GrpcServer:
    """TEI's services on a port of their own.

    port: the port that the server listens on; before the start, the requested port
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        settings: Settings,
        ready: Callable[[], bool],
        tls: Tls | None = None,
        bounds: Bounds = Bounds(),
    ) -> None:
        """port: 0 for one that the system picks
        ready: whether calls are answered, for health checks

        Raises ListenError for a certificate that cannot be used.
        """
        self.port = port
        self._app = app
        self._host = host
        self._settings = settings
        self._ready = ready
        self._tls = tls
        self._bounds = bounds
        self._credentials = _credentials(tls) if tls else None
        self._server: Any = None

    async def start(self, tasks: set[asyncio.Task[None]]) -> None:
        """Take calls, each of which is one of `tasks` while it is answered. Raises ListenError."""
        settings, bounds = self._settings, self._bounds
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", most_bytes(settings)),
                ("grpc.max_send_message_length", -1),
                # gRPC does not limit the size of a decompressed message.
                ("grpc.compression_enabled_algorithms_bitset", UNCOMPRESSED),
                ("grpc.max_concurrent_streams", bounds.streams),
                ("grpc.max_allowed_incoming_connections", min(bounds.connections, most_connections() // BESIDE)),
                ("grpc.server_handshake_timeout_ms", int(1000 * bounds.handshake_seconds)),
                ("grpc.max_connection_idle_ms", int(1000 * bounds.idle_seconds)),
                # Otherwise two servers could share a port, and each would get some of the calls.
                ("grpc.so_reuseport", 0),
            ]
        )
        methods = Methods(App(self._app, "https" if self._tls else "http", tasks), settings)
        services = grpc.protos(PROTO).DESCRIPTOR.services_by_name.values()
        health = health_pb2.DESCRIPTOR.services_by_name["Health"]
        names = [service.full_name for service in services]
        handlers = {service.full_name: methods.handlers(service) for service in services}
        handlers[health.full_name] = self._health({"", health.full_name, *names})
        for name, method_handlers in handlers.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, method_handlers),))
        if settings.docs and not settings.keys:  # as /docs, which needs a key where the server has one
            reflection.enable_server_reflection([*handlers, reflection.SERVICE_NAME], server)
        host = f"[{self._host}]" if ":" in self._host else self._host
        address = f"{host}:{self.port}"
        try:
            if self._credentials:
                self.port = server.add_secure_port(address, self._credentials)
            else:
                self.port = server.add_insecure_port(address)
        except RuntimeError:
            raise ListenError(f"Cannot listen for gRPC on {address}; choose another port with --grpc-port.") from None
        await server.start()
        self._server = server

    async def stop(self, seconds: float) -> None:
        """Accept no more calls. Streams that clients hold open are ended after `seconds`."""
        if self._server is not None:
            await self._server.stop(seconds)

    def _health(self, names: set[str]) -> dict[str, grpc.RpcMethodHandler]:
        """The handlers of health checks: all services are as well as the server is."""
        reply = health_pb2.HealthCheckResponse
        keys = Keys(self._settings.keys if self._settings.protect_all else ())
        draining = self._settings.draining

        async def admit(context: Any) -> None:
            if not keys.known(dict(context.invocation_metadata()).get("authorization", "")):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "An API key that this server knows is required.")

        def status(name: str) -> Any:
            if name not in names:
                return reply.SERVICE_UNKNOWN
            return reply.SERVING if self._ready() else reply.NOT_SERVING

        async def check(request: Any, context: Any) -> Any:
            await admit(context)
            if (current := status(request.service)) == reply.SERVICE_UNKNOWN:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service!r}.")
            return reply(status=current)

        async def watch(request: Any, context: Any) -> AsyncIterator[Any]:
            await admit(context)
            last_sent = None
            while True:
                is_draining, current = draining.is_set(), status(request.service)
                if current != last_sent:
                    last_sent = current
                    yield reply(status=current)
                if is_draining:
                    return
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

        codec = health_pb2.HealthCheckRequest.FromString, reply.SerializeToString
        return {
            "Check": grpc.unary_unary_rpc_method_handler(check, *codec),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, *codec),
        }


def check(host: str, port: int, tls: Tls | None) -> None:
    """Find what would stop the server's start. Raises ListenError.

    A model need not be loaded first to learn that another program has the port, or that the certificate is no good.
    """
    with closing(bind(host, port, "--grpc-port")):
        pass
    if tls:
        _credentials(tls)


def _credentials(tls: Tls) -> Any:
    """Raises ListenError."""
    if tls.password is not None:
        raise ListenError(
            "gRPC cannot read a private key with a password; give --ssl-keyfile one without, or no --grpc-port."
        )
    # A client's certificate that is optional opens nothing: gRPC does not ask for it.
    required = tls.client_certificates == ssl.CERT_REQUIRED
    try:
        certificate = Path(tls.certificate).read_bytes()
        key = Path(tls.key or tls.certificate).read_bytes()
        authorities = Path(tls.authorities).read_bytes() if tls.authorities and required else None
    except OSError as error:
        raise ListenError(f"gRPC cannot be served with these --ssl files: {error}.") from None
    return grpc.ssl_server_credentials([(key, certificate)], authorities, required)
