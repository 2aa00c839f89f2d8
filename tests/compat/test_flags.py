"""Other programs' flags: which are taken, ignored or refused, and how they are spelt."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.compat.flags import Given, Peer, Takes, UsageProblem, sort_out
from rerankd.compat.peers import REASONS, SGLANG, SGLANG_IGNORED_VARIABLES, VLLM, VLLM_IGNORED_VARIABLES

OWN: Mapping[str, Takes] = {
    "--max-model-len": "value",
    "--served-model-name": "values",
    "--hf-overrides": "value",
    "--quiet": "nothing",
    "--help": "nothing",
}
PEERS = [VLLM, SGLANG]


def names(peer: Peer) -> list[str]:
    return [name for group in (*peer.ignored.values(), *(one.names for one in peer.refused)) for name in group]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_each_flag_has_one_verdict(peer: Peer) -> None:
    listed = [name.rstrip("=+") for name in names(peer)]
    assert sorted(listed) == sorted(set(listed)), "a flag is listed twice"
    assert all(re.fullmatch(r"[A-Za-z0-9-]+(=\+?)?", name) for name in names(peer))
    assert len(listed) == len(peer.flags) > 300


def test_every_reason_is_meant() -> None:
    """A reason that is misspelt in a data file would be told as it stands; each is a sentence's worth, and used."""
    said = [*(one.why for peer in PEERS for one in peer.refused)]
    said += [why for peer in PEERS for why in peer.ignored]
    said += [why for ignored in (VLLM_IGNORED_VARIABLES, SGLANG_IGNORED_VARIABLES) for why in ignored]
    assert all(" " in why and not why.endswith(".") for why in said)
    assert set(REASONS.values()) <= set(said)


@pytest.mark.parametrize(
    ("args", "ours"),
    [
        (["model", "--max_model_len", "4096"], ["model", "--max-model-len", "4096"]),
        (["--max-model-len=4096", "model"], ["--max-model-len", "4096", "model"]),
        (["--max_model_len=-1"], ["--max-model-len", "-1"]),
        (["--hf_overrides", '{"a_b": "--c"}'], ["--hf-overrides", '{"a_b": "--c"}']),
        (["--hf-overrides={}="], ["--hf-overrides", "{}="]),
        (
            ["--served-model-name", "a", "b_c", "--quiet"],
            ["--served-model-name", "a", "--served-model-name", "b_c", "--quiet"],
        ),
        (["--served_model_name=a", "model"], ["--served-model-name", "a", "model"]),
        (["--", "--enforce-eager"], ["--", "--enforce-eager"]),
        (["-"], ["-"]),
    ],
)
def test_our_flags_come_out_as_we_spell_them(args: list[str], ours: list[str]) -> None:
    assert sort_out(args, OWN, VLLM) == (ours, [])


@pytest.mark.parametrize(
    ("args", "given"),
    [
        (["--enforce-eager", "model"], [Given("--enforce-eager", "enforce-eager", None)]),
        (["--enforce_eager", "model"], [Given("--enforce_eager", "enforce-eager", None)]),
        (
            ["--no-enable-prefix-caching", "model"],
            [Given("--no-enable-prefix-caching", "enable-prefix-caching", None, True)],
        ),
        (
            ["--enable-chunked-prefill", "False", "model"],
            [Given("--enable-chunked-prefill", "enable-chunked-prefill", None, True)],
        ),
        (
            ["--enable-chunked-prefill=true", "model"],
            [Given("--enable-chunked-prefill", "enable-chunked-prefill", None)],
        ),
        (
            ["--block-size", "16", "model"],
            [Given("--block-size", "block-size", "16")],
        ),
        (["--swap-space", "-1", "model"], [Given("--swap-space", "swap-space", "-1")]),
        (
            ["--compilation-config.level", "3", "model"],
            [Given("--compilation-config.level", "compilation-config", "3")],
        ),
        (["-O3", "model"], [Given("-O3", "O", None)]),
        (["-O", "3", "model"], [Given("-O", "O", "3")]),
        (["-pp", "2", "model"], [Given("-pp", "pp", "2")]),
        (
            ["--ignore-patterns", "a", "b", "--quiet", "model"],
            [Given("--ignore-patterns", "ignore-patterns", "a"), Given("--ignore-patterns", "ignore-patterns", "b")],
        ),
    ],
)
def test_a_peers_flags_are_taken_out(args: list[str], given: list[Given]) -> None:
    ours, found = sort_out(args, OWN, VLLM)
    assert [one for one in ours if one != "--quiet"] == ["model"]
    assert found == given


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--max-modle-len", "1"], "There is no flag --max-modle-len; did you mean --max-model-len?"),
        (["--max_modle_len=1"], "There is no flag --max-modle-len; did you mean --max-model-len?"),
        (
            ["--scheduler-delay-facto", "1"],
            "There is no flag --scheduler-delay-facto; did you mean --scheduler-delay-factor?",
        ),
        (["--zzz"], "There is no flag --zzz; see --help for those that there are."),
        (["-z"], "There is no flag -z; see --help for those that there are."),
        (["--max-model-len"], "--max-model-len needs a value."),
        (["--swap-space"], "--swap-space needs a value."),
        (
            ["--hf-overrides.architectures+", "X"],
            "--hf-overrides.architectures+ is not supported; give --hf-overrides one JSON object.",
        ),
    ],
)
def test_what_is_neither_ours_nor_theirs_is_an_error(args: list[str], problem: str) -> None:
    with pytest.raises(UsageProblem, match=f"^{re.escape(problem)}"):
        sort_out(args, OWN, VLLM)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@given(data=st.data())
def test_no_value_is_taken_for_an_argument(peer: Peer, data: st.DataObject) -> None:
    """Whatever of a peer's flags stand around them, our own arguments come through, and nothing else does."""
    chosen = data.draw(st.lists(st.sampled_from(sorted(names(peer))), max_size=8))
    args: list[str] = []
    for name in chosen:
        word = data.draw(st.text("abc-_1", min_size=1, max_size=4).filter(lambda word: not word.startswith("-")))
        flag = "--" + data.draw(st.sampled_from([name, name.replace("-", "_")])).rstrip("=+")
        if name.endswith("=") and data.draw(st.booleans()):
            args.append(f"{flag}={word}")
        else:
            args += [flag, word] if "=" in name else [flag]
    ours, found = sort_out([*args, "--quiet", "model", "--max-model-len", "1"], OWN, peer)
    assert ours == ["--quiet", "model", "--max-model-len", "1"]
    assert [one.name for one in found] == [name.rstrip("=+") for name in chosen]


def judge(peer: Peer, *args: str) -> list[str]:
    _, found = sort_out(args, OWN, peer)
    return list(peer.judge(found, "org/model"))


def test_every_ignored_flag_says_why() -> None:
    for peer in PEERS:
        for name, (takes, verdict) in peer.flags.items():
            if isinstance(verdict, str):
                (line,) = judge(peer, f"--{name}", *(["x"] if takes != "nothing" else []))
                assert line == f"--{name} is {peer.name}'s and has no effect here: {verdict}."


def test_every_refused_flag_is_an_error_with_a_way_out() -> None:
    for peer in PEERS:
        for name, (takes, verdict) in peer.flags.items():
            if not isinstance(verdict, str):
                with pytest.raises(UsageProblem, match=rf"^--{name}( x)? is not supported: .+\.$"):
                    judge(peer, f"--{name}", *(["x"] if takes != "nothing" else []))


@pytest.mark.parametrize(
    ("peer", "args"),
    [
        (VLLM, ["--pipeline-parallel-size", "1"]),
        (VLLM, ["-pp=1"]),
        (VLLM, ["--tokenizer", "org/model"]),
        (VLLM, ["--no-enable-lora"]),
        (VLLM, ["--pooler-config", "{}"]),
        (VLLM, ["--pooler-config="]),
        (VLLM, ["--pooler_config", '{"pooling_type": "LAST", "use_activation": true, "normalize": null}']),
        (VLLM, ["--override-pooler-config", '{"pooling_type": "CLS", "softmax": true}']),
        (VLLM, ["--pooler-config.pooling_type", "LAST", "--pooler-config.use-activation=true"]),
        (SGLANG, ["--pp", "1", "--nnodes=1"]),
        (SGLANG, ["--disaggregation-mode", "null"]),
        (SGLANG, ["--tokenizer-path", "org/model"]),
    ],
)
def test_a_refused_flag_that_asks_for_nothing_is_taken(peer: Peer, args: list[str]) -> None:
    assert judge(peer, *args) == []


@pytest.mark.parametrize(
    ("peer", "args"),
    [
        (VLLM, ["--pipeline-parallel-size", "2"]),
        (VLLM, ["--quantization-config", "{}"]),
        (VLLM, ["--tokenizer", "org/another"]),
        (VLLM, ["--hf-token", "secret"]),
        (VLLM, ["--ssl-ciphers", "ALL"]),
        (VLLM, ["--pooler-config", '{"use_activation": false}']),
        (VLLM, ["--override-pooler-config", '{"pooling_type": "LAST", "activation": false}']),
        (VLLM, ["--override-pooler-config", '{"softmax": false}']),
        (VLLM, ["--pooler-config", '{"logit_bias": 2.5}']),
        (VLLM, ["--pooler-config", '{"step_tag_id": 3}']),
        (VLLM, ["--pooler-config.use_activation", "false"]),
        (VLLM, ["--pooler-config.use-activation=false"]),
        (VLLM, ["--pooler-config", "[]"]),
        (VLLM, ["--pooler-config", "{"]),
        (SGLANG, ["--nnodes", "2"]),
        (SGLANG, ["--admin-api-key=secret"]),
    ],
)
def test_what_cannot_be_had_is_not_swallowed(peer: Peer, args: list[str]) -> None:
    with pytest.raises(UsageProblem, match="is not supported"):
        judge(peer, *args)
