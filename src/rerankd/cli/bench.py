"""`rerankd bench`: measure any rerank server, or this machine at a model. Heavy imports wait until a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rerankd.bench.samples import Dataset
from rerankd.cli.bench_options import DATASET, fail, pairs
from rerankd.cli.capacity import capacity
from rerankd.cli.commands import lists_command
from rerankd.cli.groups import Values, grouped
from rerankd.cli.options import LOADING, MODEL
from rerankd.cli.plain import PlainCommand, PlainGroup
from rerankd.core import RerankdError

app = typer.Typer(
    name="bench",
    cls=PlainGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)


@app.callback()
def bench() -> None:
    """Measure any rerank server, or this machine at a model."""


app.command(cls=PlainCommand)(grouped(capacity))


@app.command(cls=lists_command("--header", "--metadata"))
@grouped
def serve(
    backend: Annotated[
        Literal["vllm-rerank", "sglang", "tei", "infinity", "cohere"], typer.Option(help="The API to speak.")
    ] = "vllm-rerank",
    base_url: Annotated[str | None, typer.Option(help="URL of the server, in place of --host and --port.")] = None,
    host: Annotated[str, typer.Option(help="Address of the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the server.")] = 8000,
    endpoint: Annotated[
        str | None, typer.Option(help="Route to call. [default: the backend's own, such as /v1/rerank]")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Header to send with each request.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Do not verify TLS certificates.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Name or folder of the model. [default: the first that the server lists]")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="Name to send, if it differs from --model.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or hub id with tokenizer.json. [default: that of --model, or of the server's model]"),
    ] = None,
    *,
    num_prompts: Annotated[
        int, typer.Option(min=1, help="Documents to send (random-rerank), or requests (jsonl).")
    ] = 1000,
    dataset: Annotated[Dataset, DATASET],
    num_warmups: Annotated[int, typer.Option(min=0, help="Requests to send before the measurement starts.")] = 0,
    request_rate: Annotated[float, typer.Option(help="Requests a second; inf sends all at once.")] = float("inf"),
    burstiness: Annotated[
        float, typer.Option(help="Burstiness of arrivals at a finite rate: 1 is a Poisson process, less is burstier.")
    ] = 1.0,
    max_concurrency: Annotated[int | None, typer.Option(help="Most requests in flight at a time.")] = None,
    ready_check_timeout_sec: Annotated[
        int, typer.Option(min=0, help="Seconds to wait for a server that is not up yet.")
    ] = 0,
    percentile_metrics: Annotated[
        str,
        typer.Option(
            help="Latencies to report: e2el, client_queue_time, e2el_including_client_queue, with commas between them."
        ),
    ] = "e2el",
    metric_percentiles: Annotated[
        str, typer.Option(help="Percentiles of these latencies, with commas between them.")
    ] = "99",
    disable_tqdm: Annotated[bool, typer.Option("--disable-tqdm", help="Show no progress bar.")] = False,
    save_result: Annotated[bool, typer.Option("--save-result", help="Write the figures to a JSON file.")] = False,
    save_detailed: Annotated[
        bool, typer.Option("--save-detailed", help="Write the tokens and error of each request to the file too.")
    ] = False,
    append_result: Annotated[
        bool, typer.Option("--append-result", help="Append a JSON line to the file instead of replacing it.")
    ] = False,
    result_dir: Annotated[Path | None, typer.Option(help="Folder of the file. [default: the current one]")] = None,
    result_filename: Annotated[
        str | None, typer.Option(help="Name of the file. [default: {label}-{rate}qps-{model}-{date}.json]")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Beginning of the file's name, in place of the backend.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Entry to add to the file.")] = None,
) -> None:
    """Send rerank requests to a server and report throughput and latency, as `vllm bench serve` does."""
    import asyncio
    from datetime import datetime

    from tqdm import tqdm

    from rerankd.bench import apis, load, report, samples

    try:
        load.require_aiohttp()
        url = base_url.rstrip("/") if base_url else f"http://{f'[{host}]' if ':' in host else host}:{port}"
        headers, notes = pairs("--header", header or ()), pairs("--metadata", metadata or ())
        traffic = load.Traffic(request_rate, burstiness, max_concurrency, dataset.seed)
        metrics, percentiles = report.selection(percentile_metrics, metric_percentiles)
        api = apis.APIS[backend]
        served: dict[str, str] = {}
        random = dataset.dataset_name == "random-rerank"
        if model is None or (random and not (tokenizer or Path(model).exists())):
            try:
                served = asyncio.run(load.served_models(url, headers, verify_tls=not insecure))
            except RerankdError:
                # A server that is not up yet, or that names no models, can still be measured by a model's name.
                if model is None:
                    raise
        if model is None:
            model = next(iter(served))
            typer.echo(f"Model: {model}, the first that the server names")
        tokenizer = tokenizer or samples.tokenizer_name(model, served.get(served_model_name or model))
        requests = dataset.samples(num_prompts, tokenizer)
        target = load.Target(api, url + (endpoint or api.endpoint), served_model_name or model, headers, not insecure)
        with tqdm(total=len(requests), disable=disable_tqdm) as bar:
            outcomes, duration = asyncio.run(
                load.run(
                    target,
                    requests,
                    traffic,
                    warmups=num_warmups,
                    ready_seconds=ready_check_timeout_sec,
                    progress=bar.update,
                )
            )
        result = report.Report(outcomes, duration, traffic, metrics, percentiles)
        typer.echo(result.table())
        if save_result or append_result:
            date = datetime.now().strftime("%Y%m%d-%H%M%S")
            head = {
                "date": date,
                "endpoint_type": backend,
                "backend": backend,
                "label": label,
                "model_id": model,
                "tokenizer_id": tokenizer if random else None,
                "num_prompts": num_prompts,
                **notes,
                "request_rate": "inf" if request_rate == float("inf") else request_rate,
                "burstiness": burstiness,
                "max_concurrency": max_concurrency,
            }
            figures = result.results()
            if not save_detailed:
                figures = {key: value for key, value in figures.items() if key not in report.DETAILS}
            name = result_filename or report.file_name(label or backend, traffic, model, date)
            report.save(head | figures, (result_dir or Path()) / name, append=append_result)
    except RerankdError as error:
        fail(error)
    if not result.succeeded:
        raise typer.Exit(1)


@app.command(cls=PlainCommand)
@grouped
def offline(
    model: Annotated[str, typer.Argument(help=MODEL)],
    workload: Annotated[
        str, typer.Option(help="uniform, mixed or short; uniform:200 has 200 documents in each request.")
    ] = "uniform",
    rounds: Annotated[int, typer.Option(min=1, help="Measurements, each on new documents.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the documents.")] = 0,
    save_result: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file to write the figures to.")] = None,
    *,
    loading: Annotated[Values, LOADING],
) -> None:
    """Measure the engine without a server, and the share of this machine's limit that the engine reaches.

    The limit is the rate of an engine that computes only the workload's multiply-adds, as fast as torch's GEMMs.
    """
    from rerankd.bench.offline import measure
    from rerankd.bench.report import save
    from rerankd.bench.rounds import Round, Summary
    from rerankd.bench.workloads import Workload

    def show(measured: Round) -> None:
        seconds = sum(measured.seconds)
        typer.echo(
            f"  {measured.documents / seconds:9.2f} documents/s {measured.tokens / seconds:9.0f} tokens/s"
            f" {2e-9 * measured.gemm_rate:8.0f} GFLOP/s in GEMMs"
        )

    try:
        parsed_workload = Workload.parse(workload)
        from rerankd.reranker import Reranker

        with Reranker(model, **loading) as reranker:
            info = reranker.info
            precision = info.quantization or info.dtype
            typer.echo(f"{info.model} ({info.architecture}, {info.device}, {precision}), {parsed_workload}")
            summary = Summary.of(measure(reranker, parsed_workload, rounds, precision, seed=seed, progress=show))
        typer.echo(summary.table())
        if save_result is not None:
            head = {"model": info.model, "architecture": info.architecture, "device": info.device}
            save(
                {**head, "dtype": precision, "workload": str(parsed_workload), **summary.json()},
                save_result,
                append=False,
            )
    except RerankdError as error:
        fail(error)


@app.command(cls=PlainCommand)
def quantization(
    model: Annotated[str, typer.Argument(help=MODEL)],
    pairs: Annotated[int, typer.Option(min=2, help="Pairs of query and document to score.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the texts.")] = 0,
) -> None:
    """Compare a model's int8 scores with its float32 scores, on English text."""
    from rerankd.bench.quantization import compare

    try:
        typer.echo(compare(model, pairs, seed).table())
    except RerankdError as error:
        fail(error)
