"""What a deployment's arguments ask for: the flags of `serve`, and options of Ray's deployment."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerankd.cli.main import own_flags
from rerankd.cli.replica import BY_RAY, launch_of
from rerankd.compat.flags import UsageProblem
from rerankd.core import InvalidRequest
from rerankd.ray import POLICY, _options, deployment
from tests.cli.test_options import Started, run, started  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
KNOWN = {"name": 1, "num_replicas": 1, "autoscaling_config": 1, "ray_actor_options": 1, "_func_or_class": 1}


def test_entries_mean_what_the_flags_of_serve_mean(
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
) -> None:
    entries: dict[str, Any] = {
        "model": "org/m", "served-model-name": ["a", "b"], "max_model_len": "4k", "dtype": "float32", "device": "cpu",
        "hf-overrides": {"max_position_embeddings": 64}, "dialect": "cohere", "disable-playground": True,
        "max-queued-requests": 7, "request-timeout": 2.5, "api-key": ["k"], "allowed-origins": '["https://a.example"]',
        "shutdown-timeout": 4, "idle-unload": 60, "max-request-documents": 5, "media-timeout": 3, "log-level": "debug",
        "allow-private-media": True, "protect-all": False, "label": None, "otlp-traces-endpoint": "localhost:1",
        "disable-uvicorn-access-log": True,
    }  # fmt: skip
    words = [
        "org/m", "--served-model-name", "a", "b", "--max-model-len", "4k", "--dtype", "float32", "--device", "cpu",
        "--hf-overrides", '{"max_position_embeddings": 64}', "--dialect", "cohere", "--disable-playground",
        "--max-queued-requests", "7", "--request-timeout", "2.5", "--api-key", "k",
        "--allowed-origins", '["https://a.example"]', "--shutdown-timeout", "4", "--idle-unload", "60",
        "--max-request-documents", "5", "--media-timeout", "3", "--log-level", "debug", "--allow-private-media",
        "--otlp-traces-endpoint", "localhost:1", "--disable-uvicorn-access-log",
    ]  # fmt: skip
    assert run(monkeypatch, "serve", *words) == 0
    assert launch_of(entries)[0] == started.launch
    assert run(monkeypatch, "serve") == 0
    assert launch_of({})[0] == started.launch


def test_several_models_each_have_options_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
    tmp_path: Path,
) -> None:
    entries = {"dtype": "float32", "models": ["a", {"model": "b", "served-model-name": "c", "max-model-len": 64}]}
    file = tmp_path / "server.yaml"
    file.write_text(yaml.safe_dump(entries), encoding="utf-8")
    assert run(monkeypatch, "serve", "--config", str(file)) == 0
    assert launch_of(entries)[0] == started.launch
    # What a container's environment says of another model does not take the place of the application's.
    monkeypatch.setenv("RERANKD_MODEL", "another")
    assert launch_of(entries)[0] == started.launch
    assert launch_of({"model-id": ["x", "y"]})[0].model == "x"


def test_entries_win_over_variables_and_these_over_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_DTYPE", "bfloat16")
    monkeypatch.setenv("RERANKD_DEVICE", "cpu")
    monkeypatch.setenv("RERANKD_PORT", "9000")
    monkeypatch.setenv("VLLM_API_KEY", "of-vllm")
    launch, notes = launch_of({"model": "m", "dtype": "float32", "disable-log-stats": True})
    assert (launch.loading["dtype"], launch.loading["device"], launch.door.api_keys) == (
        "float32",
        "cpu",
        ("of-vllm",),
    )
    assert [note for note in notes if "RERANKD_PORT" in note]
    assert [note for note in notes if "disable-log-stats" in note]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"max-model-len": "none"}, "args: max-model-len: 'none' is not a number of tokens"),
        ({"max-modle-len": 8}, "args: max-modle-len: There is no flag --max-modle-len; did you mean --max-model-len"),
        ({"dtype": "a", "models": []}, "args: models: the value has to be a list of models."),
        ({"model": "a", "models": ["b"]}, "args: a model is given beside models"),
        ({"models": [{"model": "a", "port": 1}]}, "args: models[0].port: a model has no such option of its own"),
        ({"device": ["cpu", "cpu"]}, "args: device: the option takes one value"),
        ({"model": b"a"}, "args: model: the value has a type that JSON lacks"),
        ({"disable-playground": "perhaps"}, "args: disable-playground: 'perhaps' is neither true nor false."),
        ({"config": "server.yaml"}, "args: config: --config is for the command line alone."),
        ({"port": 9000}, "args: port 9000 is not supported: Ray's proxies listen, so say it in Ray's http_options."),
        ({"log-format": "json"}, "is not supported: the lines go to the logger of Ray Serve"),
        ({"sleep-routes": True}, "is not supported: a call reaches one replica of several"),
        ({"nnodes": 2}, "args: nnodes 2 is not supported"),
    ],
)
def test_what_cannot_be_carried_out_is_named(entries: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageProblem) as raised:
        launch_of(entries)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_flag_of_serve_is_taken_or_refused_with_a_reason() -> None:
    refused = {name.rstrip("="): one.why for one in BY_RAY for name in one.names}
    for flag in set(own_flags("serve")) - {"config", "print-config", "help", "q"}:
        try:
            launch_of({flag: "1"})
            said = ""
        except UsageProblem as problem:
            said = str(problem)
        assert "There is no flag" not in said
        assert (flag in refused) == any(why in said for why in refused.values()), (flag, said)


def test_options_of_the_deployment_have_the_policy_where_replicas_come_and_go() -> None:
    assert _options(None, KNOWN) == {}
    assert _options({"num_replicas": 2}, KNOWN) == {"num_replicas": 2}
    policy = {"policy_function": POLICY, "policy_kwargs": {"tokens": None}}
    assert _options({"num_replicas": "auto"}, KNOWN)["autoscaling_config"] == {"policy": policy}
    made = _options({"autoscaling_config": {"max_replicas": 4, "target_queue_tokens": 500}}, KNOWN)
    policy = {**policy, "policy_kwargs": {"tokens": 500}}
    assert made == {"autoscaling_config": {"max_replicas": 4, "policy": policy}}
    own = {"autoscaling_config": {"policy": {"policy_function": "their.own:policy"}}}
    assert _options(own, KNOWN) == own


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1], "args: deployment: the value has to be a mapping"),
        ({"replicas": 2}, "args: deployment: Ray's serve.deployment has no option replicas."),
        ({"_func_or_class": 2}, "has no option _func_or_class."),
        ({"autoscaling_config": 2}, "args: deployment: autoscaling_config: the value has to be a mapping."),
        ({"autoscaling_config": {"target_queue_tokens": 0}}, "target_queue_tokens has to be above 0, not 0."),
        ({"autoscaling_config": {"target_queue_tokens": "9"}}, "has to be above 0, not '9'."),
        ({"autoscaling_config": {"target_ongoing_requests": 5}}, "target_ongoing_requests has no effect, since tokens"),
        ({"autoscaling_config": {"target_queue_tokens": 9, "policy": {}}}, "is for rerankd's own policy; give one."),
    ],
)
def test_bad_options_of_the_deployment_are_named(given: Any, said: str) -> None:
    with pytest.raises(UsageProblem) as raised:
        _options(given, KNOWN)
    assert said in str(raised.value)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageProblem, match=r"pip install 'rerankd\[ray\]'"):
        deployment({"model": "m"})


def test_the_example_of_a_configuration_file_can_be_carried_out() -> None:
    file = yaml.safe_load((ROOT / "deploy/ray-serve.yaml").read_text(encoding="utf-8"))
    for application in file["applications"]:
        assert application["import_path"] == "rerankd.ray:deployment"
        given = dict(application["args"])
        assert _options(given.pop("deployment"), KNOWN)["autoscaling_config"]["policy"]
        assert launch_of(given)[0].model


def test_an_error_of_a_request_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(InvalidRequest("documents[3]", "is no text", 2)))
    assert (str(error), error.field, error.problem, error.request) == (
        "documents[3]: is no text",
        "documents[3]",
        "is no text",
        2,
    )
