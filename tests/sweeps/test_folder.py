import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import few
from command_line import call, mistake

from gradexp._version import __version__
from gradexp.choices import ConfigError
from gradexp.config import Config
from gradexp.launch.sweeper import _left_out
from gradexp.run import main
from gradexp.runs.result import Result
from gradexp.runs.summary import summary
from gradexp.sinks.folder import clear
from gradexp.sweeps import report
from gradexp.sweeps.folder import alone_in, job_folder_name, mark_interrupted, plan, read_jobs

SMALL = ["depth=3", "width=4", "steps=2", "batch_size=8"]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of a small sweep's time, and have tests of their own."""
    monkeypatch.setattr(report, "write_figures", lambda _: {})


def leave(folder: Path, name: str, config_hash: str, status: str = "complete", **changes: Any) -> None:
    """Make the folder of a job that has begun."""
    (folder / name).mkdir(parents=True)
    content = {**summary(Result(Config(), status=status)), "config_hash": config_hash, **changes}
    (folder / name / "summary.json").write_text(json.dumps(content))


def planned(folder: Path, hashes: Sequence[str]) -> tuple[int, int, int, dict[int, str]]:
    found = plan(folder, [(job_hash, f"{{}}_{job_hash}".format) for job_hash in hashes])
    return found.complete, found.again, found.new, found.folders


def test_a_new_sweep_numbers_its_jobs_in_order(tmp_path: Path) -> None:
    assert planned(tmp_path / "none", ["a", "b"]) == (0, 0, 2, {0: "0_a", 1: "1_b"})


def test_complete_jobs_are_skipped_and_others_run_again_in_their_folders(tmp_path: Path) -> None:
    leave(tmp_path, "0_renamed by hand", "a")
    for number, status in enumerate(("failed", "interrupted", "running"), 1):
        leave(tmp_path, f"{number}_old name", f"b{number}", status)
    wanted = ["new", "b3", "a", "b1", "b2", "newer"]
    folders = {0: "4_new", 1: "3_old name", 3: "1_old name", 4: "2_old name", 5: "5_newer"}
    assert planned(tmp_path, wanted) == (1, 3, 2, folders)


def test_jobs_with_the_same_options_run_once(tmp_path: Path) -> None:
    assert planned(tmp_path, ["a", "b", "a"]) == (0, 0, 2, {0: "0_a", 1: "1_b"})
    leave(tmp_path, "0_a", "a")
    assert planned(tmp_path, ["a", "a"]) == (1, 0, 0, {})


def test_a_folder_of_a_job_that_was_killed_before_its_first_file_is_used_by_this_job_only(tmp_path: Path) -> None:
    (tmp_path / "0_a" / ".hydra").mkdir(parents=True)
    (tmp_path / "1_else").mkdir()
    assert planned(tmp_path, ["a", "b"])[3] == {0: "0_a", 1: "2_b"}
    assert planned(tmp_path, ["b", "a"])[3] == {0: "2_b", 1: "0_a"}


def test_gaps_in_the_numbers_are_filled(tmp_path: Path) -> None:
    leave(tmp_path, "0_a", "a")
    leave(tmp_path, "2_c", "c")
    assert planned(tmp_path, ["a", "b", "c", "d"])[3] == {1: "1_b", 3: "3_d"}


def test_of_a_job_that_was_copied_the_complete_folder_counts(tmp_path: Path) -> None:
    for number, status in enumerate(("failed", "complete", "running")):
        leave(tmp_path, f"{number}_a", "a", status)
    assert planned(tmp_path, ["a"]) == (1, 0, 0, {})


def test_the_folder_of_a_run_is_not_taken_for_a_sweep(tmp_path: Path) -> None:
    leave(tmp_path, "run", "a")
    with pytest.raises(ConfigError, match=r"run is the folder of a single run; choose another one with hydra.sweep"):
        planned(tmp_path / "run", ["a"])


def test_two_jobs_never_share_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"two jobs the folder same; put \$\{hydra.job.num\} into it"):
        plan(tmp_path, [("a", lambda _: "same"), ("b", lambda _: "same")])


@pytest.mark.parametrize("change", [{"schema": 0}, {"gradexp": "0.0.0"}])
def test_results_of_another_version_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    leave(tmp_path, "0_a", "a", **change)
    with pytest.raises(ConfigError, match=rf"was written by gradexp .*, this is {__version__}"):
        plan(tmp_path, [("a", lambda _: "a")])


@pytest.mark.parametrize("key", ["config_hash", "status", "overrides", "initial", "verdict"])
@pytest.mark.parametrize("value", [None, -1])
def test_a_summary_without_what_is_needed_is_told(tmp_path: Path, key: str, value: Any) -> None:
    leave(tmp_path, "0_a", "a", **({} if key in ("config_hash", "status") else {key: value}))
    path = tmp_path / "0_a" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ConfigError, match=rf"0_a/summary.json is damaged \(no {key}\); delete its folder"):
        read_jobs(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_summary_is_told(tmp_path: Path, text: str) -> None:
    leave(tmp_path, "0_a", "a")
    (tmp_path / "0_a" / "summary.json").write_text(text)
    with pytest.raises(ConfigError, match=r"0_a/summary.json (is damaged|was written by)"):
        read_jobs(tmp_path)


def test_jobs_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10_x", "9_x", "by hand", "0_x"):
        leave(tmp_path, name, name)
    assert [job.name for job in read_jobs(tmp_path)] == ["0_x", "9_x", "10_x", "by hand"]
    assert [job.number for job in read_jobs(tmp_path)] == [0, 9, 10, None]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1_data.path=a/b.npz", "1_data.path=a-b.npz"),
        ("x" * 200, "x" * 120),
        ("é" * 100, "é" * 60),
        ("aé" * 50, "aé" * 40),
        ("1_a=C:\\x\ny*", "1_a=C--x-y-"),
    ],
)
def test_names_are_one_folder_of_at_most_120_bytes(text: str, name: str) -> None:
    assert job_folder_name(text) == name


def test_clearing_removes_what_a_run_has_written_and_nothing_else(tmp_path: Path) -> None:
    leave(tmp_path, "0_a", "a")
    folder = tmp_path / "0_a"
    (folder / "theory").mkdir()
    (folder / "run of its own").mkdir()
    for name in (
        "events.out.tfevents.1700000001.host.5.0",
        "theory/events.out.tfevents.1700000002.host.5.0",
        "layers.csv",
        "weights.pt",
        "layers.csv.7.part",
        "mine.part",
        "run of its own/events.out.tfevents.1700000001.host.5.0",
    ):
        (folder / name).write_text("")
    clear(folder)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {"mine.part", "run of its own/events.out.tfevents.1700000001.host.5.0"}
    (folder / "events.out.tfevents.3.host").write_text("")  # not of gradexp: no summary
    clear(folder)
    assert (folder / "events.out.tfevents.3.host").exists()


def test_jobs_that_were_ended_from_outside_are_marked_as_interrupted_and_others_left(tmp_path: Path) -> None:
    for number, status in enumerate(("complete", "running", "failed")):
        leave(tmp_path, f"{number}_{status}", status, status)
    before = [job.summary for job in read_jobs(tmp_path)]
    mark_interrupted(tmp_path)
    before[1]["status"] = "interrupted"
    assert [job.summary for job in read_jobs(tmp_path)] == before


def test_a_folder_is_for_one_at_a_time(tmp_path: Path) -> None:
    with (
        alone_in(tmp_path / "x", "sweep", "wait"),
        pytest.raises(ConfigError, match=r"another sweep is at work in .*x; wait"),
        alone_in(tmp_path / "x", "sweep", "wait"),
    ):
        pass
    with alone_in(tmp_path / "x", "sweep", "wait"):
        pass


def sweep(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    return call(main, monkeypatch, "-m", *SMALL, f"hydra.sweep.dir={folder}", *arguments)


def statuses(folder: Path) -> dict[str, str]:
    return {job.name: job.status for job in read_jobs(folder)}


def test_a_sweep_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    assert sweep(monkeypatch, folder, "init=he,xavier", "steps=0") == 0
    names = ["0_init=he", "1_init=xavier"]
    assert statuses(folder) == dict.fromkeys(names, "complete")
    assert "2 jobs in" in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for name in names for path in (folder / name).iterdir() if path.is_file()}
    failed = json.loads((folder / names[1] / "summary.json").read_text())
    (folder / names[1] / "summary.json").write_text(json.dumps({**failed, "status": "running"}))
    (folder / names[1]).rename(folder / "1_by another name")

    assert sweep(monkeypatch, folder, "init=he,lecun,xavier", "quiet=true", "steps=0") == 0
    last = "2_init=lecun"
    assert statuses(folder) == {names[0]: "complete", "1_by another name": "complete", last: "complete"}
    out = capsys.readouterr().out
    assert "3 jobs in" in out
    assert "1 complete, 1 to run again, 1 new" in out
    untouched = [path for path in times if path.parent.name == names[0]]
    assert len(untouched) == 3
    assert all(path.stat().st_mtime_ns == times[path] for path in untouched)
    assert len(list((folder / "1_by another name").glob("events*"))) == 1
    for name in ("sweep.csv", "report.html", "multirun.yaml"):
        assert (folder / name).exists()
        (folder / name).unlink()

    assert sweep(monkeypatch, folder, "init=he,lecun", "steps=0") == 0
    assert "2 jobs in" in (out := capsys.readouterr().out)
    assert "2 complete, 0 new" in out
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_a_job_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(monkeypatch, tmp_path, "batch_size=-1,5000,8", "optimizer.lr=1e30") == 1
    captured = capsys.readouterr()
    jobs = read_jobs(tmp_path)
    assert [job.status for job in jobs] == ["failed", "failed", "complete"]
    assert jobs[0].summary["error"] == "batch_size must be at least 1, got -1"
    assert jobs[0].summary["config"]["batch_size"] == -1
    assert "batch_size=5000 is larger than the 1437" in jobs[1].summary["error"]
    assert jobs[2].summary["verdict"]["training"] == "diverged"
    keys = summary(Result(Config())).keys()
    assert all(job.summary.keys() == keys for job in jobs)
    errors = captured.err.strip().splitlines()
    assert len(errors) == 3
    assert all(line.startswith(f"{job.name}: batch_size") for line, job in zip(errors[:2], jobs, strict=False))
    assert errors[-1].startswith("2 of 3 jobs did not complete; the same command with hydra.sweep.dir=")
    assert (tmp_path / "sweep.csv").exists()
    assert captured.out.count("diverged") >= 1

    assert sweep(monkeypatch, tmp_path, "batch_size=-1,8", "optimizer.lr=1e30") == 1
    assert "1 complete, 1 to run again, 0 new" in capsys.readouterr().out
    assert len(read_jobs(tmp_path)) == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    few(
        [
            (["seed=0,1", "hydra/launcher=slow"], "unknown hydra/launcher 'slow'; choose one of basic, ensemble"),
            (["seed=0,1", "hydra.sweep.dir=/dev/null/x"], "cannot write to /dev/null"),
            (["init=glob(none*)"], "a sweep over no values"),
            (["seed=0,1", "hydra.sweeper.max_batch_size=0"], "max_batch_size must be at least 1, or null, got 0"),
            (["seed=0", "hydra.sweep.subdir=.."], "must name a folder of each job's own, got '..'"),
            (["depth=-1,0"], "depth must be at least 1, got -1"),
            (["init=he,hee"], "unknown init 'hee'"),
            (["+dpeth=1,2"], "unknown option 'dpeth'; did you mean 'depth'?"),
            (["seed=0,1", "hydra.sweep.subdir=same"], "gives two jobs the folder same"),
            (
                ["seed=0,1", "hydra/launcher=ensemble", "hydra.launcher.max_members=-1"],
                "max_members must be at least 1, or null, got -1",
            ),
        ],
        2,
    ),
)
def test_a_sweep_that_cannot_work_is_refused_at_once(
    arguments: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["-m", *SMALL, f"hydra.sweep.dir={tmp_path}/new", *arguments]
    assert text in mistake(main, monkeypatch, capsys, given)
    assert not list(tmp_path.glob("new/*_*"))


@pytest.mark.slow
def test_the_second_of_two_sweeps_in_one_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with alone_in(tmp_path, "sweep", ""):
        error = mistake(main, monkeypatch, capsys, ["-m", *SMALL, "seed=0,1", f"hydra.sweep.dir={tmp_path}"])
    assert error.startswith(f"another sweep is at work in {tmp_path}; wait")


@pytest.mark.slow
def test_two_runs_in_one_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing_nothing = [*SMALL, "steps=0", "record.figures=false", f"hydra.run.dir={tmp_path}"]
    with alone_in(tmp_path / ".hydra", "run", ""):
        error = mistake(main, monkeypatch, capsys, drawing_nothing)
    assert "another run is at work in" in error
    assert call(main, monkeypatch, *drawing_nothing) == 0
    assert call(main, monkeypatch, *drawing_nothing) == 0
    assert len(list(tmp_path.glob("events*"))) == 1


@pytest.mark.slow
def test_a_swept_preset_names_its_jobs_and_options_that_change_no_number_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(monkeypatch, tmp_path, "experiment=cure,lesson", "threads=1,2", "quiet=true", "steps=0") == 0
    assert [job.name for job in read_jobs(tmp_path)] == [
        "0_experiment=cure,threads=1",
        "1_experiment=lesson,threads=1",
    ]
    assert "2 new (2 more change no number)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "total", "text"),
    [
        (["seed=0", "seed=1"], 2, ""),
        (["seed=0", "seed=0"], 1, " (1 more is a duplicate)"),
        (["seed=0", "seed=0", "seed=0"], 1, " (2 more are duplicates)"),
        (["threads=1", "threads=2"], 1, " (1 more changes no number)"),
        (["threads=1", "threads=2", "threads=2"], 1, " (1 more is a duplicate, 1 more changes no number)"),
    ],
)
def test_a_job_that_is_left_out_is_called_a_duplicate_or_one_that_changes_no_number(
    typed: list[str], total: int, text: str
) -> None:
    assert _left_out([[override] for override in typed], total) == text


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_sweeps_started_at_once_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert call(main, monkeypatch, "-m", *SMALL, "seed=0", "steps=0", "quiet=true") == 0
    assert len(list(Path("multirun").glob("*/*/0_*/summary.json"))) == 2


@pytest.mark.slow
def test_jobs_leave_nothing_behind_in_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(monkeypatch, tmp_path / "first", "quiet=true") == 0  # loads what is loaded once
    state, order = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    before = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        threading.active_count(),
        len(list(Path("/dev/fd").iterdir())),
    )
    assert sweep(monkeypatch, tmp_path / "second", "quiet=true", "dtype=float64,float32", "threads=2", "seed=0") == 0
    after = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        threading.active_count(),
        len(list(Path("/dev/fd").iterdir())),
    )
    assert after == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], order)


@pytest.mark.slow
def test_a_launcher_that_breaks_off_does_not_lose_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra.core import utils
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher

    run_job, is_full = utils.run_job, True

    def broken(**arguments: Any) -> Any:
        if is_full and "xavier" in str(arguments["config"].hydra.sweep.subdir):
            raise OSError(28, "No space left on device")
        return run_job(**arguments)

    monkeypatch.setattr(utils, "run_job", broken)  # of a launcher that Hydra has not loaded yet
    for launcher in Plugins.instance().discover(Launcher):
        names = launcher.launch.__globals__
        if "run_job" in names:
            monkeypatch.setitem(names, "run_job", broken)
    error = mistake(main, monkeypatch, capsys, ["-m", *SMALL, "init=he,xavier,lecun", f"hydra.sweep.dir={tmp_path}"])
    lines = ["cannot write: No space left on device", f"the same command with hydra.sweep.dir={tmp_path} goes on"]
    assert error.splitlines() == lines
    assert (tmp_path / "sweep.csv").exists()
    is_full = False
    assert sweep(monkeypatch, tmp_path, "init=he,xavier,lecun") == 0
    assert "1 complete, 2 new" in capsys.readouterr().out


@pytest.mark.slow
def test_a_full_disk_fails_the_job_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gradexp.sinks import files

    write_csv = files.write_csv

    def full(path: Path, histories: Any) -> None:
        if "init=he" in str(path):
            raise OSError(28, "No space left on device", str(path))
        write_csv(path, histories)

    monkeypatch.setattr(files, "write_csv", full)
    assert sweep(monkeypatch, tmp_path, "init=he,xavier") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert statuses(tmp_path) == {"0_init=he": "failed", "1_init=xavier": "complete"}
    monkeypatch.setattr(files, "write_csv", write_csv)
    assert sweep(monkeypatch, tmp_path, "init=he,xavier") == 0
    assert set(statuses(tmp_path).values()) == {"complete"}
