"""Options that the commands share, and how their values are read."""

from __future__ import annotations

import json
import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rerankd.compat.flags import Peer, Takes, sort_out
from rerankd.compat.variables import Variables
from rerankd.limits import WHAT, LimitName, RequestLimits


class HubName(str, Enum):
    """Where an id is looked up."""

    huggingface = "huggingface"
    modelscope = "modelscope"


class DialectName(str, Enum):
    """The dialects; `server.dialects` holds what they mean."""

    vllm = "vllm"
    sglang = "sglang"
    cohere = "cohere"
    tei = "tei"
    infinity = "infinity"
    voyage = "voyage"
    jina = "jina"
    nvidia = "nvidia"
    weaviate = "weaviate"
    elastic = "elastic"


class LogLevel(str, Enum):
    """uvicorn's log levels."""

    critical = "critical"
    error = "error"
    warning = "warning"
    info = "info"
    debug = "debug"
    trace = "trace"


class BackendName(str, Enum):
    """Backends; `backends.select` holds what they are."""

    auto = "auto"
    torch = "torch"
    cpu = "cpu"
    cuda = "cuda"


class LogFormatName(str, Enum):
    """The formats of logs; `server.logs` holds what they mean."""

    text = "text"
    json = "json"


LIMITS = RequestLimits()
QUEUED_TOKENS = 8 << 20
"""They take some 40 bytes each."""


def _limit(name: LimitName) -> Any:
    return typer.Option(f"--max-request-{name}", min=1, help=f"{WHAT[name][0].upper()}{WHAT[name][1:]} of one request.")


MaxValues = Annotated[int, _limit("values")]
MaxDocuments = Annotated[int, _limit("documents")]
MaxCharacters = Annotated[int, _limit("characters")]
MaxParts = Annotated[int, _limit("parts")]
MaxFields = Annotated[int, _limit("fields")]
MaxLabels = Annotated[int, _limit("labels")]
MaxChunks = Annotated[int, _limit("chunks")]
MaxTokens = Annotated[int, _limit("tokens")]


def takes(param: Any) -> Takes:
    """What an option takes; one whose metavar ends in dots takes several values."""
    if getattr(param, "is_flag", False):
        return "nothing"
    return "values" if (param.metavar or "").endswith("...") else "value"


def peer_command(peer: Peer, variables: Variables) -> type[TyperCommand]:
    """A command that takes a peer's flags beside its own, and has them as `ctx.obj`, a list of `Given`.

    What the peer's variables stand for, it takes as if the flag was given first.
    """

    class PeerCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            own: dict[str, Takes] = {
                flag: takes(param)
                for param in self.get_params(ctx)
                for flag in (*param.opts, *param.secondary_opts)
                if flag.startswith("-")
            }
            args, ctx.obj = sort_out(args, own, peer)
            return super().parse_args(ctx, [*variables.arguments(os.environ, args), *args])

    return PeerCommand


def lists_command(*flags: str) -> type[TyperCommand]:
    """A command that takes `--header A=1 B=2` as argparse does, beside `--header A=1 --header B=2`."""

    class ListsCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            spread: list[str] = []
            option = None
            for argument in args:
                if argument.startswith("-") and argument != "-":
                    option = argument if argument in flags else None
                elif option and spread[-1] != option:
                    spread.append(option)
                spread.append(argument)
            return super().parse_args(ctx, spread)

    return ListsCommand


def token_count(text: str) -> int | None:
    """vLLM's human-readable integers: 4096, 4k (4,000), 4K (4,096), 25.6k; -1 or auto for the default."""
    if text in ("auto", "-1"):
        return None
    scales = {"k": 1000, "K": 1 << 10, "m": 1000**2, "M": 1 << 20}
    try:
        count = float(text[:-1]) * scales[text[-1]] if text[-1:] in scales else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number of tokens, such as 4096 or 8k") from None
    if count < 1 or count != int(count):
        raise typer.BadParameter(f"{text!r} is not a whole number of tokens, at least 1")
    return int(count)


STORED_FORMATS = ("gptq", "gptq_marlin", "awq", "awq_marlin", "compressed-tensors", "gguf")
"""Names of formats in which weights are stored; a checkpoint in one of them is read as its configuration says."""


def quantization(text: str) -> str | None:
    """int8, fp8, or a way to say none, as vLLM's names of what a checkpoint says by itself are."""
    if text.lower() in ("none", "null", *STORED_FORMATS):
        return None
    if text not in ("int8", "fp8"):
        raise typer.BadParameter(f"{text!r} is not supported; use int8 or fp8, or leave the flag out")
    return text


def processor_kwargs(text: str) -> dict[str, Any]:
    """vLLM's `--mm-processor-kwargs`, as fields of `media.sizing.Sizing`."""
    from pydantic import ValidationError

    from rerankd.schemas.processor_kwargs import ProcessorKwargs

    try:
        given = ProcessorKwargs.model_validate(json_object(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for name in given.without_effect():
        raise typer.BadParameter(f"{name!r} has no effect here; min_pixels, max_pixels, fps and max_frames have")
    return given.told()


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{text!r:.200} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{text!r:.200} is not a JSON object")
    return value


DisablePlayground = Annotated[
    bool, typer.Option("--disable-playground", help="No page at / and /playground to try the model on.")
]
LogFormat = Annotated[LogFormatName, typer.Option(help="Lines of text, or one JSON object a line.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--served-model-name",
        metavar="NAME...",
        help="What the model is called in requests and answers. [default: as it was given]",
    ),
]
DialectFlag = Annotated[DialectName, typer.Option(help="Whose API is at the root; all are under /vllm and so on.")]
MaxBody = Annotated[float, typer.Option("--max-body-mb", min=0.001, help="Megabytes of a request's body.")]
MaxBodies = Annotated[
    float,
    typer.Option("--max-bodies-mb", min=0.001, help="Megabytes of all bodies that are being read or answered."),
]
BodyTimeout = Annotated[float, typer.Option(min=0.001, help="Seconds in which a request's body must arrive.")]
MaxQueuedTokens = Annotated[
    int | None,
    typer.Option(
        "--max-queued-tokens",
        "--max-num-queued-tokens",
        parser=token_count,
        metavar="TOKENS",
        help="Tokens that wait for the model, beside one request that may have more; others get 429. [default: 8M]",
    ),
]
RequestTimeout = Annotated[
    float, typer.Option(min=0, help="Seconds from a request's body to its answer, or it gets 504. 0 for any time.")
]
KeepAlive = Annotated[
    float,
    typer.Option(
        "--timeout-keep-alive",
        min=0.001,
        help="Seconds that a connection may idle; more than the load balancer's, most of which have 60.",
    ),
]
ShutdownTimeout = Annotated[
    float, typer.Option(min=0, help="Seconds from Ctrl-C or SIGTERM to the end; requests in flight have most of them.")
]
EngineTimeout = Annotated[
    float,
    typer.Option(
        "--engine-timeout",
        "--watchdog-timeout",
        min=0,
        help="Seconds until a batch that does not end ends the server; a slow machine has more. 0 for never.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, npu, xpu, mps or auto.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float32, float16 or auto.")]
MemoryShare = Annotated[
    float | None,
    typer.Option(
        "--gpu-memory-utilization",
        "--mem-fraction-static",
        min=0.01,
        max=1.0,
        help="Share of a GPU's memory to use at most; batches become smaller where it runs out. [default: all]",
    ),
]
TensorParallel = Annotated[
    int,
    typer.Option(
        "--tensor-parallel-size",
        "--tp-size",
        "--tp",
        "-tp",
        min=1,
        help="Processes that compute the model together, each its part of every layer on a GPU of its own.",
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        "-q",
        parser=quantization,
        metavar="int8|fp8",
        help="8-bit products: int8 on a CPU, fp8 on a CUDA device. [default: the dtype's]",
    ),
]
BackendFlag = Annotated[
    BackendName, typer.Option("--backend", help="Code that runs the model; auto takes the fastest. For finding faults.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on its hub.")]
HubFlag = Annotated[HubName, typer.Option("--hub", help="Where a model's id is looked up.")]
MaxModelLen = Annotated[
    int | None,
    typer.Option(parser=token_count, metavar="TOKENS", help="Tokens of one prompt. [default: the model's limit]"),
]
HfOverrides = Annotated[
    dict[str, object] | None,
    typer.Option(parser=json_object, metavar="JSON", help="Entries laid over the model's config.json; seldom needed."),
]
Recipe = Annotated[
    str | None,
    typer.Option(help="How the model is scored: a name of docs/models.md. [default: what its folder says]"),
]
Template = Annotated[
    str | None,
    typer.Option(help="A Jinja file in place of the model's built-in prompt."),
]
Instruction = Annotated[
    str | None,
    typer.Option(help="Instruction for requests without one. [default: the model authors' own]"),
]
LocalMedia = Annotated[
    list[Path] | None,
    typer.Option(
        "--allowed-local-media-path",
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="A folder that file: URLs of images and videos may lead into; repeat it for several. [default: none]",
    ),
]
PrivateMedia = Annotated[
    bool,
    typer.Option("--allow-private-media", help="Fetch images and videos from private and loopback addresses too."),
]
MediaTimeout = Annotated[float, typer.Option(min=0.001, help="Seconds to fetch one image or video.")]
MediaDecodeTimeout = Annotated[float, typer.Option(min=0.001, help="Seconds to decode one image or video.")]
MediaMemory = Annotated[
    float, typer.Option("--media-memory-mb", min=1, help="Megabytes that the images and videos of all requests take.")
]
MinPixels = Annotated[
    int | None, typer.Option(min=1, help="An image is enlarged to as many. [default: the model authors' own]")
]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="An image is reduced to as many. [default: the model authors' own]")
]
MmProcessorKwargs = Annotated[
    dict[str, object] | None,
    typer.Option(
        parser=processor_kwargs,
        metavar="JSON",
        help="min_pixels, max_pixels, fps and max_frames for images and videos that say nothing of it.",
    ),
]
