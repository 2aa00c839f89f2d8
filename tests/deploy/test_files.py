"""Files of containers, clusters and systemd name options that there are, and settings that agree with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerankd.cli.configuration import PREFIX, READ_ELSEWHERE
from rerankd.cli.main import own_flags
from rerankd.cli.start import Launch
from rerankd.version import __version__

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = [*sorted(ROOT.glob("Dockerfile*")), *sorted(path for path in DEPLOY.rglob("*") if path.is_file())]
COMPOSE = sorted(DEPLOY.glob("compose*.yaml"))
SECONDS_TO_END = Launch(None).shutdown_timeout


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def environment(service: dict[str, Any]) -> dict[str, str]:
    """A service's variables, those of the service that it extends included."""
    extended = service.get("extends")
    above = environment(read(extended["file"])["services"][extended["service"]]) if extended else {}
    return {**above, **service.get("environment", {})}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_variable_and_flag_is_one(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    flags = own_flags("serve")
    variables = {PREFIX + flag.replace("-", "_").upper() for flag in flags} | READ_ELSEWHERE
    assert set(re.findall(r"RERANKD_[A-Z_]+[A-Z]", text)) <= variables | {"RERANKD_HOST", "RERANKD_PORT"}
    for command in re.findall(r"rerankd serve (.*)|args: \[serve,? ?(.*)\]", text):
        words = re.split(r"[ ,]+", "".join(command))
        assert {word[2:] for word in words if word.startswith("--")} <= set(flags)


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.name)
def test_every_compose_file_serves_with_a_key_and_no_more_rights_than_it_needs(file: Path) -> None:
    composed = read(file.name)
    server = composed["services"]["rerankd"]
    assert environment(server)["RERANKD_API_KEY"] == "${RERANKD_API_KEY:?a secret of your own}"
    assert "ports" not in server
    first = read("compose.yaml")["services"]["rerankd"]
    assert server is not first
    assert server == first or server["extends"] == {"file": "compose.yaml", "service": "rerankd"}
    assert (first["read_only"], first["cap_drop"], "models" in composed["volumes"]) == (True, ["ALL"], True)
    for service in composed["services"].values():
        for named in service.get("volumes", []):
            assert named.partition(":")[0] in composed["volumes"]
        for config in service.get("configs", []):
            assert yaml.safe_load(composed["configs"][config["source"]]["content"])


def test_the_clients_are_given_the_name_the_key_and_the_address_of_the_server() -> None:
    port = re.search(r"RERANKD_PORT=(\d+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert port is not None
    address = f"http://rerankd:{port[1]}"
    services = read("compose.yaml")["services"]
    server, client = environment(services["rerankd"]), environment(services["open-webui"])
    assert client["RAG_RERANKING_MODEL"] == server["RERANKD_SERVED_MODEL_NAME"]
    assert client["RAG_EXTERNAL_RERANKER_API_KEY"] == server["RERANKD_API_KEY"]
    assert client["RAG_EXTERNAL_RERANKER_URL"] == f"{address}/v1/rerank"
    dify = (DEPLOY / "compose.dify.yaml").read_text(encoding="utf-8")
    assert server["RERANKD_SERVED_MODEL_NAME"] in dify
    assert f"{address}/v1," in dify
    milvus = read("compose.milvus.yaml")
    credentials = yaml.safe_load(milvus["configs"]["milvus"]["content"])["credential"]
    assert credentials == {"rerankd": {"apikey": server["RERANKD_API_KEY"]}}
    text = (DEPLOY / "compose.milvus.yaml").read_text(encoding="utf-8")
    assert f'"endpoint": "{address}", "credential": "rerankd"' in text


def test_nobody_ends_a_server_before_it_ends_itself() -> None:
    unit = (DEPLOY / "rerankd.service").read_text(encoding="utf-8")
    seconds = {
        "compose": read("compose.yaml")["services"]["rerankd"]["stop_grace_period"].removesuffix("s"),
        "systemd": re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0],
    }
    assert min(map(float, seconds.values())) > SECONDS_TO_END


def test_the_images_of_a_cluster_have_this_version() -> None:
    chart = read("helm/rerankd/Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    (container,) = read("kserve.yaml")["spec"]["predictor"]["containers"]
    assert container["image"] == f"rerankd:{__version__}"


def test_the_two_images_differ_in_torch_and_the_devices_alone() -> None:
    cpu, cuda = ((ROOT / name).read_text(encoding="utf-8").splitlines() for name in ("Dockerfile", "Dockerfile.cuda"))
    assert [line for line in cpu if line not in cuda] == [
        "# rerankd on a CPU. docs/deploy.md says how to build and run the image.",
        'RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.11"',
    ]
