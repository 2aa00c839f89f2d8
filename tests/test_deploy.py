"""Files of containers and of systemd name options that there are, and the settings that they have to agree on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rerankd.cli.configuration import PREFIX, READ_ELSEWHERE
from rerankd.cli.main import own_flags

ROOT = Path(__file__).parents[1]
FILES = [*sorted(ROOT.glob("Dockerfile*")), *sorted((ROOT / "deploy").iterdir())]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_variable_and_flag_is_one(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    flags = own_flags("serve")
    variables = {PREFIX + flag.replace("-", "_").upper() for flag in flags} | READ_ELSEWHERE
    assert set(re.findall(r"RERANKD_[A-Z_]+", text)) <= variables
    (command,) = re.findall(r"rerankd serve (.*)", text) or [""]
    assert {word[2:] for word in command.split() if word.startswith("--")} <= set(flags)


def test_open_webui_is_given_the_name_and_key_of_the_server() -> None:
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))["services"]
    server, client = services["rerankd"]["environment"], services["open-webui"]["environment"]
    assert client["RAG_RERANKING_MODEL"] == server["RERANKD_SERVED_MODEL_NAME"]
    assert client["RAG_EXTERNAL_RERANKER_API_KEY"] == server["RERANKD_API_KEY"]
    port = re.search(r"RERANKD_PORT=(\d+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert port is not None
    assert client["RAG_EXTERNAL_RERANKER_URL"] == f"http://rerankd:{port[1]}/v1/rerank"


def test_the_two_images_differ_in_torch_and_the_devices_alone() -> None:
    cpu, cuda = ((ROOT / name).read_text(encoding="utf-8").splitlines() for name in ("Dockerfile", "Dockerfile.cuda"))
    assert [line for line in cpu if line not in cuda] == [
        "# rerankd on a CPU. docs/deploy.md says how to build and run the image.",
        'RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.11"',
    ]
