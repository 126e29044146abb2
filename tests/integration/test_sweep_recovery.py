"""Sweeps that are killed, interrupted or started twice, in processes of their own."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_processes import finish, start, statuses, summaries, table, until

pytestmark = [
    pytest.mark.recovery,
    pytest.mark.skipif(
        "GRADEXP_TEST_RECOVERY" not in os.environ, reason="set GRADEXP_TEST_RECOVERY=1 (takes minutes)"
    ),
]

JOBS = 6
# Long enough that a kill falls into every phase, and on one thread, where float32 is the same every time.
OPTIONS = ["init=he,xavier,orthogonal", "seed=0,1", "depth=20", "width=32", "steps=60", "record.every=10"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    code, _, err = finish(start(folder, OPTIONS))
    assert code == 0, err
    return folder


TIMES = {"basic": 10, "ensemble": 2, "joblib": 2}
KILLS = [(launcher, moment) for launcher, times in TIMES.items() for moment in range(times)]


@pytest.mark.parametrize(("launcher", "moment"), KILLS)
def test_a_killed_sweep_ends_as_an_undisturbed_one(
    launcher: str, moment: int, undisturbed: Path, tmp_path: Path
) -> None:
    if launcher == "joblib" and importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("needs hydra-joblib-launcher")
    folder = tmp_path / "sweep"
    process = start(folder, OPTIONS, f"hydra/launcher={launcher}")
    # From the first folder on, so that what is killed is a sweep and not the loading of torch.
    until(folder.exists, process)
    time.sleep(random.Random(f"{launcher} {moment}").uniform(0, 6))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, out, err = finish(start(folder, OPTIONS, f"hydra/launcher={launcher}"))
    assert code == 0, err
    assert f"{JOBS} jobs in" in out
    exact = launcher != "ensemble"  # whose sums are of another order
    for ours, theirs in zip(table(folder), table(undisturbed), strict=True):
        for key, text in ours.items():
            same = text == theirs[key]
            assert same or (not exact and float(text) == pytest.approx(float(theirs[key]), rel=1e-4)), key
    for name in (row["folder"] for row in table(folder)):
        assert len(list((folder / name).glob("events*"))) == 1
        lines = [(place / name / "layers.csv").read_text().splitlines() for place in (folder, undisturbed)]
        assert len(lines[0]) == len(lines[1])
        assert not exact or lines[0] == lines[1]


def test_ctrl_c_ends_the_sweep_and_says_how_to_go_on(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "sweep"
    process = start(folder, OPTIONS)
    until(lambda: list(folder.glob("1_*/summary.json")), process)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    (line,) = err.strip().splitlines()
    assert line == f"interrupted; the same command with hydra.sweep.dir={folder} goes on"
    assert statuses(folder) == ["complete", "interrupted"]
    code, out, err = finish(start(folder, OPTIONS))
    assert code == 0, err
    assert "1 complete, 1 to run again, 4 new" in out
    assert table(folder) == table(undisturbed)


def test_ctrl_c_in_a_stack_leaves_what_it_has_of_each_job(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    trained = tmp_path / "trained"
    process = start(folder, OPTIONS, "hydra/launcher=ensemble", "steps=100000", trained=trained)
    until(trained.exists, process)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    assert statuses(folder) == ["interrupted"] * JOBS
    assert all(one["training"]["steps"] > 0 for one in summaries(folder).values())


def test_workers_that_end_with_the_sweep_leave_no_job_running(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    folder = tmp_path / "sweep"
    process = start(folder, OPTIONS, "hydra/launcher=joblib", "steps=100000", "optimizer.lr=1e-9")
    until(lambda: list(folder.glob("*/layers.csv")), process)
    os.kill(process.pid, signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143
    assert err.strip() == f"interrupted; the same command with hydra.sweep.dir={folder} goes on"
    assert set(statuses(folder)) == {"interrupted"}


def test_the_same_sweep_started_twice_at_once_runs_once(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "sweep"
    ends = [finish(process) for process in [start(folder, OPTIONS), start(folder, OPTIONS)]]
    assert sorted(code for code, _, _ in ends) == [0, 1]
    (refusal,) = (err for code, _, err in ends if code)
    assert refusal.startswith(f"another sweep is at work in {folder}; wait for its end, or choose another one")
    assert len(refusal.strip().splitlines()) == 1
    assert table(folder) == table(undisturbed)


def test_a_full_disk_is_told_and_nothing_complete_is_lost(tmp_path: Path) -> None:
    """Files of more than 20 kB fail, as on a full disk: layers.csv of the second job is larger."""
    folder = tmp_path / "sweep"
    command = (
        f"ulimit -f 20; trap '' XFSZ; exec {sys.executable} -m gradexp.run -m seed=0 depth=3,150 width=4 steps=1 "
        f"batch_size=8 hydra.sweep.dir={folder}"
    )
    limited = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert limited.returncode == 1
    of_the_job, of_the_report = limited.stderr.splitlines()
    assert of_the_job.startswith(
        f"1_depth=150: cannot write to {folder / '1_depth=150'}: File too large; choose another"
    )
    assert of_the_report == "cannot write: File too large"
    assert statuses(folder) == ["complete", "failed"]


def test_five_hundred_jobs_in_one_process_hold_memory_constant(tmp_path: Path) -> None:
    script = f"""
import resource, sys
from gradexp import run as command
held, job = [], command.job
def watched(*arguments):
    job(*arguments)
    with open("/proc/self/statm") as file:
        held.append(int(file.read().split()[1]) * resource.getpagesize())
command.job = watched
sys.argv = ["gradexp", "-m", "seed=range(0,500)", "depth=3", "width=4", "steps=2", "batch_size=8", "quiet=true",
            "hydra.sweep.dir={tmp_path}/sweep"]
from gradexp.cli.command import command as made
made(watched)()
print(len(held), (held[-1] - held[150]) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    jobs, growth = done.stdout.strip().splitlines()[-1].split()
    assert int(jobs) == 500
    assert float(growth) < 8  # MB in 350 jobs
