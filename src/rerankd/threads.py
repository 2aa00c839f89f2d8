"""The threads that compute on a CPU: how many, and how long they spin before they sleep."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CORES = Path("/sys/devices/system/cpu")
OWN_CGROUP = Path("/proc/self/cgroup")
MOST_THREADS = 1024
"""The most threads to ask for. No machine has more cores to compute a batch, and systems soon refuse to start more."""
SPINS = "2000"
"""The spins of GNU's OpenMP that take about as long as a wake-up, 0.1 ms; by default it spins for milliseconds."""


def spin_briefly() -> None:
    """Let threads of GNU's OpenMP sleep soon after a parallel region, unless the environment says otherwise.

    A thread that spins takes time from the thread that it waits for, where other processes or a quota leave fewer cores
    than there are threads. To be called before torch is imported, which loads OpenMP; afterwards it has no effect.
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def use_threads(count: int | None) -> None:
    """Set the number of threads of torch and of the kernels.

    count: None for OMP_NUM_THREADS; if that is not set, a thread for each core that the process may use, and at most as
        many as its CPU quota allows
    """
    import torch

    quota = cpu_quota()
    if count is None and quota is not None and "OMP_NUM_THREADS" not in os.environ:
        count = min(torch.get_num_threads(), math.ceil(quota))
    if count is not None and count != torch.get_num_threads():
        torch.set_num_threads(count)


@dataclass(frozen=True, slots=True)
class Share:
    """The share of the machine for one of several computing processes.

    cores: the cores of its threads; empty for all
    """

    threads: int
    cores: tuple[int, ...] = ()

    def take(self) -> None:
        """Restrict this process to its share. Call this before the process has threads."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        use_threads(self.threads)


def shares(count: int, threads: int | None) -> list[Share]:
    """The shares of `count` processes: neighbouring cores, of one NUMA node as far as nodes divide.

    threads: the number of threads of each process; None for OMP_NUM_THREADS, else for torch's own number divided by
        `count`: the first processes have one more where it does not divide

    A process with more threads than cores may use all cores.
    """
    import torch

    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        use_threads(None)
        each = [max(part, 1) for part in parts(torch.get_num_threads(), count)]
    else:
        each = [threads or torch.get_num_threads()] * count
    return [Share(own, cores if own <= len(cores) else ()) for own, cores in zip(each, core_groups(count), strict=True)]


def parts(whole: int, count: int) -> list[int]:
    """`whole` in `count` parts, the first of which may be larger by 1.

    No part of a smaller whole is larger than the same part of a larger one: threads fit on their cores.
    """
    return [(whole + count - 1 - part) // count for part in range(count)]


def core_groups(count: int) -> list[tuple[int, ...]]:
    """The cores that this process may use, in `count` groups; empty groups if the system does not report them.

    With fewer cores than groups, each group has one core, which other groups may have too.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [()] * count
    cores = sorted(os.sched_getaffinity(0), key=_neighbourhood)
    groups = min(count, len(cores))
    ends = list(accumulate(parts(len(cores), groups), initial=0))
    return [tuple(cores[ends[i % groups] : ends[i % groups + 1]]) for i in range(count)]


def _neighbourhood(core: int) -> tuple[int, ...]:
    """Node, socket, physical core and number, so that neighbouring cores sort side by side."""
    folder = CORES / f"cpu{core}"
    node = next((int(path.name[4:]) for path in folder.glob("node[0-9]*")), 0)
    return node, _number(folder / "topology/physical_package_id"), _number(folder / "topology/core_id"), core


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def usable_cores() -> float:
    """The number of cores that the process may use, by its affinity and its quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cpu_quota() or math.inf)


def cpu_quota() -> float | None:
    """The cores' worth of time that control groups leave the process, such as 1.5; None where they set no limit."""
    quotas = [quota for folder in _groups() if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _groups() -> list[Path]:
    """The folders of the process's control groups and of the groups around them."""
    folders = [CGROUPS, CGROUPS / "cpu"]
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            folder = CGROUPS / "cpu" if controllers else CGROUPS
            group = folder / path.lstrip("/")
            folders += [group, *(parent for parent in group.parents if folder in parent.parents)]
    return folders


def _quota(folder: Path) -> float | None:
    """The cores that one control group allows, by the files of version 2 or 1."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError):
        return None
