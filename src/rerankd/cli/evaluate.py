"""`rerankd eval`. Heavy imports wait until a run."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rerankd.cli.groups import Values, grouped
from rerankd.cli.options import LOADING
from rerankd.cli.rank import (
    Corpus,
    Dataset,
    NoProgress,
    Queries,
    SkipBad,
    TopK,
    told_in_one_line,
)
from rerankd.core import RerankdError

if TYPE_CHECKING:
    from rerankd.evaluate.report import Report, System

LISTS = ("--run", "--metrics", "--fail-under", "--compare", "--output", "-o")
SUFFIXES = {".txt": "text", ".md": "markdown", ".json": "json", ".html": "html", ".htm": "html"}


@grouped
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A folder, or an id on the hub: the model to rank --dataset with."),
    ] = None,
    qrels: Annotated[
        str | None, typer.Option(metavar="FILE", help="Judgments: TREC's 4 columns, BEIR's TSV, CSV, JSONL or Parquet.")
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="FILE...",
            help="Runs to measure and compare with the first one. With MODEL: the model's first stage.",
        ),
    ] = None,
    dataset: Dataset = None,
    queries: Queries = None,
    corpus: Corpus = None,
    split: Annotated[str, typer.Option(help="Judgments of --dataset to use, from qrels/SPLIT.tsv.")] = "test",
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            metavar="NAME...",
            help="Measures, as ir-measures names them. [default: nDCG@10 RR@10 AP R@100 P@5 Judged@10]",
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            metavar="KEY=VALUE,VALUE...",
            help="With MODEL: one run for each value of model, dtype, quantization, top-k, max-model-len, ...",
        ),
    ] = None,
    fuse: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Fuse the runs by reciprocal rank, write that run and measure it."),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="Queries to show of each run, from the worst.")] = 3,
    per_query: Annotated[str | None, typer.Option(metavar="FILE", help="Write each query's values as JSONL.")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option("--fail-under", metavar="NAME=VALUE...", help="End with exit code 1 if a mean is lower, for CI."),
    ] = None,
    format: Annotated[
        Literal["text", "markdown", "json", "html"], typer.Option(help="Format of the report on standard output.")
    ] = "text",
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output", "-o", metavar="FILE...", help="Files to write the report to: .txt, .md, .json or .html."
        ),
    ] = None,
    save_runs: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="With MODEL: keep the model's runs in this folder, and continue interrupted runs."
        ),
    ] = None,
    top_k: TopK = None,
    instruction: Annotated[
        str | None, typer.Option(help="With MODEL: instruction that says which documents are relevant.")
    ] = None,
    skip_bad: SkipBad = False,
    no_progress: NoProgress = False,
    *,
    loading: Annotated[Values, LOADING.but("default_instruction")],
) -> None:
    """Measure rankings against judgments, and compare them.

    rerankd eval --qrels qrels.txt --run bm25.trec reranked.trec

    rerankd eval MODEL --dataset FOLDER --run bm25.trec --compare dtype=float32,bfloat16 -o report.html
    """
    with told_in_one_line("-"):
        from rerankd.evaluate import measures, report
        from rerankd.rank.files import BadLines
        from rerankd.rank.texts import texts_of

        writers = _writers()
        for path in output or ():
            if Path(path).suffix not in SUFFIXES:
                raise RerankdError(f"--output: {path} ends in none of {', '.join(SUFFIXES)}.")
        for path in (*(output or ()), *filter(None, (per_query, fuse))):
            if not Path(path).parent.is_dir():
                raise RerankdError(f"{path} cannot be written: there is no folder {Path(path).parent}.")
        _expect_other_files(
            [*(run or ()), *filter(None, (qrels,))], [*(output or ()), *filter(None, (per_query, fuse))]
        )
        if fuse is not None:
            _expect_new(fuse)
        bounds = _bounds(fail_under or ())
        parsed_measures = measures.parse([*(metrics or measures.DEFAULT), *bounds])
        bounds = {str(next(iter(measures.parse([name])))): bound for name, bound in bounds.items()}
        bad = BadLines(skip_bad)
        if model is None and not run:
            raise RerankdError("Give --run and --qrels to measure runs, or MODEL and --dataset to make one.")
        if model is None and compare:
            raise RerankdError("--compare: give MODEL too; runs have no options to compare.")
        queries, corpus = queries or dataset, corpus or dataset
        if qrels is None and dataset is None:
            raise RerankdError("--qrels: give a file of judgments, or a --dataset with judgments.")
        if fuse is not None and (not run or len(run) < 2):
            raise RerankdError("--fuse: give two runs or more with --run.")
        judged = measures.read_judgments(qrels or _judgments(dataset, split), bad)
        systems = [_system(path, run or (), bad) for path in run or ()]
        _expect_different(systems)
        if model is not None:
            systems += _ranked(
                model, queries, corpus, run or (), compare or (), loading, top_k, instruction, save_runs, bad,
                skip_bad, not no_progress,
            )  # fmt: skip
            # Files are read again for their texts; their bad lines were reported before.
            bad = BadLines(skip=True, tell=lambda text: None)
        if fuse is not None and run:
            systems.append(_fused(fuse, systems[: len(run)]))
        _expect_different(systems)
        measured = {system.name: measures.values(parsed_measures, judged, system.run) for system in systems}
        comparison = report.compare(
            list(parsed_measures), systems, judged, measured,
            texts_of(queries, "queries", judged, bad) if queries else {},
            lambda ids: texts_of(corpus, "corpus", ids, bad) if corpus else {},
            worst,
        )  # fmt: skip
        typer.echo(writers[format](comparison))
        for path in output or ():
            Path(path).write_text(writers[SUFFIXES[Path(path).suffix]](comparison) + "\n", encoding="utf-8")
        if per_query is not None:
            Path(per_query).write_text("".join(f"{line}\n" for line in report.per_query(comparison)), encoding="utf-8")
        if missed := list(_missed(comparison, bounds)):
            for line in missed:
                print(f"rerankd: {line}", file=sys.stderr)
            raise typer.Exit(1)


def _writers() -> dict[str, Callable[[Report], str]]:
    from rerankd.evaluate import page, report

    return {"text": report.text, "markdown": report.markdown, "json": report.as_json, "html": page.page}


def _bounds(items: Sequence[str]) -> dict[str, float]:
    bounds = {}
    for item in items:
        name, equals, value = item.rpartition("=")
        try:
            bounds[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name or not math.isfinite(bounds[name]):
            raise RerankdError(f"--fail-under: {item!r} is not NAME=VALUE, such as nDCG@10=0.70.")
    return bounds


def _missed(report: Report, bounds: Mapping[str, float]) -> Iterator[str]:
    """A line for each mean under its bound; the first of several runs is the baseline and is not checked."""
    for system in report.systems[1:] or report.systems:
        for measure, bound in bounds.items():
            value = report.mean(system.name, measure)
            if not value >= bound:  # a mean that is no number is no success
                yield f"{measure} of {system.name} is {value:.4f}, under {bound:g}."


def _judgments(dataset: str | None, split: str) -> str:
    from rerankd.evaluate.dataset import judgments_of

    assert dataset is not None
    return judgments_of(dataset, split)


def _system(path: str, paths: Sequence[str], bad: Any) -> System:
    """A run under its file's name, or under its whole path where another has that name."""
    from rerankd.evaluate.measures import load_run
    from rerankd.evaluate.report import System

    name = Path(path).name
    alike = [other for other in paths if Path(other).name == name]
    return System(name if len(alike) == 1 else path, load_run(path, bad))


def _expect_different(systems: Sequence[System]) -> None:
    """Raises RerankdError for two rankings of one name: a report has each once."""
    names = [system.name for system in systems]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RerankdError(f"{twice[0]} is the name of two rankings; rename one of the files, or leave it out.")


def _expect_other_files(read: Sequence[str], written: Sequence[str]) -> None:
    """Raises RerankdError for a file to write that is also a file to read, or another file to write."""
    places = [Path(path).resolve() for path in (*read, *written)]
    for number, path in enumerate(written, len(read)):
        if places[number] in places[:number]:
            raise RerankdError(f"{path} is given twice, and writing it would lose what it holds; give another file.")


def _expect_new(path: str) -> None:
    """Raises RerankdError for a file of the fused run that cannot be written, or is there already."""
    from rerankd.rank.files import STANDARD, FileProblem
    from rerankd.rank.runs import output_format

    if path == STANDARD:
        raise RerankdError("--fuse: give a file; standard output has the report.")
    if Path(path).exists():
        raise RerankdError(f"--fuse: {path} exists already; give another file, or delete it.")
    try:
        output_format(path, None)
    except FileProblem:
        raise RerankdError(
            f"--fuse: {path} must end in .trec, .jsonl or .csv (.gz or .zst after it), or .parquet."
        ) from None


def _fused(path: str, systems: Sequence[System]) -> System:
    """The fused run as `path` holds it, under its file's name, or under its whole path where a run has that name.

    A TREC run has no equal scores, so the run is measured as read from the file.
    """
    from rerankd.evaluate.measures import fuse, load_run
    from rerankd.evaluate.report import System
    from rerankd.rank.files import BadLines, FileProblem
    from rerankd.rank.runs import Ranked, Ranking, check_ids, output_format, write_rankings

    fused = fuse([system.run for system in systems])
    rankings = (
        Ranking(query, tuple(Ranked(id, place, score) for place, (id, score) in enumerate(scores.items())), len(scores))
        for query, scores in fused.items()
    )
    form = output_format(path, None)
    try:
        for query, scores in fused.items():
            check_ids(query, scores, form)
    except FileProblem:
        raise RerankdError(
            f"--fuse: {path} cannot hold ids with spaces, which the runs have; name a .jsonl file."
        ) from None
    write_rankings(path, form, rankings, "rrf")
    name = Path(path).name
    return System(path if name in {system.name for system in systems} else name, load_run(path, BadLines()))


def _ranked(
    model: str,
    queries: str | None,
    corpus: str | None,
    runs: Sequence[str],
    compared: Sequence[str],
    loading: Mapping[str, Any],
    top_k: int | None,
    instruction: str | None,
    save_runs: Path | None,
    bad: Any,
    skip_bad: bool,
    progress: bool,
) -> list[System]:
    from rerankd.evaluate import dataset
    from rerankd.rank.scoring import RankSettings

    if queries is None or corpus is None:
        raise RerankdError("Give --dataset, or --queries and --corpus, for the model to rank.")
    base = dataset.Variant(model, top_k, loading)
    settings = RankSettings(instruction=instruction, skip_bad=skip_bad)
    data = dataset.Dataset(queries, corpus, tuple(runs))
    if save_runs is not None:
        save_runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        systems = dataset.rank_all(
            data,
            dataset.variants(base, compared),
            save_runs or Path(scratch),
            settings,
            bad,
            progress=progress,
            tell=lambda text: typer.echo(text, err=True),
        )
        return list(systems)
