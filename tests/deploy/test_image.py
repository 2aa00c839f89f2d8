"""The command of the image, its variables, its health check and the probes of clusters, on a server over sockets."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import requests

from tests.deploy.test_files import DEPLOY, ROOT, read
from tests.server.launched import environment, launched

KEY = "a-secret"
QUERY, DOCUMENTS = "what is panda?", ["hi", "The giant panda is a bear."]


def instructions(dockerfile: str) -> dict[str, str]:
    """The last instruction of each name."""
    text = (ROOT / dockerfile).read_text(encoding="utf-8").replace("\\\n", " ")
    return dict(re.findall(r"^([A-Z]+) +(.*)$", text, re.MULTILINE))


def variables(words: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words.split())


def health_check(words: str, environ: Mapping[str, str]) -> int:
    """The exit code of a HEALTHCHECK."""
    program, *arguments = json.loads(words.partition("CMD ")[2])
    assert program == "python"
    done = subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, check=False, timeout=60)
    return done.returncode


@pytest.mark.server
def test_the_image_answers_the_probes_and_clients_of_all_files(
    monkeypatch: pytest.MonkeyPatch, minilm_path: Path, tmp_path: Path
) -> None:
    image = instructions("Dockerfile")
    (program,), command = json.loads(image["ENTRYPOINT"]), json.loads(image["CMD"])
    assert program == "rerankd"
    # `docker run IMAGE serve` is what SageMaker starts.
    assert command == ["serve"]
    (container,) = read("kserve.yaml")["spec"]["predictor"]["containers"]
    settings = {one["name"]: one["value"] for one in container["env"]}
    assert container["args"] == command
    assert settings["RERANKD_PORT"] == str(container["ports"][0]["containerPort"])
    for name, value in {**variables(image["ENV"]), **settings, "HF_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RERANKD_HOST", "127.0.0.1")
    monkeypatch.setenv("RERANKD_MODEL", str(minilm_path))
    monkeypatch.setenv("RERANKD_API_KEY", KEY)
    name = settings["RERANKD_SERVED_MODEL_NAME"]
    with launched(("-m", program, *command)) as server:
        environ = environment(RERANKD_PORT=server.port)
        assert health_check(image["HEALTHCHECK"], environ) == 0
        files = (DEPLOY / "kserve.yaml", *(DEPLOY / "helm/rerankd/templates").iterdir())
        probes = {path for file in files for path in re.findall(r"path: (/\S+)", file.read_text(encoding="utf-8"))}
        assert {"/health", "/ready", "/metrics", "/v2/health/ready"} == probes
        for path in (*sorted(probes), "/ping"):
            assert requests.get(server.url + path, timeout=30).status_code == 200, path
        metrics = requests.get(f"{server.url}/metrics", timeout=30).text
        assert re.search(r"^rerankd_queue_tokens 0\.0$", metrics, re.MULTILINE)
        bodies = {
            "/v1/rerank": {"model": name, "query": QUERY, "documents": DOCUMENTS, "top_n": 2},
            "/rerank": {"query": QUERY, "documents": DOCUMENTS},
            "/invocations": {"query": QUERY, "documents": DOCUMENTS},
        }
        for path, body in bodies.items():
            assert requests.post(server.url + path, json=body, timeout=30).status_code == 401, path
            headers = {"Authorization": f"Bearer {KEY}"}
            answer = requests.post(server.url + path, json=body, headers=headers, timeout=30)
            assert answer.status_code == 200, answer.text
            assert [one["index"] for one in answer.json()["results"]] == [1, 0], path
        given = [
            {"name": "query", "datatype": "BYTES", "shape": [1], "data": [QUERY]},
            {"name": "documents", "datatype": "BYTES", "shape": [2], "data": DOCUMENTS},
        ]
        url = f"{server.url}/v2/models/{name}/infer"
        (output,) = requests.post(url, json={"inputs": given}, headers=headers, timeout=30).json()["outputs"]
        assert output["data"][0] < output["data"][1]
        assert server.stop(signal.SIGTERM)[0] == 0
        assert health_check(image["HEALTHCHECK"], environ) == 1
