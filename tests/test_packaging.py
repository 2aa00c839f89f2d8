"""What is packed: every file of the package, and every source that the kernels are compiled from."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.server
def test_nothing_of_the_package_is_left_out(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    shutil.copytree(ROOT / "src", copy / "src", ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    commands = ["build_py", "--build-lib", "built", "sdist", "--dist-dir", "dist"]
    made = subprocess.run(
        [sys.executable, "setup.py", "-q", *commands], cwd=copy, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    package = copy / "src/rerankd"
    files = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    sources = {path for path in files if path.suffix in (".c", ".h")}
    assert len(sources) > 20
    built = copy / "built/rerankd"
    assert {path.relative_to(built) for path in built.rglob("*") if path.is_file()} >= files - sources
    (archive,) = (copy / "dist").iterdir()
    with tarfile.open(archive) as packed:
        names = {"/".join(Path(name).parts[1:]) for name in packed.getnames()}
    assert {f"src/rerankd/{path.as_posix()}" for path in files} | {"setup.py"} <= names
