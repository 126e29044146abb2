"""Sweeps on a real Slurm of one node, which these tests start on the loopback address and stop again."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_processes import (
    EIGHT_JOBS,
    LIMIT,
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

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel")


def missing() -> str | None:
    """Return why no Slurm can be started here, or None."""
    if "GRADEXP_TEST_CLUSTERS" not in os.environ:
        return TAKES_MINUTES
    if absent := [name for name in NEEDED if shutil.which(name, path=PATH) is None]:
        return f"needs {', '.join(absent)} (Debian: slurm-wlm, munge)"
    if os.geteuid():
        return "needs root, as slurmd does"
    return None if importlib.util.find_spec("submitit") else "needs submitit: pip install submitit"


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
REASON = missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

ON_SLURM = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=10", "hydra.launcher.mem_gb=2"]

CONF = """
ClusterName=gradexp
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SwitchType=switch/none
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
InactiveLimit=0
SlurmctldPort={controller}
SlurmdPort={daemon}
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=spot Nodes=ALL PriorityTier=1 PreemptMode=CANCEL
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Environment variables with which Slurm's commands find the cluster."""
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/gradexp-slurm-XXXX"], text=True).strip())
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    controller, daemon = free_ports(2)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=socket.gethostname(), folder=folder, controller=controller, daemon=daemon))
    env = {**os.environ, "SLURM_CONF": str(conf), "PATH": PATH}
    files = [
        f"--{what}={folder}/munge.{what.split('-')[0]}" for what in ("socket", "pid-file", "log-file", "seed-file")
    ]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *files],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]
    daemons = []
    try:
        with (folder / "daemons.log").open("w") as log:
            for command in commands:
                daemons.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
                time.sleep(0.5)
        until(lambda: "idle" in call(env, "sinfo", "--noheader", "--format=%t"))
        yield env
        call(env, "scancel", "--user=root")
    finally:
        for daemon_process in reversed(daemons):
            daemon_process.terminate()
            daemon_process.wait(LIMIT)
        shutil.rmtree(folder)


def call(env: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout


def queue(env: dict[str, str]) -> list[str]:
    return call(env, "squeue", "--noheader", "--array", "--format=%i").split()


def running_task(folder: Path) -> int:
    """Return the process of a task of this sweep, not of srun, that has begun a job."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if "submitit.core._submit" in words and str(folder / ".submitit/%j") in words and "python" in words[0]:
            return int(path.parent.name)
    raise AssertionError("no task is running")


def test_eight_jobs_are_equal_to_those_of_the_basic_launcher_bit_for_bit(
    cluster: dict[str, str], eight_jobs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    code, out, err = finish(start(folder, EIGHT_JOBS, *ON_SLURM, env=cluster))
    assert code == 0, err
    assert err == ""
    assert_same_numbers(folder, eight_jobs)
    assert len(job_lines(out)) == 8
    assert "8 tasks as job" in out
    assert (folder / "report.html").exists()


def test_a_relative_folder_lies_where_the_command_was_called(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = finish(start(Path("here"), ["depth=3,4", "width=4", "steps=1"], *ON_SLURM, env=cluster))
    assert code == 0, err
    assert len(table(tmp_path / "here")) == 2


def test_own_parts_of_the_folder_reach_the_nodes(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "import torch\ndef phi(z): return torch.tanh(z)\ndef init_(weight, std=0.1): weight.normal_(0, std)\n"
    Path("mine.py").write_text(source, "utf-8")
    own = ["activation=mine:phi", "init=mine:init_", "init.std=0.1,0.2", "seed=0,1", "depth=3", "width=4", "steps=1"]
    code, _, err = finish(start(Path("here"), own, *ON_SLURM, "hydra.launcher.jobs_per_task=2", env=cluster))
    assert code == 0, err
    assert statuses(Path("here")) == ["complete"] * 4
    assert {job["config"]["init"]["std"] for job in summaries(Path("here")).values()} == {0.1, 0.2}


def test_a_task_runs_a_stack_of_several_jobs(cluster: dict[str, str], eight_jobs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    code, out, err = finish(start(folder, EIGHT_JOBS, *ON_SLURM, "hydra.launcher.jobs_per_task=4", env=cluster))
    assert code == 0, err
    assert "2 tasks as job" in out
    assert statuses(folder) == ["complete"] * 8
    assert_a_stack_is_equal_up_to_rounding(folder, eight_jobs)


def test_a_killed_task_is_shown_and_runs_again_on_resume(cluster: dict[str, str], slow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    process = start(folder, SLOW, *ON_SLURM, env=cluster)
    until_under_way(folder)
    os.kill(running_task(folder), signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 1
    (name,) = (name for name, one in summaries(folder).items() if one["status"] == "interrupted")
    told, advice = err.strip().splitlines()
    assert told == f"{name}: ended by Slurm (FAILED)"
    assert advice == f"1 of 4 jobs did not complete; the same command with hydra.sweep.dir={folder} runs them again"
    assert summaries(folder)[name]["error"] == "ended by Slurm (FAILED)"
    assert sorted(statuses(folder)) == ["complete"] * 3 + ["interrupted"]
    assert "report" in out
    before = {one: (folder / one / "summary.json").stat().st_mtime_ns for one in summaries(folder)}
    assert "3 complete, 1 to run again, 0 new" in assert_goes_on(cluster, folder, slow)
    again = [one for one, then in before.items() if (folder / one / "summary.json").stat().st_mtime_ns != then]
    assert again == [name]


def test_jobs_that_are_cancelled_are_shown_and_run_again(cluster: dict[str, str], slow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    process = start(folder, SLOW, *ON_SLURM, env=cluster)
    until_under_way(folder)
    states = dict(line.split("|") for line in call(cluster, "squeue", "-hr", "--format=%T|%i").split())
    call(cluster, "scancel", states["RUNNING"], states["PENDING"])
    code, _, err = finish(process)
    assert code == 1
    assert statuses(folder).count("interrupted") == 2
    reasons = {one["error"] for one in summaries(folder).values() if one["status"] == "interrupted"}
    assert "ended by Slurm (CANCELLED)" in reasons  # of the one that waited it may have forgotten even that
    assert reasons <= {"ended by Slurm (CANCELLED)", "ended by Slurm (gone from its queue)"}
    assert err.count("ended by Slurm (") == 2
    assert "2 complete, 2 to run again, 0 new" in assert_goes_on(cluster, folder, slow)


def assert_goes_on(env: dict[str, str], folder: Path, slow: Path) -> str:
    """Give the command again, compare what is then there with an undisturbed sweep, and return the output."""
    code, out, err = finish(start(folder, SLOW, *ON_SLURM, env=env))
    assert code == 0, err
    assert_same_numbers(folder, slow)
    return out


def make_room(env: dict[str, str], folder: Path) -> None:
    """Let another job take the whole node for a moment."""
    command = ("sbatch", "--partition=urgent", "--exclusive", "--time=1", f"--output={folder}/urgent.log")
    assert "Submitted" in call(env, *command, "--wrap=sleep 3")


def test_a_task_that_makes_room_is_shown_and_runs_again(cluster: dict[str, str], slow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    process = start(folder, SLOW, *ON_SLURM, "hydra.launcher.partition=spot", env=cluster)
    until_under_way(folder)
    make_room(cluster, tmp_path)
    code, _, err = finish(process)
    assert code == 1
    preempted = [one["error"] for one in summaries(folder).values() if one["status"] == "interrupted"]
    assert preempted
    assert set(preempted) == {"ended by Slurm (PREEMPTED)"}
    assert err.count("ended by Slurm (PREEMPTED)") == len(preempted)
    assert_goes_on(cluster, folder, slow)


def test_a_task_that_slurm_puts_back_into_its_queue_is_waited_for(
    cluster: dict[str, str], slow: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    process = start(folder, SLOW, *ON_SLURM, env=cluster)
    until_under_way(folder)
    make_room(cluster, tmp_path)
    while process.poll() is None:  # Slurm would keep them for two minutes before they may begin again
        held = [line.split("|") for line in call(cluster, "squeue", "-hr", "--format=%i|%r").splitlines()]
        for name in (name for name, reason in held if reason == "BeginTime"):
            call(cluster, "scontrol", "update", f"JobId={name}", "StartTime=now")
        time.sleep(0.5)
    code, _, err = finish(process)
    assert code == 0, err
    assert_same_numbers(folder, slow)
    log = "".join(path.read_text() for path in folder.glob(".submitit/*/*.out"))
    assert log.count("Loading pickle") > 4  # some have begun twice


def test_ctrl_c_ends_the_tasks_and_says_how_to_go_on(cluster: dict[str, str], slow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    process = start(folder, SLOW, *ON_SLURM, env=cluster)
    until_under_way(folder)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert err.strip() == f"interrupted; the same command with hydra.sweep.dir={folder} goes on"
    assert queue(cluster) == []
    assert set(statuses(folder)) <= {"interrupted", "complete"}
    reasons = {one["error"] for one in summaries(folder).values() if one["status"] == "interrupted"}
    assert "stopped by a signal, such as the one ahead of a time limit" in reasons
    assert "interrupted" in statuses(folder)
    assert_goes_on(cluster, folder, slow)


def test_tasks_of_a_killed_command_go_on_and_are_not_started_twice(
    cluster: dict[str, str], slow: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    process = start(folder, SLOW, *ON_SLURM, env=cluster)
    until_under_way(folder)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    code, _, err = finish(start(folder, SLOW, *ON_SLURM, env=cluster))
    assert code == 1
    array = queue(cluster)[0].partition("_")[0]
    assert err.strip() == (f"tasks of this sweep are still in Slurm's queue; wait for their end, or scancel {array}")
    until(lambda: not queue(cluster))
    assert "4 complete, 0 new" in assert_goes_on(cluster, folder, slow)


def test_a_task_completes_its_files_before_its_time_is_over(cluster: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    # Slurm may give its sign a minute early: the limit leaves time for it to begin.
    endless = ["seed=0", "depth=20", "width=16", "steps=10000000", "record.every=1000"]
    code, _, err = finish(start(folder, endless, *ON_SLURM, "hydra.launcher.timeout_min=2", env=cluster))
    assert code == 1
    (summary,) = summaries(folder).values()
    assert summary["status"] == "interrupted"
    assert summary["error"] == "stopped by a signal, such as the one ahead of a time limit"
    assert summary["training"]["steps"] > 0
    assert summary["error"] in err


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("hydra.launcher.partition=nowhere", "Slurm refuses the sweep: sbatch: error: Batch job submission failed: "),
        ("hydra.launcher.timeout_min=long", "hydra.launcher: Parameter \"timeout_min\" expected type <class 'int'>"),
        ("+hydra.launcher.colour=red", "hydra.launcher: Unknown argument 'colour' for executor 'slurm'"),
        ("hydra.launcher.jobs_per_task=0", "hydra.launcher.jobs_per_task must be at least 1, got 0"),
    ],
)
def test_what_slurm_cannot_do_is_told_in_a_line(
    cluster: dict[str, str], tmp_path: Path, option: str, told: str
) -> None:
    code, _, err = finish(start(tmp_path / "sweep", ["depth=3,4"], *ON_SLURM, option, env=cluster))
    assert code == 1
    assert told in err
    assert "Traceback" not in err
    assert queue(cluster) == []
