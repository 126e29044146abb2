"""Sweeps on a real Ray cluster of two nodes, each in a network namespace of its own that these tests make."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from sweep_processes import (
    EIGHT_JOBS,
    SLOW,
    TAKES_MINUTES,
    assert_a_stack_is_equal_up_to_rounding,
    assert_same_numbers,
    finish,
    job_lines,
    start,
    statuses,
    summaries,
    table,
    until,
    until_under_way,
)


def missing() -> str | None:
    """Return why no cluster can be started here, or None."""
    if "GRADEXP_TEST_CLUSTERS" not in os.environ:
        return TAKES_MINUTES
    if importlib.util.find_spec("ray") is None:
        return "needs ray: pip install ray"
    if os.geteuid():
        return "needs root, to make network namespaces"
    return None if shutil.which("ip") else "needs ip (Debian: iproute2)"


REASON = missing()
pytestmark = [pytest.mark.ray, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

PORT = 6399
HEAD, WORKER = "10.231.0.1", "10.231.0.2"


@dataclass
class Cluster:
    """Two nodes of one CPU each."""

    suffix: str
    folder: Path
    env: dict[str, str]

    def inside(self, address: str) -> list[str]:
        """Return how to run a command on a node."""
        return ["ip", "netns", "exec", self.namespace(address)]

    def namespace(self, address: str) -> str:
        return f"ray{address[-1]}-{self.suffix}"

    def processes(self, address: str) -> list[int]:
        return [int(one) for one in output("ip", "netns", "pids", self.namespace(address)).split()]

    def begin(self, address: str) -> None:
        """Start a node; the second one elsewhere than where commands are called."""
        ray = [*self.inside(address), str(Path(sys.executable).parent / "ray"), "start", "--num-cpus=1"]
        ray += [f"--node-ip-address={address}", "--disable-usage-stats"]
        if address == HEAD:
            ray += ["--head", f"--port={PORT}", f"--temp-dir={self.folder}", "--include-dashboard=false"]
        else:
            ray += [f"--address={HEAD}:{PORT}"]
        done = subprocess.run(ray, capture_output=True, text=True, check=False, cwd=self.folder, env=self.env)
        assert done.returncode == 0, done.stdout + done.stderr

    def lose(self, address: str) -> None:
        """Kill everything on a node."""
        while processes := self.processes(address):
            for one in processes:
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            time.sleep(0.1)

    def sweep(self, folder: Path, options: list[str], *further: str) -> "subprocess.Popen[str]":
        on_ray = ["hydra/launcher=ray_cluster", f"hydra.launcher.address={HEAD}:{PORT}"]
        return start(folder, options, *on_ray, *further, env=self.env, prefix=self.inside(HEAD))

    def workers(self) -> list[int]:
        """Return the processes that run a task."""
        found = [*self.processes(HEAD), *self.processes(WORKER)]
        return [one for one in found if "ray::run_task" in command_line(one)]


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="gr-", dir="/tmp"))  # short: Ray's sockets lie in it
    made = Cluster(str(os.getpid()), folder, {**os.environ, "RAY_AUTH_MODE": "disabled"})
    ends = {HEAD: f"ve1-{made.suffix}", WORKER: f"ve2-{made.suffix}"}
    try:
        for address in ends:
            output("ip", "netns", "add", made.namespace(address))
            output("ip", "-n", made.namespace(address), "link", "set", "lo", "up")
        first, second = ((end, "netns", made.namespace(address)) for address, end in ends.items())
        output("ip", "link", "add", *first, "type", "veth", "peer", "name", *second)
        for address, end in ends.items():
            output("ip", "-n", made.namespace(address), "addr", "add", f"{address}/24", "dev", end)
            output("ip", "-n", made.namespace(address), "link", "set", end, "up")
        for address in ends:
            made.begin(address)
        yield made
    finally:
        for address in ends:
            with suppress(subprocess.CalledProcessError):  # not made
                made.lose(address)
                output("ip", "netns", "delete", made.namespace(address))
        shutil.rmtree(folder)


def test_eight_jobs_on_two_nodes_are_equal_to_those_of_the_basic_launcher_bit_for_bit(
    cluster: Cluster, eight_jobs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    process = cluster.sweep(folder, EIGHT_JOBS)
    nodes = set()
    while process.poll() is None:
        for address in (HEAD, WORKER):
            nodes |= {address for one in cluster.processes(address) if "ray::run_task" in command_line(one)}
        time.sleep(0.1)
    code, out, err = finish(process)
    assert code == 0, err
    assert err == ""
    assert nodes == {HEAD, WORKER}
    assert "8 tasks on 2 nodes" in out
    assert len(job_lines(out)) == 8
    assert_same_numbers(folder, eight_jobs)
    assert (folder / "report.html").exists()


def test_a_relative_folder_lies_where_the_command_was_called(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = finish(cluster.sweep(Path("here"), ["depth=3,4", "width=4", "steps=1"]))
    assert code == 0, err
    assert len(table(tmp_path / "here")) == 2


def test_a_task_runs_a_stack_of_several_jobs(cluster: Cluster, eight_jobs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    code, out, err = finish(cluster.sweep(folder, EIGHT_JOBS, "hydra.launcher.jobs_per_task=4"))
    assert code == 0, err
    assert "2 tasks on 2 nodes" in out
    assert statuses(folder) == ["complete"] * 8
    assert_a_stack_is_equal_up_to_rounding(folder, eight_jobs)


def test_jobs_of_a_killed_process_begin_anew(cluster: Cluster, slow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    process = cluster.sweep(folder, SLOW)
    until_under_way(folder)
    os.kill(cluster.workers()[0], signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 0, err
    assert_same_numbers(folder, slow)


def test_a_killed_job_that_is_not_tried_again_is_shown_and_runs_on_resume(
    cluster: Cluster, slow: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    process = cluster.sweep(folder, SLOW, "hydra.launcher.max_retries=0")
    until_under_way(folder)
    os.kill(cluster.workers()[0], signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 1
    (name,) = (name for name, one in summaries(folder).items() if one["status"] == "interrupted")
    assert summaries(folder)[name]["error"] == "ended by Ray (WorkerCrashedError)"
    assert f"{name}: ended by Ray (WorkerCrashedError)" in err
    assert f"1 of 4 jobs did not complete; the same command with hydra.sweep.dir={folder} runs them again" in err
    assert sorted(statuses(folder)) == ["complete"] * 3 + ["interrupted"]
    assert "report" in out
    code, out, err = finish(cluster.sweep(folder, SLOW))
    assert code == 0, err
    assert "3 complete, 1 to run again, 0 new" in out
    assert_same_numbers(folder, slow)


def test_a_lost_node_loses_no_job(cluster: Cluster, slow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    try:
        process = cluster.sweep(folder, SLOW)
        # The first two jobs are done, and the others are on both nodes.
        until(lambda: statuses(folder).count("complete") >= 2 and len(cluster.workers()) == 2)
        done = {name for name, one in summaries(folder).items() if one["status"] == "complete"}
        times = {name: (folder / name / "summary.json").stat().st_mtime_ns for name in done}
        cluster.lose(WORKER)
        code, _, err = finish(process)
        assert code == 0, err
        assert_same_numbers(folder, slow)
        assert times == {name: (folder / name / "summary.json").stat().st_mtime_ns for name in done}
    finally:
        cluster.lose(WORKER)
        cluster.begin(WORKER)


def test_ctrl_c_ends_the_tasks_and_says_how_to_go_on(cluster: Cluster, slow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    process = cluster.sweep(folder, SLOW)
    until_under_way(folder)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert err.strip() == f"interrupted; the same command with hydra.sweep.dir={folder} goes on"
    assert cluster.workers() == []
    assert set(statuses(folder)) <= {"interrupted", "complete"}
    # Its own seconds show that a job completed its files itself.
    assert any(one["seconds"] for one in summaries(folder).values() if one["status"] == "interrupted")
    code, _, err = finish(cluster.sweep(folder, SLOW))
    assert code == 0, err
    assert_same_numbers(folder, slow)


def test_tasks_end_with_a_killed_command_and_the_sweep_goes_on(cluster: Cluster, slow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    process = cluster.sweep(folder, SLOW)
    until_under_way(folder)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    code, _, err = finish(cluster.sweep(folder, SLOW))
    assert code == 0, err
    assert_same_numbers(folder, slow)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (f"hydra.launcher.address={HEAD}:1", f"no Ray cluster at '{HEAD}:1' (Connection refused); start one with"),
        ("+hydra.launcher.init.colour=red", "hydra.launcher: Unknown keyword argument(s): colour"),
        ("+hydra.launcher.remote.colour=red", "hydra.launcher: Invalid option keyword colour"),
        ("hydra.launcher.jobs_per_task=0", "hydra.launcher.jobs_per_task must be at least 1, got 0"),
    ],
)
def test_what_ray_cannot_do_is_told_in_a_line(cluster: Cluster, tmp_path: Path, option: str, told: str) -> None:
    code, _, err = finish(cluster.sweep(tmp_path / "sweep", ["depth=3,4"], option))
    assert code == 1
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_a_task_that_no_node_can_run_is_told(cluster: Cluster, tmp_path: Path) -> None:
    process = cluster.sweep(tmp_path / "sweep", ["depth=3,4"], "hydra.launcher.gpus_per_task=1")
    assert process.stderr is not None
    assert process.stderr.readline() == "no node of the Ray cluster has 1 CPU and 1 GPU; waiting for one\n"
    os.kill(process.pid, signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143
    assert err.startswith("interrupted; ")
