"""`rerankd rank` and `rerankd run-batch`. Heavy imports wait until a run."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from rerankd.cli import door
from rerankd.cli.configuration import configured
from rerankd.cli.groups import Values, grouped
from rerankd.cli.options import DEFAULT_MODEL, LOADING, NAMED, OR_DEFAULT
from rerankd.compat.peers import VLLM
from rerankd.core import RerankdError
from rerankd.core.counts import counted

if TYPE_CHECKING:
    from rerankd.options import ModelInfo

ApiName: TypeAlias = Literal["vllm", "sglang", "cohere", "tei", "infinity", "voyage", "jina"]
"""The names in `rerankd.rank.remote.APIS`."""
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="List invalid lines and continue, instead of stopping at the first one.")
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Start from the beginning, even if an interrupted run could continue.")
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress bar.")]
Queries = Annotated[
    str | None, typer.Option(metavar="FILE", help="Queries: TSV (id, text), JSONL, CSV or Parquet, or a BEIR folder.")
]
Corpus = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Documents, in the same formats as queries. .gz and .zst are read too; - is stdin."
    ),
]
Runs = Annotated[
    list[str] | None,
    typer.Option(
        "--run", metavar="FILE...", help="First-stage runs; ranks of several runs are fused. [default: all documents]"
    ),
]
TopK = Annotated[int | None, typer.Option(min=1, help="Documents to score for each query, from the top of the run.")]
Dataset = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="A BEIR folder, in place of --queries and --corpus.")
]


@grouped
def rank(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=f"A folder, or an id on the hub; with --server the name to send. {DEFAULT_MODEL}",
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Argument(metavar="PAIRS", help="A file with {query, documents} on each line, or one pair in each row."),
    ] = None,
    queries: Queries = None,
    corpus: Corpus = None,
    run: Runs = None,
    dataset: Dataset = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="File to write rankings to; - is stdout.")
    ] = "-",
    format: Annotated[
        Literal["trec", "jsonl", "csv", "parquet"] | None,
        typer.Option(help="Format of the output. [default: from its suffix]"),
    ] = None,
    top_k: TopK = None,
    top_n: Annotated[int | None, typer.Option(min=1, help="Documents to write for each query, from the best.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out documents with a lower score.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Instruction that says which documents are relevant.")] = None,
    tag: Annotated[
        str | None, typer.Option(help="Text in the last column of a TREC run. [default: the model and dtype]")
    ] = None,
    skip_bad: SkipBad = False,
    restart: Restart = False,
    no_progress: NoProgress = False,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Score through this server instead of loading a model.")
    ] = None,
    api: Annotated[ApiName, typer.Option(help="With --server: the API of the server.")] = "vllm",
    api_key: Annotated[
        str | None, typer.Option(envvar=door.KEY_VARIABLE, help="With --server: key to send as a Bearer token.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="With --server: requests in flight at a time.")] = 8,
    request_documents: Annotated[int, typer.Option(min=1, help="With --server: most documents in one request.")] = 1000,
    *,
    loading: Annotated[Values, LOADING.but("default_instruction")],
) -> None:
    """Score the documents of many queries, from files to files.

    rerankd rank MODEL --queries queries.tsv --corpus corpus.jsonl --run bm25.trec --top-k 100 -o out.trec

    rerankd rank MODEL pairs.jsonl -o out.jsonl
    """
    with told_in_one_line(output):
        if pairs is None and (queries or dataset) is None and _is_pairs(model, server):
            model, pairs = None, model
        from rerankd.rank.files import BadLines, check_files
        from rerankd.rank.rank import Output, rank
        from rerankd.rank.runs import output_format
        from rerankd.rank.scoring import RankSettings, Scorer

        form = output_format(output, format)
        if tag is not None and tag.split() != [tag]:
            raise RerankdError(f"--tag: {tag!r} is empty or has white space, which ends a column; try --tag my_tag.")
        check_files([] if pairs is None else [pairs], output, form, restart)
        bad = BadLines(skip_bad)
        settings = RankSettings(top_n, min_score, instruction, skip_bad)
        source = source_of(pairs, queries, corpus, run, dataset, top_k, bad)
        shown = not no_progress

        def do(scorer: Scorer, name: str, of: dict[str, Any]) -> None:
            to = Output(output, form, tag or name.replace(" ", "_"))
            typer.echo(str(rank(source, scorer, settings, to, of, bad, restart=restart, progress=shown)), err=True)

        if server is not None:
            from rerankd.rank.remote import RemoteScorer

            remote = RemoteScorer(server, api, model, api_key, concurrency, request_documents)
            try:
                if instruction is not None and not remote.takes_instruction:
                    raise RerankdError(f"--instruction: the API {api} has no field for one; try --api vllm.")
                name = remote.model or server
                do(remote, name, {"server": server, "api": api, "model": remote.model, "top_k": top_k})
            finally:
                remote.close()
            return
        from rerankd.rank.local import LocalScorer
        from rerankd.reranker import Reranker

        with Reranker(chosen(model), **loading) as reranker:
            info = reranker.info
            if instruction is not None and not info.takes_instruction:
                raise RerankdError(f"--instruction: {info.model} takes none; leave it out.")
            precision = info.quantization or info.dtype
            do(LocalScorer(reranker), f"{Path(info.model).name}@{precision}", {**about(info, loading), "top_k": top_k})


def about(info: ModelInfo, loading: Values) -> dict[str, Any]:
    """What scores depend on, as JSON-ready data: a run with other values cannot continue an interrupted one."""
    template = loading.get("chat_template")
    if template is not None and Path(template).is_file():
        # The file may be another one by then.
        template = hashlib.sha256(Path(template).read_bytes()).hexdigest()
    return {
        **loading,
        "chat_template": template,
        "model": info.model,
        "device": info.device,
        "dtype": info.dtype,
    }


def _is_pairs(model: str | None, server: str | None) -> bool:
    """Whether the argument that stands alone is the file: there is a default model, and a server has its own."""
    if model is None:
        return False
    return server is not None or (Path(model).is_file() and Path(model).suffix != ".gguf")


@configured
@grouped
def run_batch(
    ctx: typer.Context,
    input_file: Annotated[
        str, typer.Option("--input-file", "-i", metavar="FILE", help="File of requests, one on each line.")
    ],
    output_file: Annotated[
        str,
        typer.Option(
            "--output-file", "-o", metavar="FILE", help="File to write answers to, in the order of the requests."
        ),
    ],
    model: Annotated[str | None, typer.Option(metavar="MODEL", help=OR_DEFAULT)] = None,
    skip_bad: SkipBad = False,
    restart: Restart = False,
    no_progress: NoProgress = False,
    *,
    served: Annotated[Values, NAMED],
    loading: Annotated[Values, LOADING],
) -> None:
    """Answer a file of requests in vLLM's and OpenAI's batch format, with vLLM's flags."""
    with told_in_one_line(output_file):
        from rerankd.rank.batch import run_batch
        from rerankd.rank.files import BadLines, check_files
        from rerankd.reranker import Reranker

        check_files([input_file], output_file, "jsonl", restart)
        for note in [*VLLM.judge(ctx.obj.given, model or ""), *ctx.obj.notes]:
            typer.echo(note, err=True)
        with Reranker(chosen(model), **loading) as reranker:
            names = served["names"] or ((model,) if model else default_names())
            bad = BadLines(skip_bad)
            kept = about(reranker.info, loading)
            answered, failed = run_batch(
                reranker, names, input_file, output_file, kept, bad, restart=restart, progress=not no_progress
            )
        left_out = f"; {counted(bad.count, 'line')} left out" if bad.count else ""
        typer.echo(f"{counted(answered, 'request')}, {failed:,} of them failed{left_out}", err=True)


def source_of(
    pairs: str | None,
    queries: str | None,
    corpus: str | None,
    runs: list[str] | None,
    dataset: str | None,
    top_k: int | None,
    bad: Any,
) -> Any:
    """The queries and documents that the options name. Raises RerankdError for options that do not go together."""
    from rerankd.rank.collection import Collection
    from rerankd.rank.pairs import Pairs

    if pairs is not None:
        if queries or corpus or runs or dataset:
            raise RerankdError(f"{pairs} has its own queries and documents; leave out --queries, --corpus and --run.")
        return Pairs(pairs, top_k, bad)
    queries, corpus = queries or dataset, corpus or dataset
    if queries is None or corpus is None:
        raise RerankdError("Give a file of pairs, or --queries and --corpus, or --dataset.")
    return Collection(queries, corpus, runs or (), top_k, bad)


def chosen(model: str | None) -> str:
    """The model, or the default one where none is named."""
    if model is not None:
        return model
    from rerankd.cli.default_model import default_model

    choice = default_model()
    typer.echo(choice.why.replace("serving", "taking"), err=True)
    return choice.model


def default_names() -> tuple[str, ...]:
    """The names of the default model."""
    from rerankd.cli.default_model import default_model

    return default_model().names


@contextmanager
def told_in_one_line(output: str) -> Iterator[None]:
    """An error that a user can act on is one line on stderr, and exit code 1; Ctrl-C says how to go on, with 130."""
    try:
        yield
    except RerankdError as error:
        print(f"rerankd: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except BrokenPipeError:
        # Whoever read standard output has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:  # such as a full disk
        print(f"rerankd: error: {error}{_resume_hint(output)}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"\nrerankd: stopped.{_resume_hint(output)}", file=sys.stderr)
        raise typer.Exit(130) from None


def _resume_hint(output: str) -> str:
    """The sentence that says where a stopped run goes on; empty if it cannot."""
    part = f"{output}.part"
    exists = output != "-" and Path(part).exists()
    return f" What is finished is in {part}; the same command goes on from there." if exists else ""
