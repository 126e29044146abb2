"""What the launchers of clusters share, with an engine that runs the tasks here. The real ones: tests/integration."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cases import few
from command_line import call, mistake
from sweep_processes import assert_a_stack_is_equal_up_to_rounding, assert_same_numbers, statuses, summaries

from gradexp.config import Config
from gradexp.launch import cluster as _cluster
from gradexp.launch import slurm as _slurm
from gradexp.launch.cluster import Task
from gradexp.run import main
from gradexp.runs.stacks import cluster_tasks
from gradexp.sweeps import report

SWEEP = ["seed=0,1", "depth=3", "width=4", "steps=2", "batch_size=8", "threads=1"]


class Here:
    """An engine that runs tasks in this process; what was done with it is kept in ``log``."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.log: list[str] = []
        self.tasks: Sequence[Task] = []
        self.lost: dict[int, str] = {}
        self.interrupted_at: int | None = None

    def submit(self, run: Callable[[Task], None], tasks: Sequence[Task], folder: Path) -> str:
        self.run, self.tasks = run, tasks
        return f"here      {len(tasks)} tasks, {folder}"

    def poll(self) -> Iterator[tuple[int, str | None]]:
        for index, task in enumerate(self.tasks):
            if index == self.interrupted_at and "cancel" not in self.log:
                raise KeyboardInterrupt
            if index not in self.lost and "cancel" not in self.log:
                self.run(task)
            yield index, self.lost.get(index)

    def cancel(self) -> None:
        self.log.append("cancel")

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Pictures take most of a small sweep's time, and have tests of their own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(report, "write_figures", lambda _: {})
        yield


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Here:
    made = Here({})
    monkeypatch.setattr(_slurm, "Slurm", lambda options: setattr(made, "options", options) or made)
    monkeypatch.setattr(_cluster, "_UNTIL_SEEN", 0)
    return made


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("basic") / "sweep"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert call(main, monkeypatch, "-m", *SWEEP, f"hydra.sweep.dir={folder}") == 0
    return folder


def sweep(monkeypatch: pytest.MonkeyPatch, folder: Path, *further: str) -> int:
    return call(main, monkeypatch, "-m", "hydra/launcher=slurm", *SWEEP, f"hydra.sweep.dir={folder}", *further)


@pytest.mark.slow
def test_jobs_are_those_of_the_basic_launcher(
    engine: Here, basic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    assert sweep(monkeypatch, folder) == 0
    assert_same_numbers(folder, basic)
    assert [len(task.jobs) for task in engine.tasks] == [1] * 2
    shown = capsys.readouterr()
    assert shown.err == ""
    assert f"here      2 tasks, {folder}" in shown.out


@pytest.mark.slow
def test_jobs_of_a_task_are_stacked(
    engine: Here, basic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sweep"
    assert sweep(monkeypatch, folder, "hydra.launcher.jobs_per_task=2") == 0
    assert [[job.seed for job in task.jobs] for task in engine.tasks] == [[0, 1]]
    assert_a_stack_is_equal_up_to_rounding(folder, basic)


@pytest.mark.slow
def test_relative_paths_count_from_where_the_command_was_called(
    engine: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_task = _cluster.run_task

    def from_elsewhere(task: Task) -> None:
        monkeypatch.chdir("/")
        run_task(task)

    monkeypatch.setattr(_cluster, "run_task", from_elsewhere)
    assert sweep(monkeypatch, Path("here")) == 0
    assert statuses(tmp_path / "here") == ["complete"] * 2


@pytest.mark.slow
def test_jobs_of_a_lost_task_are_shown_and_run_again(
    engine: Here,
    basic: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "sweep"
    engine.lost = {1: "ended by Slurm (NODE_FAIL)"}
    assert sweep(monkeypatch, folder) == 1
    (name,) = (name for name, one in summaries(folder).items() if one["status"] == "interrupted")
    assert summaries(folder)[name]["error"] == "ended by Slurm (NODE_FAIL)"
    assert capsys.readouterr().err.splitlines() == [
        f"{name}: ended by Slurm (NODE_FAIL)",
        f"1 of 2 jobs did not complete; the same command with hydra.sweep.dir={folder} runs them again",
    ]
    engine.lost = {}
    assert sweep(monkeypatch, folder) == 0
    assert len(engine.tasks) == 1
    assert_same_numbers(folder, basic)


@pytest.mark.slow
def test_a_task_that_ends_without_a_result_is_told(
    engine: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    monkeypatch.setattr(_cluster, "run_task", lambda task: None)
    assert sweep(monkeypatch, folder) == 1
    assert statuses(folder) == ["interrupted"] * 2
    assert f"left no result in {folder}/" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_lost_task_has_completed_stays_complete(
    engine: Here, basic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(basic, folder)
    (first, *_) = sorted(summaries(folder))
    shutil.rmtree(folder / first)

    def finish_and_die(*_: object) -> Iterator[tuple[int, str]]:
        engine.run(engine.tasks[0])
        yield 0, "ended by Slurm (NODE_FAIL)"

    monkeypatch.setattr(engine, "poll", finish_and_die)
    assert sweep(monkeypatch, folder) == 0
    assert_same_numbers(folder, basic)


@pytest.mark.slow
def test_an_interruption_cancels_the_tasks_and_leaves_the_cluster(
    engine: Here, basic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    engine.interrupted_at = 1
    assert sweep(monkeypatch, folder) == 130
    assert engine.log == ["cancel", "close"]
    assert capsys.readouterr().err.strip() == f"interrupted; the same command with hydra.sweep.dir={folder} goes on"
    assert statuses(folder) == ["complete"]
    engine.interrupted_at = None
    engine.log.clear()
    assert sweep(monkeypatch, folder) == 0
    assert_same_numbers(folder, basic)


@pytest.mark.slow
def test_jobs_whose_options_cannot_work_say_so(
    engine: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    jobs = ["seed=0", *SWEEP[1:4], "batch_size=8,-1", "threads=1"]
    assert call(main, monkeypatch, "-m", "hydra/launcher=slurm", *jobs, f"hydra.sweep.dir={folder}") == 1
    assert sorted(statuses(folder)) == ["complete", "failed"]
    assert capsys.readouterr().err.count("batch_size must be at least 1, got -1") >= 1


@pytest.mark.slow
def test_a_task_has_as_many_cores_as_threads(engine: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cluster, "run_task", lambda task: None)
    sweep(monkeypatch, tmp_path / "sweep", "threads=2", "hydra.launcher.partition=deep", "+hydra.launcher.qos=high")
    assert engine.options["cpus_per_task"] == 2
    assert (engine.options["partition"], engine.options["qos"]) == ("deep", "high")
    assert "jobs_per_task" not in engine.options


@pytest.mark.parametrize(
    ("seeds", "depths", "most", "expected"),
    [
        (4, 1, 1, [[0], [1], [2], [3]]),
        (4, 1, 4, [[0, 1, 2, 3]]),
        (5, 1, 4, [[0, 1], [2, 3, 4]]),  # about equal
        (2, 2, 3, [[0, 2], [1, 3]]),  # stacks are not torn apart
        (2, 2, 4, [[0, 2, 1, 3]]),
        (1, 4, 2, [[0, 1], [2, 3]]),  # what cannot be stacked shares a task all the same
    ],
)
def test_jobs_are_grouped_into_tasks(seeds: int, depths: int, most: int, expected: list[list[int]]) -> None:
    configs = [Config(seed=seed, depth=depth + 2) for seed in range(seeds) for depth in range(depths)]
    assert cluster_tasks(configs, most) == expected


@pytest.mark.parametrize("value", few(["0", "null", "many", "1.5"]))
def test_impossible_sizes_of_tasks_are_refused(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-m", "hydra/launcher=ray_cluster", *SWEEP, f"hydra.sweep.dir={tmp_path}/sweep"]
    error = mistake(main, monkeypatch, capsys, [*arguments, f"hydra.launcher.jobs_per_task={value}"])
    assert error.startswith("hydra.launcher.jobs_per_task must be at least 1, got ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "package", "told"),
    [
        (
            "slurm",
            "submitit",
            "hydra/launcher=slurm needs submitit; install it with pip install submitit",
        ),
        (
            "ray_cluster",
            "ray",
            "hydra/launcher=ray_cluster needs ray; install it with pip install ray",
        ),
    ],
)
def test_a_missing_extra_is_named(
    launcher: str,
    package: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(_slurm.Slurm, "_refuse_a_second", lambda *_: None)
    arguments = ["-m", f"hydra/launcher={launcher}", *SWEEP, f"hydra.sweep.dir={tmp_path}/sweep"]
    assert mistake(main, monkeypatch, capsys, arguments) == told


@pytest.mark.slow
def test_a_machine_without_slurm_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    arguments = ["-m", "hydra/launcher=slurm", *SWEEP, f"hydra.sweep.dir={tmp_path}/sweep"]
    error = mistake(main, monkeypatch, capsys, arguments)
    assert error == "hydra/launcher=slurm submits with sbatch, which is not there: is this a login node?"
