"""How many threads compute, by options, the environment and control groups."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerankd import ModelError, loading, threads
from rerankd.loading import plan
from rerankd.options import LoadOptions
from rerankd.threads import Share


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the system's control groups, of which the process's own is /a/b."""
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    folder = tmp_path / "groups"
    (folder / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(threads, "CGROUPS", folder)
    monkeypatch.setattr(threads, "OWN_CGROUP", own)
    return folder


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3.0),
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_the_smallest_quota_of_all_groups_counts(groups: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        (groups / name).parent.mkdir(exist_ok=True)
        (groups / name).write_text(text)
    assert threads.cpu_quota() == quota


def test_threads_follow_the_option_then_the_environment_then_the_quota(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (groups / "cpu.max").write_text("150000 100000")
    try:
        torch.set_num_threads(4)
        threads.use_threads(None)
        assert torch.get_num_threads() == 2
        threads.use_threads(3)
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        threads.use_threads(None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Two nodes of two cores with two threads each; the threads of a core have numbers 4 apart."""
    for core in range(8):
        folder = tmp_path / f"cpu{core}"
        (folder / "topology").mkdir(parents=True)
        (folder / f"node{core % 2}").mkdir()
        (folder / "topology" / "physical_package_id").write_text(f"{core % 2}\n")
        (folder / "topology" / "core_id").write_text(f"{core % 4 // 2}\n")
    monkeypatch.setattr(threads, "CORES", tmp_path)
    allowed = set(range(8))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: allowed)
    return allowed


def test_core_groups_hold_neighbours(machine: set[int]) -> None:
    assert threads.core_groups(2) == [(0, 4, 2, 6), (1, 5, 3, 7)]
    assert threads.core_groups(4) == [(0, 4), (2, 6), (1, 5), (3, 7)]
    assert threads.core_groups(3) == [(0, 4, 2), (6, 1, 5), (3, 7)]
    machine -= {2, 3, 4, 5, 6, 7}
    assert threads.core_groups(3) == [(0,), (1,), (0,)]


def test_replicas_share_out_the_threads_and_keep_to_their_cores(
    machine: set[int], groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(8)
        assert threads.shares(2, None) == [Share(4, (0, 4, 2, 6)), Share(4, (1, 5, 3, 7))]
        assert threads.shares(2, 3)[0] == Share(3, (0, 4, 2, 6))
        assert threads.shares(2, 5)[0] == Share(5), "more threads than its cores"
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        torch.set_num_threads(2)
        assert threads.shares(2, None)[0] == Share(2, (0, 4, 2, 6))
        assert threads.shares(8, None)[0] == Share(2)
        (groups / "cpu.max").write_text("300000 100000")
        monkeypatch.delenv("OMP_NUM_THREADS")
        torch.set_num_threads(8)
        assert [share.threads for share in threads.shares(2, None)] == [2, 1], "3 of a quota, shared out"
        assert [share.threads for share in threads.shares(4, None)] == [1, 1, 1, 1], "none has less than 1"
        machine -= {3, 4, 5, 6, 7}
        torch.set_num_threads(3)
        assert threads.shares(2, None) == [Share(2, (0, 2)), Share(1, (1,))], "no core idles"
    finally:
        torch.set_num_threads(before)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 20))
def test_parts_are_whole_and_grow_with_it(less: int, more: int, count: int) -> None:
    less, more = sorted((less, more))
    small, large = threads.parts(less, count), threads.parts(more, count)
    assert (sum(small), sum(large)) == (less, more)
    assert large[0] - large[-1] <= 1
    assert sorted(large, reverse=True) == large
    assert all(one <= other for one, other in zip(small, large, strict=True)), "threads fit on their cores"


@pytest.mark.parametrize("count", [0, 1025, 99999])
def test_a_number_of_threads_that_no_machine_has_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(ModelError, match=rf"\(--num-threads\) must be from 1 to 1024, not {count}; leave it out"):
        plan(LoadOptions(str(tmp_path), num_threads=count))


def test_more_replicas_than_cores_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "usable_cores", lambda: 2.0)
    for count in (1, 2, 3):
        with pytest.raises(ModelError, match=str(tmp_path)):
            plan(LoadOptions(str(tmp_path), device="cpu", data_parallel_size=count))
    (line,) = [one.getMessage() for one in caplog.records if "replicas" in one.getMessage()]
    assert line.startswith("3 replicas (--data-parallel-size) share 2 cores")


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_openmp_is_told_to_spin_briefly_unless_the_environment_says_otherwise(
    environment: dict[str, str], spins: str
) -> None:
    command = [sys.executable, "-c", "import os, rerankd; print(os.environ.get('GOMP_SPINCOUNT'))"]
    path = {"PYTHONPATH": str(Path(threads.__file__).parents[1])}
    done = subprocess.run(command, env=environment | path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spins
