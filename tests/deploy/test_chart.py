"""The Helm chart, rendered by Helm's own library and checked against Kubernetes' own schemas."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from rerankd.cli.main import own_flags
from rerankd.cli.several import KEY
from tests.cli.test_options import Started, run, started  # noqa: F401 - a fixture
from tests.deploy.test_files import DEPLOY, SECONDS_TO_END, environment, read
from tests.deploy.test_image import instructions, variables

CHART = DEPLOY / "helm/rerankd"
OLDEST, NEWEST = "1.30", "1.37"
"""Kubernetes' versions: the oldest that the chart is for, and the newest with schemas here."""
OTHERS = {"ServiceMonitor"}
"""Kinds that are not Kubernetes' own, of which no schema is here."""
Objects: TypeAlias = dict[str, dict[str, Any]]

pytestmark = pytest.mark.skipif(
    not (find_spec("helm_python") and find_spec("kubernetes_validate")),
    reason="needs the packages helm-python-sdk and kubernetes-validate",
)

HELM = """
import json, sys, helm_python as helm
chart, all_values = json.load(sys.stdin)
done = []
with helm.Chart.load(chart) as loaded:
    for values in all_values:
        try:
            loaded.validate_schema(values)
            rendered = loaded.render(values, name="rerank", namespace="search")
            done.append({"files": rendered, "lint": helm.lint(chart, values, strict=True, kube_version="v1.30.0")})
        except helm.HelmError as error:
            done.append({"refused": str(error)})
json.dump(done, sys.stdout)
"""
"""Go's runtime, with threads of its own, stays out of this process, which other tests fork."""


def helm(*values: dict[str, Any]) -> list[dict[str, Any]]:
    given = json.dumps([str(CHART), values])
    done = subprocess.run([sys.executable, "-c", HELM], input=given, capture_output=True, text=True, check=True)
    made: list[dict[str, Any]] = json.loads(done.stdout)
    return made


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {
        "image": {"repository": "registry.example/rerankd", "tag": "cuda", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "config": {
            "model": "Qwen/Qwen3-Reranker-0.6B",
            "served-model-name": ["qwen", "yes"],
            "max-queued-tokens": 10_000_000,
            "shutdown-timeout": 42.5,
            "default-instruction": "Find: the #1 passage",
        },
        "apiKey": {"secretName": "keys"},
        "hubToken": {"secretName": "hub", "secretKey": "hf"},
        "offline": True,
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}, {"name": "RERANKD_ISA", "value": "avx2"}],
        "autoscaling": {
            "enabled": True,
            "maxReplicas": 9,
            "queueTokens": 2_000_000,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
                }
            ],
        },
        "podDisruptionBudget": {"maxUnavailable": "25%"},
        "modelCache": {"accessModes": ["ReadWriteMany"], "storageClassName": "nfs", "size": "100Gi"},
        "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "16Gi"}},
        "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
        "startupSeconds": 62,
        "preStopSeconds": 20,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "serviceAccount": {"name": "reranker", "annotations": {"a": "b"}},
        "networkPolicy": {
            "enabled": True,
            "from": [{"podSelector": {"matchLabels": {"app": "search"}}}],
            "egress": [],
        },
        "serviceMonitor": {"enabled": True, "interval": "30s", "labels": {"release": "prometheus"}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "search"},
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
        "extraVolumes": [{"name": "templates", "configMap": {"name": "templates"}}],
        "extraVolumeMounts": [{"name": "templates", "mountPath": "/templates"}],
    },
    "copies": {
        "config": {"model": None, "models": ["org/a", {"model": "org/b", "dtype": "float32"}]},
        "replicas": 3,
        "modelCache": {"enabled": False},
        "serviceAccount": {"create": False},
        "podDisruptionBudget": {"enabled": False},
        "preStopSeconds": 0,
        "networkPolicy": {"enabled": True},
    },
    "claim": {"autoscaling": {"enabled": True}, "modelCache": {"existingClaim": "models"}, "fullnameOverride": "own"},
}


@pytest.fixture(scope="module")
def made() -> dict[str, dict[str, Any]]:
    """What Helm makes of each case."""
    return dict(zip(CASES, helm(*CASES.values()), strict=True))


@pytest.fixture(scope="module")
def rendered(made: dict[str, dict[str, Any]]) -> dict[str, Objects]:
    """The objects of each case, by kind."""
    objects = {}
    for case, done in made.items():
        assert "refused" not in done, (case, done)
        texts = [text for name, text in done["files"].items() if name.endswith(".yaml")]
        found = [one for text in texts for one in yaml.safe_load_all(text) if one]
        objects[case] = {one["kind"]: one for one in found}
        assert len(objects[case]) == len(found)
    return objects


def pod(objects: Objects) -> dict[str, Any]:
    template: dict[str, Any] = objects["Deployment"]["spec"]["template"]
    return template


def container(objects: Objects) -> dict[str, Any]:
    (only,) = pod(objects)["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def test_helms_linter_warns_of_nothing(made: dict[str, dict[str, Any]]) -> None:
    for case, done in made.items():
        messages = [one for one in done["lint"]["messages"] if one["severity"] > 1]
        assert not messages, case
        assert not done["lint"]["errors"], case


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_one_of_kubernetes(rendered: dict[str, Objects], version: str) -> None:
    import kubernetes_validate

    seen = set()
    for objects in rendered.values():
        for kind, one in objects.items():
            seen.add(kind)
            if kind not in OTHERS:
                kubernetes_validate.validate(one, version, strict=True)
    assert seen == {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PersistentVolumeClaim",
        "PodDisruptionBudget", "Service", "ServiceAccount", "ServiceMonitor",
    }  # fmt: skip


def test_which_objects_there_are_is_what_the_values_say(rendered: dict[str, Objects]) -> None:
    always = {"ConfigMap", "Deployment", "Service"}
    assert set(rendered["default"]) == always | {"PersistentVolumeClaim", "PodDisruptionBudget", "ServiceAccount"}
    assert set(rendered["copies"]) == always | {"NetworkPolicy"}
    assert "PersistentVolumeClaim" not in rendered["claim"]
    for objects in rendered.values():
        labels = pod(objects)["metadata"]["labels"].items()
        selectors = [objects["Deployment"]["spec"]["selector"]["matchLabels"], objects["Service"]["spec"]["selector"]]
        for kind in ("PodDisruptionBudget", "ServiceMonitor"):
            selectors += [objects[kind]["spec"]["selector"]["matchLabels"]] if kind in objects else []
        if "NetworkPolicy" in objects:
            selectors.append(objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"])
        assert all(selector.items() <= labels for selector in selectors)
        assert len({json.dumps(selector) for selector in selectors}) == 1


def test_the_pod_is_the_images_and_has_no_rights(rendered: dict[str, Objects]) -> None:
    image = instructions("Dockerfile")
    one, spec = container(rendered["default"]), pod(rendered["default"])["spec"]
    own = {name["name"]: name["value"] for name in one["env"]}
    assert own.items() <= variables(image["ENV"]).items()
    assert [port["containerPort"] for port in one["ports"]] == [int(own["RERANKD_PORT"])]
    assert one["args"][:1] == json.loads(image["CMD"])
    user = int(image["USER"])
    assert spec["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    mounted = {mount["mountPath"] for mount in one["volumeMounts"] if not mount.get("readOnly")}
    composed = read("compose.yaml")["services"]["rerankd"]
    writable = [word.split(":")[-1] for word in composed["volumes"]] + [
        word.split(":")[0] for word in composed["tmpfs"]
    ]
    assert mounted == set(writable) == {image["VOLUME"], image["WORKDIR"], "/tmp"}
    assert spec["automountServiceAccountToken"] is False
    assert rendered["default"]["ServiceAccount"]["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False


def test_the_server_takes_the_file(
    rendered: dict[str, Objects],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    started: Started,  # noqa: F811
) -> None:
    for case, objects in rendered.items():
        one = container(objects)
        (path,) = [mount["mountPath"] for mount in one["volumeMounts"] if mount["name"] == "config"]
        assert one["args"] == ["serve", "--config", f"{path}/server.yaml"]
        (tmp_path / "server.yaml").write_text(objects["ConfigMap"]["data"]["server.yaml"])
        with monkeypatch.context() as patch:
            for variable in one["env"]:
                patch.setenv(variable["name"], variable.get("value", "from a secret"))
            assert run(patch, "serve", "--config", str(tmp_path / "server.yaml")) == 0
        launch = started.launch
        assert launch is not None
        assert (launch.host, launch.port) == ("0.0.0.0", 8000)
        assert bool(launch.door.api_keys or "RERANKD_API_KEY" in str(one["env"])) == (case == "everything")
        if case == "everything":
            assert launch.settings["names"] == ("qwen", "yes")
            assert launch.settings["max_queued_tokens"] == 10_000_000
            assert (launch.shutdown_timeout, launch.loading["default_instruction"]) == (42.5, "Find: the #1 passage")
        elif case == "copies":
            assert (launch.model, [entry.model for entry in launch.more]) == (None, ["org/a", "org/b"])
        else:
            assert launch.model == environment(read("compose.yaml")["services"]["rerankd"])["RERANKD_MODEL"]


def test_nobody_ends_a_pod_before_it_ends_itself(rendered: dict[str, Objects]) -> None:
    for case, pause, timeout in (("default", 5, SECONDS_TO_END), ("everything", 20, 42.5), ("copies", 0, 10)):
        assert pod(rendered[case])["spec"]["terminationGracePeriodSeconds"] > pause + timeout
        lifecycle = container(rendered[case]).get("lifecycle")
        assert lifecycle == ({"preStop": {"sleep": {"seconds": pause}}} if pause else None)


def test_a_pod_has_its_time_to_load_and_is_asked_whether_it_answers(rendered: dict[str, Objects]) -> None:
    one = container(rendered["everything"])
    probes = {name: one[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"http"} == {one["ports"][0]["name"]}
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] == 65
    (port,) = rendered["everything"]["Service"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (8080, "http")


def test_pods_are_counted_by_the_tokens_that_wait(rendered: dict[str, Objects]) -> None:
    spec = rendered["everything"]["HorizontalPodAutoscaler"]["spec"]
    first, second = spec["metrics"]
    assert first["pods"] == {
        "metric": {"name": "rerankd_queue_tokens"},
        "target": {"type": "AverageValue", "averageValue": "2000000"},
    }
    assert second["type"] == "Resource"
    assert spec["scaleTargetRef"]["name"] == rendered["everything"]["Deployment"]["metadata"]["name"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 9)
    assert "replicas" not in rendered["everything"]["Deployment"]["spec"]
    assert rendered["copies"]["Deployment"]["spec"]["replicas"] == 3


def test_a_volume_of_one_node_has_one_pod(rendered: dict[str, Objects]) -> None:
    assert rendered["default"]["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    assert rendered["copies"]["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert rendered["everything"]["Deployment"]["spec"]["strategy"] == CASES["everything"]["strategy"]
    volumes = {
        case: {one["name"]: one for one in pod(objects)["spec"]["volumes"]} for case, objects in rendered.items()
    }
    claims = {case: one["models"].get("persistentVolumeClaim", {}).get("claimName") for case, one in volumes.items()}
    name = rendered["default"]["PersistentVolumeClaim"]["metadata"]["name"]
    assert claims == {"default": name, "everything": name, "copies": None, "claim": "models"}


def test_a_changed_file_starts_new_pods_and_keys_are_never_shown(rendered: dict[str, Objects]) -> None:
    sums = {pod(objects)["metadata"]["annotations"]["checksum/config"] for objects in rendered.values()}
    assert len(sums) == len(rendered)
    secrets = {
        one["name"]: one["valueFrom"]["secretKeyRef"]
        for one in container(rendered["everything"])["env"]
        if "valueFrom" in one
    }
    assert secrets == {
        "RERANKD_API_KEY": {"name": "keys", "key": "api-key"},
        "HF_TOKEN": {"name": "hub", "key": "hf"},
    }


def test_the_network_is_closed_as_far_as_the_values_say(rendered: dict[str, Objects]) -> None:
    closed, opened = (rendered[case]["NetworkPolicy"]["spec"] for case in ("everything", "copies"))
    assert (closed["policyTypes"], closed["egress"]) == (["Ingress", "Egress"], [])
    assert closed["ingress"] == [{"ports": [{"port": "http"}], "from": CASES["everything"]["networkPolicy"]["from"]}]
    assert (opened["policyTypes"], opened["ingress"]) == (["Ingress"], [{"ports": [{"port": "http"}]}])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"modelcache": {}}, "modelcache"),
    ({"autoscaling": {"queueToken": 1}}, "queueToken"),
    ({"config": {"port": 9000}}, "'/config/port'"),
    ({"config": {"api-key": "a-secret"}}, "'/config/api-key'"),
    ({"config": {"ssl-certfile": "/a.pem"}}, "'/config/ssl-certfile'"),
    ({"config": {"max_model_len": 512}}, "max_model_len"),
    ({"config": {"modle": "org/a"}}, "'modle'"),
    ({"config": {"config": "/a.yaml"}}, "'/config/config'"),
    ({"config": {"models": ["org/a", "org/b"]}}, "config.model: beside config.models"),
    *(
        ({"extraEnv": [{"name": "A"}, {"name": name, "value": "1"}]}, f"extraEnv: {name} would override")
        for name in (
            *("RERANKD_PORT", "RERANKD_HOST", "RERANKD_UDS", "RERANKD_CONFIG", "RERANKD_PROTECT_ALL"),
            *("RERANKD_SSL_CERTFILE", "RERANKD_SHUTDOWN_TIMEOUT", "RERANKD_MODEL"),
        )
    ),
    ({"extraEnv": [{"name": "RERANKD_API_KEY", "value": "1"}]}, "apiKey.secretName"),
    ({"extraEnv": [{"name": "HF_HOME", "value": "/a"}]}, "extraEnv: HF_HOME"),
    ({"replicas": 2}, "ReadWriteMany"),
    ({"autoscaling": {"enabled": True}}, "ReadWriteMany"),
    (
        {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}, "modelCache": {"enabled": False}},
        "autoscaling.minReplicas: it is larger",
    ),
    ({"podLabels": {"app.kubernetes.io/name": "other"}}, "podLabels.app.kubernetes.io/name"),
    ({"podAnnotations": {"checksum/config": "other"}}, "podAnnotations.checksum/config"),
    (
        {"serviceMonitor": {"enabled": True, "labels": {"helm.sh/chart": "other"}}},
        "serviceMonitor.labels.helm.sh/chart",
    ),
    ({"fullnameOverride": "A_B"}, "'/fullnameOverride'"),
    ({"fullnameOverride": "1.b"}, "fullnameOverride: the objects cannot be called 1.b"),
    ({"nameOverride": "A_B"}, "'/nameOverride'"),
    ({"serviceAccount": {"name": "A_B"}}, "'/serviceAccount/name'"),
    ({"apiKey": {"secretName": "A_B"}}, "'/apiKey/secretName'"),
]


def test_values_that_would_break_are_refused_by_name() -> None:
    for (values, word), done in zip(REFUSED, helm(*(values for values, _ in REFUSED)), strict=True):
        assert word in done.get("refused", ""), values


def test_the_file_may_have_every_flag_that_the_chart_does_not_set_itself() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    config = schema["properties"]["config"]
    ((refused, no),) = config["patternProperties"].items()
    assert no is False
    flags = {*own_flags("serve"), KEY}
    names = re.findall(r"[a-z-]{3,}", refused.replace("ssl-.*", ""))
    assert {"host", "port", "uds"} <= set(names) <= flags
    assert set(config["properties"]) == {flag for flag in flags if not re.search(refused, flag)}
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert set(defaults) == set(schema["properties"]) - {"global"}
    assert set(defaults["config"]) <= flags
