"""The free memory, as the machine, a container or Slurm limits it. The files are as the kernel's documents say."""

import os
from pathlib import Path

import pytest

from gradexp.runs.memory import free_memory

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "ascii")
    return root


MACHINE = {"proc/meminfo": f"MemTotal: {64 * GIB >> 10} kB\nMemAvailable:   {40 * GIB >> 10} kB\n"}
STAT = f"anon 5\ninactive_file {GIB}\ntotal_inactive_file {GIB}\n"


def test_a_machine_says_what_is_available(tmp_path: Path) -> None:
    assert free_memory(write(tmp_path, MACHINE), {}) == 40 * GIB


@pytest.mark.parametrize("path", ["/", "/job/step"])
def test_a_container_of_cgroup_2_has_what_its_limit_leaves(tmp_path: Path, path: str) -> None:
    group = f"sys/fs/cgroup{path.rstrip('/')}"
    files = {
        "proc/self/cgroup": f"0::{path}\n",
        f"{group}/memory.max": str(8 * GIB),
        f"{group}/memory.current": str(3 * GIB),
        f"{group}/memory.stat": STAT,
    }
    assert free_memory(write(tmp_path, MACHINE | files), {}) == (8 - 3 + 1) * GIB


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a/b\n"}
    for group, limit in (("", "max"), ("/a", str(2 * GIB)), ("/a/b", str(8 * GIB))):
        place = f"sys/fs/cgroup{group}"
        files |= {f"{place}/memory.max": limit, f"{place}/memory.current": "0", f"{place}/memory.stat": STAT}
    assert free_memory(write(tmp_path, MACHINE | files), {}) == 2 * GIB


@pytest.mark.parametrize(("limit", "left"), [(8 * GIB, 6 * GIB), (0x7FFFFFFFFFFFF000, 40 * GIB)])
def test_a_container_of_cgroup_1_has_what_its_limit_leaves(tmp_path: Path, limit: int, left: int) -> None:
    group = "sys/fs/cgroup/memory/job"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job\n",
        f"{group}/memory.limit_in_bytes": str(limit),
        f"{group}/memory.usage_in_bytes": str(3 * GIB),
        f"{group}/memory.stat": STAT,
    }
    assert free_memory(write(tmp_path, MACHINE | files), {}) == left


@pytest.mark.parametrize(
    ("environment", "left"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "3"}, 6),
        ({"SLURM_MEM_PER_NODE": "0"}, 40),
        ({"SLURM_MEM_PER_CPU": "2048"}, 40),
    ],
)
def test_a_slurm_job_has_what_it_was_given(tmp_path: Path, environment: dict[str, str], left: int) -> None:
    assert free_memory(write(tmp_path, MACHINE), environment) == left * GIB


def test_a_system_that_says_nothing_is_taken_to_have_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert free_memory(tmp_path, {}) == 4 * GIB


def test_this_machine_has_some() -> None:
    assert free_memory() > 0
