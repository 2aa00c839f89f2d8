"""Options and functions that the commands of `rerankd bench` share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import typer

from rerankd.bench.samples import Dataset
from rerankd.cli.groups import Group, Option
from rerankd.core import RerankdError

DATASET = Group(
    Dataset,
    {
        "dataset_name": Option("Kind of requests to send."),
        "dataset_path": Option("For jsonl: file with one object of query and documents in each line."),
        "random_input_len": Option(
            "Tokens of a query and a document.", ("--random-input-len", "--random-input", "--input-len")
        ),
        "random_batch_size": Option("Documents in a request.", typed={"min": 1}),
        "random_range_ratio": Option("Range of lengths: 0.3 means up to 30 % shorter or longer."),
        "seed": Option("Seed of the random texts."),
    },
)
"""The requests of the commands that measure a server."""


def fail(error: RerankdError) -> NoReturn:
    typer.echo(f"rerankd: error: {error}", err=True)
    raise typer.Exit(1) from None


def pairs(option: str, items: Iterable[str]) -> dict[str, str]:
    """The items of a KEY=VALUE option. Raises RerankdError for one without `=`."""
    values = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise RerankdError(f"{option}: {item!r} is not KEY=VALUE.")
        values[key.strip()] = value.strip()
    return values
