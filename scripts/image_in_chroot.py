"""Runs the steps of a Dockerfile in chroots, and its command and health check in the last one.

    python scripts/image_in_chroot.py Dockerfile FOLDER --set RERANKD_MODEL=/model --mount PATH_OF_A_MODEL:/model

For machines without a Docker engine; needs root, Linux and debootstrap. Each stage begins with Debian and Debian's own
Python, whatever its FROM names. Nothing is isolated but files and mounts.

--suite: Debian's, which says the version of Python
--set: a variable of the steps and of the command
--mount: a folder of this machine, as it is in the chroots
--without: words that the steps are run without, such as those that name an index out of reach
Exit code 1 where a step fails, or the health check does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = "python3,python3-pip,python3-venv,python-is-python3,ca-certificates"
SECONDS_BETWEEN_CHECKS = 5
INSIDE = "IN_A_MOUNT_NAMESPACE"
"""A variable that is set where mounts end with this process, so that none outlives it in a folder that is removed."""


@dataclass
class Stage:
    """A chroot, and what the instructions so far have set."""

    root: Path
    folder: str = "/"
    user: str = "0"
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    environ: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"})

    def command(self, words: Sequence[str]) -> list[str]:
        """What runs words inside, in the folder, as the user."""
        inside = ["sh", "-c", f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"]
        return ["chroot", f"--userspec={self.user}:{self.user}", str(self.root), *inside]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--suite", default="stable")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--mount", action="append", default=[])
    parser.add_argument("--without", default="")
    given = parser.parse_args()
    if INSIDE not in os.environ:
        os.execvpe("unshare", ["unshare", "--mount", sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})
    own = dict(word.split("=", 1) for word in given.set)
    steps = [(name, words.replace(given.without, "")) for name, words in instructions(given.dockerfile)]
    prepare(given.folder / "base", given.suite)
    stages, told = built(steps, given.dockerfile.parent, given.folder, own, given.mount)
    last = list(stages.values())[-1]
    with mounted(last.root, given.mount):
        return served(last, own, told)


def prepare(base: Path, suite: str) -> None:
    """Make what each stage begins with, unless it is there."""
    if base.exists():
        return
    run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(base)])
    # Debian forbids pip what the images of Python allow.
    for marker in base.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()


def built(
    steps: Iterable[tuple[str, str]], context: Path, folder: Path, own: Mapping[str, str], mounts: Sequence[str]
) -> tuple[dict[str, Stage], dict[str, str]]:
    """Each stage by its name, and the instructions that say how the image runs."""
    base = folder / "base"
    stages: dict[str, Stage] = {}
    told: dict[str, str] = {}
    stage = Stage(base)
    for name, words in steps:
        print(f"{name} {words}", flush=True)
        if name == "FROM":
            title = words.partition(" AS ")[2] or "last"
            stage = stages[title] = Stage(folder / title)
            shutil.rmtree(stage.root, ignore_errors=True)
            run(["cp", "-a", str(base), str(stage.root)])
            shutil.copy("/etc/resolv.conf", stage.root / "etc/resolv.conf")
            shutil.copy("/etc/ssl/certs/ca-certificates.crt", stage.root / "etc/ssl/certs/ca-certificates.crt")
        elif name == "RUN":
            bound = re.match(r"--mount=type=bind,from=(\w+),source=(\S+),target=(\S+) +", words)
            more = [f"{stages[bound[1]].root}{bound[2]}:{bound[3]}"] if bound else []
            with mounted(stage.root, [*mounts, *more]):
                command = [*stage.shell, words[bound.end() :] if bound else words]
                run(stage.command(command), {**stage.environ, **own})
        elif name == "COPY":
            copy_context(context, stage.root / stage.folder.lstrip("/"))
        elif name == "WORKDIR":
            stage.folder = words
            (stage.root / words.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "ENV":
            stage.environ |= dict(word.split("=", 1) for word in shlex.split(words))
        elif name == "USER":
            stage.user = words
        elif name == "SHELL":
            stage.shell = json.loads(words)
        else:
            told[name] = words
    return stages, told


def served(stage: Stage, own: Mapping[str, str], told: Mapping[str, str]) -> int:
    """Start the command, and ask its health check until that is 0 or the command ends."""
    environ = {**stage.environ, **own}
    command = stage.command([*json.loads(told["ENTRYPOINT"]), *json.loads(told["CMD"])])
    check = stage.command(json.loads(told["HEALTHCHECK"].partition("CMD ")[2]))
    for tool in ("cc", "gcc"):
        print(f"{tool}: {shutil.which(tool, path=str(stage.root / 'usr/bin'))}", flush=True)
    with subprocess.Popen(command, env=environ) as process:
        while process.poll() is None:
            if subprocess.run(check, env=environ, stderr=subprocess.DEVNULL, check=False).returncode == 0:
                print("healthy", flush=True)
                process.terminate()
                return process.wait()
            time.sleep(SECONDS_BETWEEN_CHECKS)
    return 1


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    yield from re.findall(r"^([A-Z]+) +(.*)$", text, re.MULTILINE)


def copy_context(context: Path, target: Path) -> None:
    """What `.dockerignore` lets in: names after an exclamation mark, without what a build leaves there."""
    for line in (context / ".dockerignore").read_text(encoding="utf-8").splitlines():
        source = context / line[1:]
        if line.startswith("!") and source.is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
            shutil.copytree(source, target / source.name, ignore=left_out)
        elif line.startswith("!"):
            shutil.copy(source, target)


@contextmanager
def mounted(root: Path, mounts: Sequence[str]) -> Iterator[None]:
    done: list[Path] = []
    try:
        for source, place in (one.split(":") for one in ("/proc:/proc", "/dev:/dev", *mounts)):
            target = root / place.lstrip("/")
            target.mkdir(parents=True, exist_ok=True)
            run(["mount", "--bind", source, str(target)])
            done.append(target)
        yield
    finally:
        for target in reversed(done):
            run(["umount", str(target)])


def run(command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
    subprocess.run(command, env=dict(environ or os.environ), check=True)


if __name__ == "__main__":
    sys.exit(main())
