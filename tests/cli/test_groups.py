"""Options that are declared once: what commands make of them, and that no flag of a command is lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from rerankd.cli.bench import app as bench
from rerankd.cli.groups import Group, Option, Values, grouped
from rerankd.cli.main import own_flags


@dataclass(frozen=True)
class Meal:
    """What a group fills."""

    dish: str = "soup"
    guests: int = 2
    grams: int = 500
    spices: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


MEAL = Group(
    Meal,
    {
        "dish": Option("Dish.", ("--dish", "-d")),
        "guests": Option("Guests.", typed={"min": 1}),
        "grams": Option("Weight.", ("--kilograms",), kind=float, default=0.5, convert=lambda kilos: int(kilos * 1000)),
        "spices": Option("Spices.", kind=list[str] | None, default=None, convert=lambda spices: tuple(spices or ())),
    },
)


OTHER_MEAL = MEAL.but("spices").changed(dish={"flags": ("--plate",), "default": "pie"})


def run(command: Any, *words: str) -> Any:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(
    ("words", "meal"),
    [
        ([], Meal()),
        (["-d", "stew", "--guests", "9"], Meal("stew", 9)),
        (["--kilograms", "1.5", "--spices", "salt", "--spices", "dill"], Meal(grams=1500, spices=("salt", "dill"))),
    ],
)
def test_a_command_is_given_what_its_group_is_of(words: list[str], meal: Meal) -> None:
    served: list[Any] = []

    @grouped
    def serve(
        table: int = 1, *, meal: Annotated[Meal, MEAL], late: Annotated[bool, typer.Option("--late")] = False
    ) -> None:
        served.append((table, meal, late))

    assert run(serve, *words, "--table", "7", "--late").exit_code == 0
    assert served == [(7, meal, True)]


def test_a_command_may_leave_options_out_and_spell_them_otherwise() -> None:
    served: list[Values] = []

    @grouped
    def serve(
        *, meal: Annotated[Values, MEAL.but("spices").changed(dish={"flags": ("--plate",), "default": "pie"})]
    ) -> None:
        served.append(meal)

    assert run(serve).exit_code == 0
    assert run(serve, "--plate", "cake").exit_code == 0
    assert served == [{"dish": "pie", "guests": 2, "grams": 500}, {"dish": "cake", "guests": 2, "grams": 500}]
    assert run(serve, "--dish", "cake").exit_code == 2
    assert run(serve, "--guests", "0").exit_code == 2
    told = run(serve, "--help").output
    assert "Weight." in told
    assert "[default: 0.5]" in told


def test_a_field_that_is_none_of_the_class_is_an_error() -> None:
    with pytest.raises(KeyError, match="fork"):
        Group(Meal, {"fork": Option("Fork.")}).parameters("meal")
    with pytest.raises(KeyError, match="fork"):
        MEAL.changed(fork={"default": 1})


LOADING = """
    backend chat-template device dtype hf-overrides hub max-batch-tokens max-model-len max-num-batched-tokens
    quantization q recipe revision
"""
SERVER = """
    allow-credentials allow-private-media allowed-headers allowed-local-media-path allowed-methods allowed-origins
    api-key api-key-file body-timeout default-instruction dialect disable-playground engine-timeout fastapi-root-path
    gpu-memory-utilization host log-format log-level max-bodies-mb max-body-mb max-concurrent-requests
    max-num-queued-tokens max-pixels max-queued-requests max-queued-tokens max-request-characters max-request-chunks
    max-request-documents max-request-fields max-request-labels max-request-parts max-request-tokens
    max-request-values media-decode-timeout media-memory-mb media-timeout mem-fraction-static min-pixels model
    otlp-traces-endpoint port protect-all request-timeout root-path served-model-name shutdown-timeout ssl-ca-certs
    ssl-cert-reqs ssl-certfile ssl-keyfile ssl-keyfile-password timeout-keep-alive uds watchdog-timeout
"""
FLAGS = {
    "serve": f"""
        {SERVER} {LOADING} disable-fastapi-docs disable-uvicorn-access-log max-num-queued-reqs mm-processor-kwargs
        uvicorn-log-level
    """,
    "launch_server": f"""
        {SERVER} backend chat-template device dtype hub quantization q recipe revision context-length enable-trace
        json-model-override-args max-prefill-tokens model-path oltp-traces-endpoint
    """,
    "rank": f"""
        {LOADING} api api-key concurrency corpus dataset format instruction min-score no-progress output o queries
        request-documents restart run server skip-bad tag top-k top-n
    """,
    "eval": f"""
        {LOADING} compare corpus dataset fail-under format fuse instruction metrics no-progress output o per-query
        qrels queries run save-runs skip-bad split top-k worst
    """,
    "run-batch": f"""
        {LOADING} default-instruction input-file i model no-progress output-file o restart served-model-name skip-bad
    """,
    "inspect": """
        backend chat-template default-instruction device dtype hf-overrides hub json max-model-len quantization q
        recipe revision
    """,
    "offline": f"{LOADING} gpu-memory-utilization rounds save-result seed workload",
}


@pytest.mark.parametrize("command", FLAGS)
def test_no_flag_of_a_command_is_lost(command: str) -> None:
    if command == "offline":
        found = {
            flag.lstrip("-") for param in typer.main.get_command(bench).commands[command].params for flag in param.opts
        }
    else:
        found = set(own_flags(command))
    assert set(FLAGS[command].split()) <= found
