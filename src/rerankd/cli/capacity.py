"""`rerankd bench capacity`: the speed of one replica, and the number of replicas that a load needs."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from rerankd.bench.samples import Dataset
from rerankd.cli.bench_options import DATASET, fail, pairs
from rerankd.core import RerankdError

PROMPTS = 1000
"""Documents (random-rerank), or requests (jsonl), of which requests are made; each may be sent several times."""


def capacity(
    model: Annotated[
        str | None,
        typer.Argument(help="A folder, or an id on the hub. The run starts a server with one replica of it."),
    ] = None,
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="[-- FLAG...]", help="Flags of `rerankd serve` for that server.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="URL of a running rerankd server, in place of MODEL.")] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of an earlier --save-result, in place of a measurement.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Header to send with each request.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Do not verify TLS certificates.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id with tokenizer.json. [default: that of the server's model]")
    ] = None,
    *,
    dataset: Annotated[Dataset, DATASET],
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each measurement; there are about ten.")] = 10.0,
    request_rate: Annotated[float | None, typer.Option(help="Requests a second to plan for.")] = None,
    p99_ms: Annotated[
        float | None, typer.Option(help="Milliseconds within which 99 % of them must be answered.")
    ] = None,
    replicas_per_server: Annotated[
        int, typer.Option(min=1, help="Replicas of each server (--data-parallel-size), if there are several servers.")
    ] = 1,
    save_result: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file to write the figures to.")] = None,
) -> None:
    """Measure one replica under load, and compute how many replicas a load needs.

    The command starts a server with one replica of MODEL, or measures a running rerankd server at --base-url.
    """
    import asyncio

    from rerankd.bench import apis, load
    from rerankd.bench.capacity import measure
    from rerankd.bench.measured import Measured
    from rerankd.bench.planning import Plan, Wanted, table
    from rerankd.bench.report import save
    from rerankd.bench.samples import tokenizer_name
    from rerankd.bench.started import started

    def show(line: str) -> None:
        typer.echo(f"  {line}", err=True)

    def measured_now(stack: ExitStack) -> Measured:
        url = base_url.rstrip("/") if base_url else stack.enter_context(started(str(model), *(flags or ()))).url
        headers = pairs("--header", header or ())
        served = asyncio.run(load.served_models(url, headers, verify_tls=not insecure))
        name, root = next(iter(served.items()))
        samples = dataset.samples(PROMPTS, tokenizer or tokenizer_name(name, root))
        api = apis.APIS["vllm-rerank"]
        target = load.Target(api, url + api.endpoint, name, headers, not insecure)
        return asyncio.run(measure(target, f"{url}/metrics", samples, seconds, show))

    try:
        if sum(source is not None for source in (model, base_url, measured)) != 1:
            raise RerankdError("MODEL, --base-url, --measured: give one of them, and no other.")
        if (request_rate is None) != (p99_ms is None):
            raise RerankdError("--request-rate and --p99-ms: a plan needs both.")
        goal = None if request_rate is None or p99_ms is None else Wanted(request_rate, p99_ms / 1000)
        if measured is None:
            # Before a server is started for the measurement.
            load.require_aiohttp()
            with ExitStack() as stack:
                figures = measured_now(stack)
        else:
            figures = Measured.read(content(measured))
        typer.echo(table(figures))
        # The figures are saved before a plan that may be impossible: measuring takes minutes.
        if save_result is not None:
            save(figures.json(), save_result, append=False)
        if goal:
            plan = Plan.of(figures, goal, replicas_per_server)
            typer.echo(str(plan))
            if save_result is not None:
                save(figures.json() | {"plan": plan.json()}, save_result, append=False)
    except RerankdError as error:
        fail(error)


def content(path: Path) -> object:
    """The content of a JSON file. Raises RerankdError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RerankdError(f"--measured: {path} cannot be read ({error}).") from error
    return {key: value for key, value in data.items() if key != "plan"} if isinstance(data, dict) else data
