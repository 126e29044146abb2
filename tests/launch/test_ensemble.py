"""The same sweep by the basic and by the ensemble launcher leaves the same folders, files and numbers."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import few
from command_line import call
from sweep_processes import TIMES, summaries
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gradexp.launch import sweeper
from gradexp.run import main
from gradexp.sweeps import report

ROOT = Path(__file__).parents[2]
# Of each batch size one stack; a batch larger than the data fails; with this rate he diverges, normal does not.
SWEEP = ["init=he,normal", "batch_size=16,5000", "optimizer.lr=1e4", "depth=4", "width=8", "steps=3"]


@pytest.fixture(scope="module", params=few(["1", "0,1"]))
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of the sweep for each launcher."""
    made = {launcher: tmp_path_factory.mktemp("sweeps") / launcher for launcher in ("basic", "ensemble")}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(report, "write_figures", lambda _: {})  # no launcher's work
        for launcher, folder in made.items():
            arguments = [
                "-m",
                f"hydra/launcher={launcher}",
                *SWEEP,
                f"seed={request.param}",
                f"hydra.sweep.dir={folder}",
            ]
            assert call(main, monkeypatch, *arguments) == 1  # of the jobs that fail
    return made


def files(folder: Path) -> set[str]:
    # The names of event files hold the time, the computer and the process.
    found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {re.sub(r"tfevents.*", "tfevents", name) for name in found}


def test_the_same_files_are_left(folders: dict[str, Path]) -> None:
    assert len(summaries(folders["basic"])) in (4, 8)  # of one seed, or of two
    assert files(folders["ensemble"]) == files(folders["basic"])


def test_summaries_are_equal_but_for_times(folders: dict[str, Path]) -> None:
    theirs = summaries(folders["basic"])
    statuses = []
    for name, ours in summaries(folders["ensemble"]).items():
        assert ours.keys() == theirs[name].keys()
        statuses.append((ours["status"], ours["verdict"]["training"]))
        for key in ours.keys() - set(TIMES):
            assert equal(ours[key], theirs[name][key]), (name, key)
    assert statuses.count(("failed", None)) == len(statuses) / 2
    assert 0 < statuses.count(("complete", "diverged")) < len(statuses) / 2


def equal(ours: Any, theirs: Any) -> bool:
    """Say whether two parts of a summary are the same, numbers up to rounding in float32."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, float) and isinstance(theirs, float):
        return ours == pytest.approx(theirs, rel=1e-5, abs=1e-9)
    return bool(ours == theirs)


def test_layers_are_equal(folders: dict[str, Path]) -> None:
    compared = 0
    for ours in folders["ensemble"].glob("*/layers.csv"):
        theirs = folders["basic"] / ours.relative_to(folders["ensemble"])
        with ours.open() as one, theirs.open() as other:
            for mine, own in zip(csv.DictReader(one), csv.DictReader(other), strict=True):
                for column, text in mine.items():
                    numbers = "" not in (text, own[column]) and "log10" in column
                    same = (
                        float(text) == pytest.approx(float(own[column]), abs=1e-5) if numbers else text == own[column]
                    )
                    assert same, (ours, column)
                    compared += numbers
    assert compared > 100


def test_event_files_hold_the_same_tags_and_steps(folders: dict[str, Path]) -> None:
    compared = 0
    for ours in sorted(folders["ensemble"].glob("*_batch_size=16,*")):
        mine, own = (EventAccumulator(str(folder)).Reload() for folder in (ours, folders["basic"] / ours.name))
        assert mine.Tags() == own.Tags()
        for tag in mine.Tags()["scalars"]:
            assert [event.step for event in mine.Scalars(tag)] == [event.step for event in own.Scalars(tag)]
            compared += 1
    assert compared > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "mistake"),
    [("data=file", "data=file needs data.path"), ("device=cuda:99", "device=cuda:99 is not there")],
)
def test_jobs_without_data_or_device_say_so_themselves(
    option: str, mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [option, "seed=0,1", "depth=3", "width=4", "steps=1", "batch_size=8"]
    arguments = ["-m", "hydra/launcher=ensemble", *wanted, f"hydra.sweep.dir={tmp_path}"]
    assert call(main, monkeypatch, *arguments) == 1
    *errors, last = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all(mistake in line for line in errors)
    assert last.startswith("2 of 2 jobs did not complete")


def test_hydra_finds_other_plugins_beside_ours_and_ours_load_only_hydra() -> None:
    assert not (ROOT / "hydra_plugins" / "__init__.py").exists()  # it would hide those of other packages
    script = (
        "import sys; from hydra.core.plugins import Plugins; from hydra.plugins.launcher import Launcher;"
        "names = [found.__name__ for found in Plugins.instance().discover(Launcher)];"
        "assert names.count('EnsembleLauncher') == 1, names;"
        "loaded = {'torch', 'gradexp', 'numpy', 'rich'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ensemble", "basic"])
def test_folders_that_go_while_a_sweep_works_are_counted_as_not_complete(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "write_figures", lambda _: {})
    folder = tmp_path / "sweep"
    launch = sweeper._launch

    def lose(*arguments: Any) -> int:
        failed = launch(*arguments)
        shutil.rmtree(folder / "0_seed=0")
        return failed

    monkeypatch.setattr(sweeper, "_launch", lose)
    sweep = ["-m", f"hydra/launcher={launcher}", "seed=0,1", "depth=3", "steps=1", f"hydra.sweep.dir={folder}"]
    assert call(main, monkeypatch, *sweep) == 1
    assert "1 of 2 jobs did not complete; the same command with" in capfd.readouterr().err
    monkeypatch.setattr(sweeper, "_launch", launch)
    assert call(main, monkeypatch, *sweep) == 0
    assert len(summaries(folder)) == 2


@pytest.mark.slow
def test_a_sweep_whose_whole_folder_goes_ends_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    monkeypatch.setattr(sweeper, "_launch", lambda *_: shutil.rmtree(folder) or 0)
    assert call(main, monkeypatch, "-m", "seed=0,1", "depth=3", "steps=1", f"hydra.sweep.dir={folder}") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("2 of 2 jobs did not complete")
