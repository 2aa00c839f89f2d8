"""Options of the two commands that start a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rerankd.cli.door import Door
from rerankd.cli.groups import Group, Option
from rerankd.cli.options import LOADING, NAMED, TOKENS, DialectName
from rerankd.cli.start import Launch, Media
from rerankd.cli.values import processor_kwargs, strings
from rerankd.limits import WHAT, RequestLimits
from rerankd.media.limits import MediaLimits
from rerankd.server.settings import MEGABYTE, Residence, Settings

QUEUED_TOKENS = 8 << 20
"""Each of them takes some 40 bytes."""


def _bytes(megabytes: float) -> int:
    return int(megabytes * MEGABYTE)


def _negated(flag: bool) -> bool:
    return not flag


def _or_none(seconds: float) -> float | None:
    return seconds or None


def _tuple(values: list[Any] | None) -> tuple[Any, ...]:
    return tuple(values or ())


LAUNCH = Group(
    Launch,
    {
        "host": Option("Address to listen on; 0.0.0.0 for all addresses."),
        "port": Option("Port to listen on; 0 for a free one.", typed={"min": 0, "max": 65535}),
        "grpc_port": Option(
            "Port of TEI's gRPC API, beside the HTTP port; 0 for a free one. Needs rerankd[grpc]. [default: none]",
            typed={"min": 0, "max": 65535},
        ),
        "log_level": Option(
            "Lowest level of the lines to log.",
        ),
        "log_format": Option("Format of the log: text, or a JSON object in each line."),
        "access_log": Option(
            "Do not log a line for each request.", ("--disable-uvicorn-access-log",), default=False, convert=_negated
        ),
        "shutdown_timeout": Option(
            "Seconds from Ctrl-C or SIGTERM to the end of the process; requests in progress have most of them.",
            typed={"min": 0},
        ),
        "keep_alive": Option(
            "Seconds that a connection may be idle. Set a longer time than the load balancer's, which is mostly 60.",
            ("--timeout-keep-alive",),
            typed={"min": 0.001},
        ),
    },
)
"""The process and its socket."""

SETTINGS = Group(
    Settings,
    {
        **NAMED.options,
        "dialect": Option("API at the root. Each API has its own prefix too, such as /vllm.", kind=DialectName),
        "docs": Option(
            "Serve neither /docs nor /openapi.json.", ("--disable-fastapi-docs",), default=False, convert=_negated
        ),
        "playground": Option(
            "Do not serve the pages / and /playground, on which a person can try the model.",
            ("--disable-playground",),
            default=False,
            convert=_negated,
        ),
        "vllm_metrics": Option(
            "Add metrics with vLLM's names to /metrics, for gateways that read them.", kind=bool, default=False
        ),
        "max_body": Option(
            "Largest body of a request, in megabytes.",
            ("--max-body-mb",),
            kind=float,
            default=64.0,
            convert=_bytes,
            typed={"min": 0.001},
        ),
        "max_bodies": Option(
            "Largest total of the bodies of all requests in progress, in megabytes.",
            ("--max-bodies-mb",),
            kind=float,
            default=256.0,
            convert=_bytes,
            typed={"min": 0.001},
        ),
        "body_timeout": Option("Seconds in which a request's body must arrive.", typed={"min": 0.001}),
        "request_timeout": Option(
            "Seconds from a request's body to its answer; then the request gets 504. 0 means no limit.",
            kind=float,
            default=0.0,
            convert=_or_none,
            typed={"min": 0},
        ),
        "max_calls": Option(
            "Most calls in progress, waiting calls included; further calls get 429. [default: no limit]",
            ("--max-concurrent-requests",),
            typed={"min": 1},
        ),
        "max_queued_calls": Option(
            "Most calls that wait for the model; further calls get 429.",
            ("--max-queued-requests", "--max-num-queued-reqs"),
            kind=int,
            default=1000,
            typed={"min": 1},
        ),
        "max_queued_tokens": Option(
            "Most tokens that wait for the model; further calls get 429. A call may have more if it is alone.",
            ("--max-queued-tokens", "--max-num-queued-tokens"),
            default="8M",
            convert=lambda tokens: tokens or QUEUED_TOKENS,
            typed=TOKENS,
        ),
    },
)
"""The served model, and limits on load."""

RESIDENCE = Group(
    Residence,
    {
        "first_use": Option("Load a model for its first request, not at the start.", ("--load-on-first-use",)),
        "idle_unload": Option(
            "Seconds without a request after which a model is unloaded; the next request loads it. 0 means never.",
            kind=float,
            default=0.0,
            convert=_or_none,
            typed={"min": 0},
        ),
        "memory": Option(
            "Most gigabytes of the weights of all loaded models. To load another, the server unloads the idle model "
            "that was used least recently. [default: no limit]",
            ("--max-model-memory-gb",),
            kind=float | None,
            convert=lambda gigabytes: None if gigabytes is None else int(gigabytes * (1 << 30)),
            typed={"min": 0.001},
        ),
        "sleep_routes": Option(
            "Serve vLLM's /sleep, /wake_up and /is_sleeping. Their callers can unload and load models.",
            ("--sleep-routes",),
        ),
    },
)
"""When models are in memory."""

LIMITS = Group(
    RequestLimits,
    {
        name: Option(f"Most {what} in one request.", (f"--max-request-{name}",), typed={"min": 1})
        for name, what in WHAT.items()
    },
)
"""Limits on one request."""

SERVED_LOADING = Group(
    LOADING.fields_of,
    {
        **LOADING.options,
        "engine_timeout": Option(
            "Seconds after which a batch that hangs makes the server exit; more on a slow machine. 0 means never.",
            ("--engine-timeout", "--watchdog-timeout"),
            kind=float,
            default=300.0,
            convert=_or_none,
            typed={"min": 0},
        ),
    },
)
"""How a server loads its model."""

MEDIA = Group(
    Media,
    {
        "local_folders": Option(
            "Folder that file: URLs of images and videos may name; repeat the flag for several. [default: none]",
            ("--allowed-local-media-path",),
            kind=list[Path] | None,
            default=None,
            convert=_tuple,
            typed={"metavar": "FOLDER", "exists": True, "file_okay": False},
        ),
        "allow_private": Option(
            "Fetch images and videos from private and loopback addresses too.", ("--allow-private-media",)
        ),
        "min_pixels": Option(
            "Least pixels of an image; smaller images are enlarged. [default: the model authors' own]", typed={"min": 1}
        ),
        "max_pixels": Option(
            "Most pixels of an image; larger images are reduced. [default: the model authors' own]", typed={"min": 1}
        ),
        "shown": Option(
            "Default min_pixels, max_pixels, fps and max_frames for images and videos of requests.",
            ("--mm-processor-kwargs",),
            kind=dict[str, object] | None,
            convert=lambda fields: fields or {},
            typed={"parser": processor_kwargs, "metavar": "JSON"},
        ),
    },
)
"""Images and videos of requests."""

MEDIA_LIMITS = Group(
    MediaLimits,
    {
        "timeout": Option("Seconds to fetch one image or video.", ("--media-timeout",), typed={"min": 0.001}),
        "decode_timeout": Option(
            "Seconds to decode one image or video.", ("--media-decode-timeout",), typed={"min": 0.001}
        ),
        "memory": Option(
            "Megabytes of memory for the images and videos of all requests.",
            ("--media-memory-mb",),
            kind=float,
            default=MediaLimits().memory / MEGABYTE,
            convert=_bytes,
            typed={"min": 1},
        ),
    },
)
"""Limits on images and videos."""

DOOR = Group(
    Door,
    {
        "api_keys": Option(
            "Keys that clients send as Bearer tokens. The variable RERANKD_API_KEY adds one.",
            ("--api-key",),
            kind=list[str] | None,
            default=None,
            convert=_tuple,
            typed={"metavar": "KEY...", "hide_input": True},
        ),
        "api_key_file": Option("File with one key in each line."),
        "protect_all": Option("Require a key for health probes and /metrics too.", ("--protect-all",)),
        "allowed_origins": Option(
            "List of the web pages that may call. [default: none]",
            kind=Any,
            default=None,
            convert=_tuple,
            typed={"parser": strings, "metavar": "JSON"},
        ),
        "allowed_methods": Option(
            "Methods that these pages may use. [default: all]",
            kind=Any,
            default=None,
            convert=lambda methods: methods or ("*",),
            typed={"parser": strings, "metavar": "JSON"},
        ),
        "allowed_headers": Option(
            "Headers that these pages may send. [default: all]",
            kind=Any,
            default=None,
            convert=lambda headers: headers or ("*",),
            typed={"parser": strings, "metavar": "JSON"},
        ),
        "allow_credentials": Option("Let these pages send cookies and keys.", ("--allow-credentials",)),
        "ssl_keyfile": Option("Private key of the certificate, if the certificate's file does not have it."),
        "ssl_keyfile_password": Option("Password of the private key.", typed={"hide_input": True}),
        "ssl_certfile": Option("Certificate for HTTPS."),
        "ssl_ca_certs": Option("Certificates of the authorities that sign clients' certificates."),
        "ssl_cert_reqs": Option(
            "Clients' certificates: 0 means none, 1 optional, 2 required.", typed={"min": 0, "max": 2}
        ),
        "root_path": Option("Path that a proxy puts before every path.", ("--root-path", "--fastapi-root-path")),
        "uds": Option("Unix socket to listen on, in place of host and port."),
    },
)
"""Who may call, and how."""
