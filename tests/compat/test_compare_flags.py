"""The script that compares other programs' flags with ours: on made-up sources in the forms that both programs use."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.compare_flags import PROGRAMS, compare, declared, main

VLLM_SOURCE = '''
class EngineArgs:
    max_model_len: int = 1
    enforce_eager: bool = Config.enforce_eager
    block_size: int | None = None
    brand_new: list[str] | None = None
    not_registered: int = 0
    seen_by_all: ClassVar[int] = 3

    @staticmethod
    def add_cli_args(parser):
        group.add_argument("--max-model-len", **kwargs["max_model_len"])
        group.add_argument("--enforce-eager", **kwargs["enforce_eager"])
        group.add_argument("--block-size", "-bs", **kwargs["block_size"])
        group.add_argument("--brand-new", **kwargs["brand_new"])
        group.add_argument("--enable-novelty", action=argparse.BooleanOptionalAction)
        group.add_argument("--swap_space", nargs="+", type=float)
        parser.add_argument("model_tag", nargs="?")

class FrontendArgs:
    """Fields are flags."""
    response_role: str = "assistant"
    another_switch: bool = False
    unlisted: ClassVar[str] = ""
'''
SGLANG_SOURCE = """
class Parallel:
    tp_size: A[int, Arg(help="Ranks.", aliases=["--tensor-parallel-size", "--ranks"])] = 1
    skip_server_warmup: A[bool, "Whether to skip."] = False
    moon_phase: A[Optional[str], f"One of {PHASES}."] = None
    lunar_days: A[Optional[List[int]], Arg(help="Days", nargs="*")] = None
    hidden: A[bool, Arg(help="", no_cli=True)] = False
    derived: A[int, Derived("no flag")] = 0
    renamed: A[dict, Arg(help="", cli_name="--spelt-so", type_parser=json.loads)] = None

class ServerArgs:
    model_path: str
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--model-path", "--model", type=str, required=True)
        parser.add_argument("--kv-cache-dtype", type=str, choices=["auto"])
        parser.add_argument("--tide", action="store_true")
"""


def test_what_vllms_forms_declare() -> None:
    assert declared(VLLM_SOURCE, PROGRAMS["vllm"].classes) == {
        "max-model-len": "value",
        "enforce-eager": "nothing",
        "block-size": "value",
        "bs": "value",
        "brand-new": "values",
        "enable-novelty": "nothing",
        "swap-space": "values",
        "response-role": "value",
        "another-switch": "nothing",
    }


def test_what_sglangs_forms_declare() -> None:
    assert declared(SGLANG_SOURCE, PROGRAMS["sglang"].classes) == {
        "tp-size": "value",
        "tensor-parallel-size": "value",
        "ranks": "value",
        "skip-server-warmup": "nothing",
        "moon-phase": "value",
        "lunar-days": "values",
        "spelt-so": "value",
        "model-path": "value",
        "model": "value",
        "kv-cache-dtype": "value",
        "tide": "nothing",
    }


def test_flags_that_are_new_gone_or_changed() -> None:
    """Our own flags are known; a flag of an older version is not unknown, and is listed as gone."""
    found = compare(PROGRAMS["vllm"], [VLLM_SOURCE])
    assert found.unknown == {
        "another-switch": "nothing",
        "brand-new": "values",
        "bs": "value",
        "enable-novelty": "nothing",
    }
    assert found.other == {"swap-space": ("values", "value")}
    assert {"pipeline-parallel-size", "task"} <= set(found.gone)
    assert not {"enforce-eager", "response-role", "max-model-len"} & set(found.gone)
    found = compare(PROGRAMS["sglang"], [SGLANG_SOURCE])
    assert sorted(found.unknown) == ["lunar-days", "moon-phase", "ranks", "spelt-so", "tide"]
    assert not found.other


def test_a_checkout_is_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "python" / "sglang" / "srt" / "server_args.py"
    file.parent.mkdir(parents=True)
    file.write_text("raise SystemExit('imported')\n" + SGLANG_SOURCE)
    assert main("sglang", str(tmp_path)) == 1
    told = capsys.readouterr().out
    assert "--moon-phase (takes a value)" in told
    assert "  --disable-radix-cache\n" in told
    assert main("vllm", str(tmp_path)) == 2
    assert "vllm/engine/arg_utils.py" in capsys.readouterr().err
    file.write_text('parser.add_argument("--model-path", type=str)')
    assert main("sglang", str(file)) == 0
