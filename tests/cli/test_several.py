"""Several models on the command line, in variables and in a file: which are served, with which options."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from rerankd import Reranker
from rerankd.cli.several import Entry
from rerankd.cli.start import _chosen, _with_options
from rerankd.compat.flags import UsageProblem
from rerankd.server.settings import Residence
from tests.cli.test_configuration import config, printed, refused  # noqa: F401 - a fixture
from tests.cli.test_options import Started, run, started  # noqa: F401 - a fixture
from tests.server.launched import SERVE, launched

FILE = """
dtype: float32
default-instruction: of all
idle-unload: 60
models:
  - model: org/first
    served-model-name: [first, 1st]
    dtype: bfloat16
    revision: 012345
    max_model_len: 4k
    hf-overrides: {max_position_embeddings: 1024}
  - org/second
  - {model: org/third, default-instruction: its own, revision: off}
"""


@pytest.mark.parametrize(
    "words", ["a b c", "a --model-id b --model-id c", "a b --model-id=c", "--model-id a --model-id b --model_id c"]
)
def test_models_of_the_command_line(monkeypatch: pytest.MonkeyPatch, started: Started, words: str) -> None:  # noqa: F811
    assert run(monkeypatch, "serve", *words.split()) == 0
    assert started.launch is not None
    assert [one.model for one in _chosen(started.launch)] == ["a", "b", "c"]


def test_models_of_a_variable(monkeypatch: pytest.MonkeyPatch, started: Started) -> None:  # noqa: F811
    monkeypatch.setenv("RERANKD_MODEL_ID", "'a b' c")
    assert run(monkeypatch, "serve", "--load-on-first-use", "--max-model-memory-gb", "1.5", "--sleep-routes") == 0
    launch = started.launch
    assert launch is not None
    assert [one.names for one in _chosen(launch)] == [("a b",), ("c",)]
    assert launch.residence == Residence(True, None, 3 << 29, True)


@pytest.mark.parametrize(
    ("words", "models"),
    [
        ("", ["of/variable", "another"]),
        ("a", ["a"]),
        ("--model-id b", ["b"]),
        ("--model c", ["c"]),
        ("a b --model-id c", ["a", "b", "c"]),
    ],
)
@pytest.mark.parametrize("text", ["model: of/file\n", "models: [of/file, {model: other/file, dtype: float32}]\n"])
def test_the_first_place_that_names_a_model_names_all(
    config: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: Started,  # noqa: F811
    words: str,
    models: list[str],
    text: str,
) -> None:
    monkeypatch.setenv("RERANKD_MODEL", "of/variable")
    monkeypatch.setenv("RERANKD_MODEL_ID", "another")
    given = ["--config", config(text), *words.split()]
    assert run(monkeypatch, "serve", *given) == 0
    assert started.launch is not None
    assert [one.model for one in _chosen(started.launch)] == models
    told = yaml.safe_load(printed(monkeypatch, capsys, "serve", *given))
    assert [one for one in (told["model"], *(told["model-id"] or ())) if one] == models


def test_models_of_a_file_have_options_of_their_own(
    config: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
) -> None:
    name = config(FILE)
    assert run(monkeypatch, "serve", "--config", name, "--device", "cpu") == 0
    launch = started.launch
    assert launch is not None
    assert launch.residence.idle_unload == 60
    first, second, third = _with_options(launch, _chosen(launch))
    assert (first.names, second.names, third.names) == (("first", "1st"), ("org/second",), ("org/third",))
    assert [one.options.dtype for one in (first, second, third)] == ["bfloat16", "float32", "float32"]
    assert [one.options.revision for one in (first, second, third)] == ["012345", None, "off"]
    assert [one.options.default_instruction for one in (first, second, third)] == ["of all", "of all", "its own"]
    assert (first.options.max_model_len, second.options.max_model_len) == (4000, None)
    assert first.options.hf_overrides == {"max_position_embeddings": 1024}
    assert {one.options.device for one in (first, second, third)} == {"cpu"}
    # The command line wins over the file.
    assert run(monkeypatch, "serve", "org/other", "--config", name) == 0
    assert started.launch is not None
    assert _chosen(started.launch) == [Entry("org/other", ("org/other",))]


@pytest.mark.parametrize(
    ("words", "variables", "of_first", "of_all", "place"),
    [
        (["--dtype", "half"], {"RERANKD_DTYPE": "float32"}, "half", "half", "command line"),
        (["--dtype", "auto"], {}, "auto", "auto", "command line"),  # the default is a value too
        ([], {"RERANKD_DTYPE": "float32"}, "float32", "float32", "RERANKD_DTYPE"),
        ([], {}, "bfloat16", "float16", "server.yaml"),
    ],
    ids=["a flag", "a flag with the default", "a variable", "an entry, then the file"],
)
def test_the_command_line_wins_over_variables_over_entries_over_the_file(
    config: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: Started,  # noqa: F811
    words: list[str],
    variables: dict[str, str],
    of_first: str,
    of_all: str,
    place: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    given = ["--config", config("dtype: float16\nmodels: [{model: a, dtype: bfloat16, label: own}, b]\n"), *words]
    assert run(monkeypatch, "serve", *given) == 0
    assert started.launch is not None
    models = _with_options(started.launch, _chosen(started.launch))
    assert [one.options.dtype for one in models] == [of_first, of_all]
    assert [one.options.label for one in models] == ["own", None]
    told = printed(monkeypatch, capsys, "serve", *given)
    assert f'dtype: "{of_all}"  # {place}\n' in told
    first, _ = yaml.safe_load(told)["models"]
    assert first.get("dtype", of_all) == of_first


def test_a_variable_of_vllms_wins_over_entries_and_an_overridden_value_is_checked(
    config: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: Started,  # noqa: F811
) -> None:
    given = ["--config", config("models: [{model: a, hub: huggingface, max-model-len: 4x}]\n")]
    assert "models[0].max-model-len: " in refused(monkeypatch, capsys, "serve", *given, "--max-model-len", "4")
    config("models: [{model: a, hub: huggingface}]\n")
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    assert run(monkeypatch, "serve", *given) == 0
    assert started.launch is not None
    assert [one.options.hub for one in _with_options(started.launch, _chosen(started.launch))] == ["modelscope"]


@pytest.mark.parametrize(
    ("words", "names"), [([], ("own",)), (["--served-model-name", "flag"], ("flag",))], ids=["an entry", "a flag"]
)
def test_so_do_the_names_of_one_model(
    config: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
    words: list[str],
    names: tuple[str, ...],
) -> None:
    text = "served-model-name: file\nmodels: [{model: a, served-model-name: own}]\n"
    assert run(monkeypatch, "serve", "--config", config(text), *words) == 0
    assert started.launch is not None
    assert [one.names for one in _chosen(started.launch)] == [names]


def test_entries_may_share_keys_as_yaml_does(
    config: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = """models:
  - &first {model: a, revision: 012, dtype: float32}
  - {<<: *first, model: b}
  - <<: [{revision: off}, *first]
"""
    told = yaml.safe_load(printed(monkeypatch, capsys, "serve", "--config", config(text)))["models"]
    assert told == [
        {"model": "a", "revision": "012", "dtype": "float32"},
        {"model": "b", "revision": "012", "dtype": "float32"},
        {"model": "a", "revision": "off", "dtype": "float32"},
    ]
    assert "line 1" in refused(monkeypatch, capsys, "serve", "--config", config("models: [{<<: 7, model: a}]"))


def test_what_is_printed_is_such_a_file(
    config: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = printed(monkeypatch, capsys, "serve", "--config", config(FILE))
    again = printed(monkeypatch, capsys, "serve", "--config", config(told))
    assert yaml.safe_load(again) == yaml.safe_load(told)
    entries = yaml.safe_load(told)["models"]
    assert [one["model"] for one in entries] == ["org/first", "org/second", "org/third"]
    assert (entries[0]["revision"], entries[0]["served-model-name"]) == ("012345", ["first", "1st"])
    assert "models:" not in printed(monkeypatch, capsys, "serve", "--config", config(FILE), "org/other")
    line = printed(monkeypatch, capsys, "serve", "a", "b")
    assert 'model-id: ["b"]  # command line\n' in line
    assert "more" not in yaml.safe_load(line)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: org/m", "models: the value has to be a list"),
        ("models: []", "models: the value has to be a list"),
        ("models: [{dtype: float32}]", "models[0]: an entry has to be a model"),
        ("models: [a, [b]]", "models[1]: an entry has to be a model"),
        ("models: [{model: a, port: 9}]", "models[0].port: a model has no such option of its own"),
        ("models: [{model: a, num-threads: 9}]", "models[0].num-threads: a model has no such option of its own"),
        ("models: [{model: a, prot: 9}]", "models[0].prot: a model has no such option of its own"),
        ("models: [{model: a, max-model-len: 4x}]", "models[0].max-model-len: "),
        ("models: [{model: a, max-model-len: 4, max_model_len: 5}]", "models[0].max_model_len: the option has another"),
        ("models: [{model: a, dtype: float32, dtype: float32}]", "the key dtype occurs twice"),
        ("models: [a]\nmodel: b", "a model is given beside models"),
        ("models: [a]\nmodel-id: [b]", "a model is given beside models"),
    ],
)
def test_what_is_no_list_of_models_is_refused(
    config: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    says: str,
) -> None:
    told = refused(monkeypatch, capsys, "serve", "--config", config(text))
    assert told.startswith("server.yaml")
    assert says in told


def test_a_file_of_models_is_served(
    config: Any,  # noqa: F811
    bert_checkpoint: Path,
    bert_two_labels_checkpoint: Path,
) -> None:
    folders = {"one": bert_checkpoint, "two": bert_two_labels_checkpoint}
    entries = [{"model": str(folder), "served-model-name": [name]} for name, folder in folders.items()]
    entries[1]["dtype"] = "float32"
    name = config(yaml.safe_dump({"models": entries, "dtype": "float32", "idle-unload": 0.2}))
    pairs = [("what is panda?", "hi"), ("what is panda?", "The giant panda is a bear.")]
    with launched(SERVE, "--config", name) as server:
        assert "model=one " in server.said
        assert server.process.stdout is not None
        assert server.process.stdout.readline().startswith("and model=two ")

        def loaded() -> list[str]:
            lines = requests.get(f"{server.url}/metrics", timeout=30).text.splitlines()
            return [line[-3:] for line in lines if line.startswith("rerankd_model_loaded{")]

        # Models that nobody has asked for idle from the start.
        while loaded() != ["0.0", "0.0"]:
            time.sleep(0.02)
        for own, folder in folders.items():
            body = {"model": own, "queries": pairs[0][0], "documents": [document for _, document in pairs]}
            answer = requests.post(f"{server.url}/score", json=body, timeout=60).json()
            with Reranker(str(folder), dtype="float32") as alone:
                assert [one["score"] for one in answer["data"]] == pytest.approx(alone.score(pairs), abs=1e-5)
            assert answer["model"] == own


def test_a_name_for_several_models_is_refused(monkeypatch: pytest.MonkeyPatch, started: Started) -> None:  # noqa: F811
    assert run(monkeypatch, "serve", "a", "b", "--served-model-name", "x") == 0
    assert started.launch is not None
    with pytest.raises(UsageProblem, match="--served-model-name is for one model"):
        _chosen(started.launch)
