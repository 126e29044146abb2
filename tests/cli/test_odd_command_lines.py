"""Command lines that cannot work: one or two lines that say what is allowed, exit code 1, and nothing lost."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from command_line import call, mistake

from gradexp import report
from gradexp import run as run_module
from gradexp.board import __main__ as board
from gradexp.choices import ConfigError
from gradexp.cli.targets import check_targets
from gradexp.phase import __main__ as phase

SMALL = ["width=4", "steps=1", "record.figures=false", "quiet=true"]
DEEP = "[" * 100 + "]" * 100
WORDS = "x" * 5000


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        pytest.param(
            ["seed=99999999999999999999999"], "seed must be at most 9223372036854775807", marks=pytest.mark.slow
        ),
        (["optimizer=[]"], "optimizer must be the name of one choice, got []; choose one of sgd"),
        (["init=[he]"], "init must be the name of one choice, got [he]; choose one of he"),
        (["init={name:he}"], "init must be the name of one choice"),
        (["init=null"], "init must be the name of one choice, got null"),
        (["data=../../configs/data/digits"], "data must be the name of one choice"),
        (["experiment=[cure,lesson]"], "experiment must be the name of one choice"),
        (
            ["experiment=cure.yaml"],
            "experiment must be the name of one choice, got cure.yaml; choose one of",
        ),
        (["hydra.run.dir=''"], "hydra.run.dir must name a folder, got ''"),
        (["hydra.run.dir=dangling"], "hydra.run.dir=dangling is a link to a folder that is not there"),
        (["hydra=null"], "hydra is no option"),
        (["=3"], "'=3' has no name before the ="),
        (["bias=7"], "bias must be true or false, got 7"),
        pytest.param(
            ["device=cuda:99999999999999999999"],
            "device must be auto, cpu, mps, cuda or cuda:N",
            marks=pytest.mark.slow,
        ),
        pytest.param(["depth=" + "9" * 100], "depth must be at most 1000000", marks=pytest.mark.slow),
        (["depth=" + DEEP], "depth must be a whole number, got "),
        (["data=gaussian", "data.samples=1000000000000"], "data.samples must be at most 100000000"),
        pytest.param(
            ["data=gaussian", "data.features=1000000000000"],
            "data.features must be at most 100000000",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["seeds=1000000000000"], "seeds must be at most 1000000, got 1000000000000", marks=pytest.mark.slow
        ),
        (["-m", "depth=range(1,3,0)"], "the values of depth=range(1,3,0) cannot be listed"),
        (["--multirun", "--run"], "--run and --multirun exclude each other"),
        (
            ["-m", "seed=0,1", "hydra.launcher._target_=nope"],
            "hydra.launcher._target_ must be the class of a plug-in",
        ),
        pytest.param(
            ["-m", "seed=0,1", "hydra.launcher._target_=builtins.dict"],
            "choose one with hydra/launcher=NAME",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["-m", "seed=0,1", "hydra.sweeper._target_=builtins.dict"],
            "hydra.sweeper._target_ must be the class",
            marks=pytest.mark.slow,
        ),
        (["--shell-completion", "nope=1"], "--shell-completion takes install=SHELL"),
        (["-x"], "unrecognized arguments: -x"),
        (["--nope"], "unrecognized arguments: --nope"),
        (["--depth", "5"], "options have no dashes: write depth=VALUE"),
        (["--optimizer.lr=0.1"], "options have no dashes: write optimizer.lr=VALUE"),
        (["depth=3", "-m", "seed=0,1"], "flags such as -m stand before all options, or after them"),
        pytest.param([f"activation={WORDS}"], "activation must be one of linear", marks=pytest.mark.slow),
        ([f"{WORDS}=1"], "unknown option 'xxx"),
        pytest.param(["data=file", f"data.path={WORDS}"], "data.path=", marks=pytest.mark.slow),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_a_line(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dangling").symlink_to("nowhere")
    error = mistake(run_module.main, monkeypatch, capsys, [*arguments, *SMALL])
    assert text in error
    assert len(error) < 1500
    assert "HYDRA_FULL_ERROR" not in error
    assert all(json.loads(path.read_text())["status"] == "failed" for path in Path().rglob("summary.json"))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_flags_are_told_by_the_other_commands_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "measure must be true or false, got 7" in mistake(phase.main, monkeypatch, capsys, ["measure=7"])
    for main in (board.main, report.main):
        assert "unrecognized arguments: --nope" in mistake(main, monkeypatch, capsys, ["--nope", "."])
        assert len(mistake(main, monkeypatch, capsys, [WORDS])) < 500


def test_the_board_tells_a_folder_that_it_may_not_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    assert "outputs: Permission denied; name the folder of a run" in mistake(board.main, monkeypatch, capsys, [])


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_folder_to_search_that_is_not_there_is_a_warning_of_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert call(run_module.main, monkeypatch, *SMALL, "depth=3", "data=ones", "hydra.searchpath=[/nope]") == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "/nope is not available" in line


@pytest.mark.slow
def test_a_closed_pipe_ends_the_help_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "gradexp.run", "--help"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    os.close(write)
    assert ended.stderr == ""
    assert ended.returncode in (0, 1)


class RunsCode:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("flag", ["--experimental-rerun", "--experimental-r"])
def test_a_pickled_run_is_not_repeated(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("config.pickle").write_bytes(pickle.dumps(RunsCode()))
    error = mistake(run_module.main, monkeypatch, capsys, [flag, "config.pickle"])
    assert "--config-path FOLDER/.hydra" in error
    assert not Path("ran").exists()


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_config_that_names_code_is_refused_before_any_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("them").mkdir()
    np.save("them/code.npy", np.array([RunsCode()], dtype=object), allow_pickle=True)
    callback = {"_target_": "numpy.load", "file": "them/code.npy", "allow_pickle": True}
    Path("them/config.yaml").write_text(json.dumps({"depth": 3, "hydra": {"callbacks": {"x": callback}}}))
    error = mistake(run_module.main, monkeypatch, capsys, ["--config-path", str(Path("them").absolute())])
    assert error.startswith("hydra.callbacks is refused")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"launcher": {"_target_": "hydra_plugins.gradexp_launchers.launchers.EnsembleLauncher"}},
        {"sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}},
        {"job_logging": {"handlers": {"x": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}}}},
    ],
)
def test_plug_ins_and_classes_of_logging_may_be_named(settings: dict[str, object]) -> None:
    check_targets(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"callbacks": {"x": {}}},
        {"launcher": {"_target_": "os.system"}},
        {"launcher": {"_target_": "hydra_plugins.gradexp_launchers.launchers.HydraContext.mro"}},
        {"launcher": {"options": [{"_target_": "torch.load"}]}},
        {"job_logging": {"handlers": {"x": {"class": "logging.os.system"}}}},
        {"job_logging": {"formatters": {"x": {"()": "joblib.load", "filename": "x"}}}},
        {"hydra_logging": {"handlers": {"x": {"class": "logging.FileHandler", "stream": "ext://os.environ"}}}},
    ],
)
def test_other_code_may_not(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^hydra"):
        check_targets(settings)
