"""Runs in folders that hold something, on disks that are full, and in programs that have set torch up otherwise."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import few
from command_line import call, mistake
from tensorboard.summary.writer.record_writer import RecordWriter

from gradexp import run as run_module
from gradexp.choices import ConfigError
from gradexp.config import Config, DataConfig, InitConfig, OptimizerConfig
from gradexp.runs.experiment import run, run_stack
from gradexp.runs.summary import config_hash, summary
from gradexp.sinks import files as files_module

SMALL = ["depth=3", "width=4", "steps=2", "data=ones", "record.figures=false", "quiet=true", "save_weights=true"]
TIMES = ("seconds", "seconds_training", "started")


def content_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a run but for Hydra's."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".hydra" not in path.parts
    }


def status_in(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["status"])


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize(
    ("arguments", "text"),
    few(
        [
            (["data=file", "data.path=gone.npz"], "there is no such file"),
            (["device=cuda:999"], "is not there"),
            (["data=digits", "batch_size=5000"], "is larger than the 1437 training samples"),
        ]
    ),
)
def test_a_mistake_that_shows_late_leaves_a_complete_run_as_it_was(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run_module.main, monkeypatch, *SMALL, "hydra.run.dir=one") == 0
    before = content_of(Path("one"))
    capsys.readouterr()
    assert text in mistake(run_module.main, monkeypatch, capsys, [*SMALL, "hydra.run.dir=one", *arguments])
    assert content_of(Path("one")) == before


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_complete_run_makes_room_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(run_module.main, monkeypatch, *SMALL, "hydra.run.dir=one") == 0
    before = content_of(Path("one"))
    assert call(run_module.main, monkeypatch, *SMALL, "save_weights=false", "seed=1", "hydra.run.dir=one") == 0
    after = content_of(Path("one"))
    assert "weights.pt" in before
    assert "weights.pt" not in after
    assert not set(before.values()) & set(after.values())
    assert len([name for name in after if name.startswith("events")]) == 1


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("name", few(["layers.csv", "events.out.tfevents.1.other", "weights.pt", "summary.json"]))
def test_files_of_another_program_are_left_alone(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("theirs").mkdir()
    Path("theirs", name).write_text('{"schema": 3, "gradexp": "9.9"}')
    error = mistake(run_module.main, monkeypatch, capsys, [*SMALL, "hydra.run.dir=theirs"])
    assert name in error
    assert "choose another folder" in error
    assert [path.name for path in Path("theirs").iterdir() if path.is_file()] == [name]


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_event_files_of_others_beside_a_run_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert call(run_module.main, monkeypatch, *SMALL, "hydra.run.dir=one") == 0
        Path("one/events.out.tfevents.1.other").touch()
    assert len(list(Path("one").glob("events.*"))) == 2


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize(
    ("what", "launcher"),
    few(
        [
            *[("events", None), ("summary", None), ("weights", None), ("layers", "ensemble")],
            *[("layers", None), ("events", "ensemble"), ("weights", "ensemble"), ("summary", "ensemble")],
            *[("events", "basic"), ("layers", "basic"), ("weights", "basic"), ("summary", "basic")],
        ],
        2,
    ),
)
def test_a_full_disk_is_told_in_a_line_and_recorded(
    what: str, launcher: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_summary = files_module.write_summary

    def only_the_first(folder: Path, content: dict[str, Any]) -> None:
        if content["status"] != "running":
            full()
        write_summary(folder, content)

    patches = {
        "events": (RecordWriter, "write", full),
        "layers": (files_module, "write_csv", full),
        "weights": (files_module, "_write_weights", full),
        "summary": (files_module, "write_summary", only_the_first),
    }
    monkeypatch.setattr(*patches[what])
    options = ["hydra.run.dir=one"]
    if launcher:
        options = ["-m", "seed=0,1", f"hydra/launcher={launcher}", "hydra.sweep.dir=many"]
        assert call(run_module.main, monkeypatch, *options, *SMALL) == 1
    else:
        assert call(run_module.main, monkeypatch, *options, *SMALL) == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if "No space left on device" in line]
    folders = list(Path("many").glob("*/")) if launcher else [Path("one")]
    folders = [folder for folder in folders if folder.name[0] != "."]
    assert len(lines) == len(folders)
    for folder in folders:
        if what == "summary":
            assert status_in(folder) == "running"
        else:
            assert status_in(folder) == "failed"
    assert all(("not even its summary.json" in line) == (what == "summary") for line in lines)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("fate", few(["removed", "replaced by a file"]))
def test_a_folder_that_goes_while_its_run_works_is_told_in_a_line(
    fate: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def lose(*_: Any) -> None:
        shutil.rmtree("one")
        if fate == "replaced by a file":
            Path("one").touch()

    monkeypatch.setattr("gradexp.runs.live_results.LiveResults.read", lose)
    assert call(run_module.main, monkeypatch, *SMALL, "hydra.run.dir=one") == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert "cannot write to" in error


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_job_of_an_ensemble_is_complete_when_its_last_file_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    write_summary = files_module.write_summary

    def watch(folder: Path, content: dict[str, Any]) -> None:
        events = next(iter(folder.glob("events.*")), None)
        seen.append((content["status"], (folder / "weights.pt").exists() and events is not None))
        write_summary(folder, content)

    monkeypatch.setattr(files_module, "write_summary", watch)
    options = ["-m", "seed=0,1", "hydra/launcher=ensemble", "hydra.sweep.dir=many"]
    assert call(run_module.main, monkeypatch, *options, *SMALL) == 0
    assert seen == [("running", False), ("complete", True)] * 2


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_what_a_program_has_set_torch_to_changes_no_number(surrounding: Any) -> None:
    config = Config(depth=4, width=8, steps=3, data="gaussian", batch_size=16)
    plain = run(config)
    with surrounding():
        inside = run(config)
        assert not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    assert inside.training is not None
    assert plain.training is not None
    assert inside.training.losses == plain.training.losses


def test_a_script_adds_up_in_the_order_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    run(Config(depth=2, width=2, steps=0, data="ones"))
    assert os.environ["MKL_CBWR"] == "AUTO,STRICT"
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    run(Config(depth=2, width=2, steps=0, data="ones"))
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"optimizer": OptimizerConfig("sgd", lr=0.5)}, "optimizer must be the same in all runs of a stack"),
        ({"depth": 4, "steps": 1}, "depth, steps must be the same in all runs of a stack"),
    ],
)
def test_a_stack_of_different_options_is_refused(change: dict[str, Any], text: str) -> None:
    plain = Config(depth=3, width=4, steps=0, data="ones")
    other = Config(**{"depth": 3, "width": 4, "steps": 0, "data": "ones", "init": InitConfig("lecun"), **change})
    with pytest.raises(ConfigError, match=f"^{text}$"):
        run_stack([plain, other])
    with pytest.raises(ConfigError, match=r"^configs is empty$"):
        run_stack([])


def save_data(path: Path, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(20, 3))
    np.savez(path, x=x, y=np.arange(20) % 2)


def test_the_content_of_a_data_file_belongs_to_a_run(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    save_data(path, 0)
    config = Config(depth=2, width=2, steps=0, batch_size=4, data=DataConfig("file", path=str(path)))
    first = config_hash(config)
    assert summary(run(config))["config_hash"] == first == config_hash(config)
    save_data(path, 1)
    os.utime(path, (1, 1))  # the clock of a file system may be coarse
    assert config_hash(config) != first
    path.unlink()
    assert config_hash(config) not in ("", first)


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_sweep_runs_again_over_data_that_have_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", "seed=0,1", "depth=3", "width=4", "steps=0", "batch_size=4", "data=file", "data.path=data.npz"]
    for seed in range(2):
        save_data(Path("data.npz"), seed)
        os.utime("data.npz", (seed, seed))
        assert call(run_module.main, monkeypatch, *sweep, "hydra.sweep.dir=many") == 0
        assert "2 new" in capsys.readouterr().out
    assert call(run_module.main, monkeypatch, *sweep, "hydra.sweep.dir=many") == 0
    out = capsys.readouterr().out
    assert "2 complete, 0 new" in out
    table = Path("many/sweep.csv").read_text().splitlines()
    assert len(table) == 5
    assert "data.content" in table[0]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a disk needs root")
@pytest.mark.parametrize("kilobytes", [16, 64, 300])
@pytest.mark.parametrize("sweep", [False, True])
def test_on_a_small_disk(tmp_path: Path, kilobytes: int, sweep: bool) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        options = ["-m", "seed=0,1", "hydra/launcher=ensemble"] if sweep else []
        options += ["depth=50", "width=64", "steps=50", f"hydra.{'sweep' if sweep else 'run'}.dir={disk}/one"]
        command = [sys.executable, "-m", "gradexp.run", *options]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) <= (5 if sweep else 2)
