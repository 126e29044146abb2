"""The page of a run: it is there at the end, shows the run's own numbers, and can be made again from its files."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from pages import Parsed, unpacked
from rich.console import Console

from gradexp.config import Config, DataConfig, InitConfig
from gradexp.runs import run
from gradexp.runs.result import Result
from gradexp.runs.training import Training
from gradexp.runs.wording import init_name
from gradexp.sinks.event_file import event_files, read_scalars
from gradexp.sinks.files import Files
from gradexp.sinks.page import PageFile
from gradexp.sinks.tensorboard import TensorBoard
from gradexp.sweeps.compare import compare
from gradexp.sweeps.lines import sweep_lines
from gradexp.sweeps.report import report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    data = DataConfig("gaussian", samples=100, features=6)
    config = Config(depth=4, width=8, steps=6, batch_size=16, data=data)
    return run(config, [TensorBoard(folder), PageFile(folder), Files(folder)], ["depth=4"])


def page(path: Path) -> Parsed:
    return Parsed((path / "report.html").read_text(encoding="utf-8"))


def test_the_page_shows_the_runs_numbers(folder: Path, result: Result) -> None:
    shown = page(folder)
    (line,) = shown.data["lines"]
    assert line["initial"]["output_grad"] == pytest.approx(result.initial.profile("output_grad"), abs=1e-4)
    assert line["theory"]["output_grad"] == pytest.approx(result.initial.theory["log10_output_grad"], abs=1e-4)
    assert line["spread"] == pytest.approx(result.initial.theory["sd_output_grad"], abs=1e-4)
    assert unpacked(line, "weight_grad") == pytest.approx(result.gradients.log10["weight_grad"][:, 0], abs=0.0051)
    assert line["losses"] == pytest.approx(result.training.losses, rel=1e-4)
    assert line["guessing"] == result.guessing
    for text in (result.verdict.gradient, "he: 4 relu layers", "python -m gradexp.run depth=4"):
        assert text in shown.words


def test_the_page_can_be_made_again_from_the_files(folder: Path, result: Result, tmp_path: Path) -> None:
    assert result.status == "complete"
    before = page(folder).data
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("report.html"))
    report(copy, Console(quiet=True))
    again = page(copy).data
    # TensorBoard holds float32.
    assert again["lines"][0].pop("losses") == pytest.approx(before["lines"][0].pop("losses"), rel=1e-4)
    assert again["lines"][0]["guessing"] == result.guessing
    assert again == before


def test_a_sweeps_page_shows_what_guessing_costs_and_a_run_of_an_older_version_has_none(
    folder: Path, result: Result, tmp_path: Path
) -> None:
    (tmp_path / "sweep").mkdir()
    job = shutil.copytree(folder, tmp_path / "sweep" / "0_x")
    (line,) = sweep_lines(compare(tmp_path / "sweep"))
    assert line.guessing == result.guessing
    summary = json.loads((job / "summary.json").read_text())
    for key in ("guessing_loss", "guessing_accuracy"):
        del summary["training"][key]
    (job / "summary.json").write_text(json.dumps(summary))
    (line,) = sweep_lines(compare(tmp_path / "sweep"))
    assert line.guessing is None
    report(job, Console(quiet=True))
    assert page(job).data["lines"][0]["guessing"] is None


def test_losses_are_read_from_event_files_up_to_a_damaged_one(result: Result, folder: Path, tmp_path: Path) -> None:
    losses = read_scalars(folder, "train/loss")
    assert list(losses) == list(range(6))
    assert list(losses.values()) == pytest.approx(result.training.losses, rel=1e-6)
    (whole,) = event_files(folder)
    cut = tmp_path / whole.name
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert read_scalars(tmp_path, "train/loss").items() <= losses.items()
    cut.write_bytes(whole.read_bytes().replace(b"train/loss", b"\xff" * 10))
    assert read_scalars(tmp_path, "train/loss") == {}


@pytest.mark.slow
def test_a_diverged_run_has_a_page(tmp_path: Path) -> None:
    config = Config(depth=30, width=8, steps=3, init=InitConfig("normal", std=30.0), batch_size=8)
    config.data = DataConfig("gaussian", samples=60, features=4)
    outcome = run(config, [PageFile(tmp_path)])
    assert outcome.training.diverged_at is not None
    shown = page(tmp_path)
    assert "diverged" in shown.words
    losses = shown.data["lines"][0].get("losses", [])
    assert all(loss is None or math.isfinite(loss) for loss in losses)


def test_a_run_that_measured_nothing_leaves_no_page(tmp_path: Path) -> None:
    PageFile(tmp_path).write("end", Result(Config(), status="failed", error="no data"))
    assert not list(tmp_path.iterdir())


def test_the_lessons_run_has_the_slider_of_lambda(tmp_path: Path) -> None:
    config = Config(depth=150, width=2, activation="linear", dtype="float64", steps=0)
    config.init, config.data = InitConfig("identity", gain=1.5), DataConfig("ones")
    outcome = run(config, [PageFile(tmp_path)])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="lambda"' in text
    # The closed form: the gradient at layer l is 1.5 to the power of 150 - l.
    expected = (150 - np.arange(1, 151)) * math.log10(1.5)
    assert Parsed(text).data["lines"][0]["initial"]["output_grad"] == pytest.approx(expected, abs=1e-4)
    assert outcome.training is None


def test_an_interrupted_run_says_so(result: Result, tmp_path: Path) -> None:
    from dataclasses import replace

    PageFile(tmp_path).write("end", replace(result, status="interrupted", training=Training([1.0])))
    assert "interrupted" in page(tmp_path).words


def test_an_initialisation_is_named_with_its_unusual_options() -> None:
    assert init_name({"name": "he", "gain": 1.0, "mode": "fan_in", "distribution": "normal"}) == "he"
    assert init_name({"name": "normal", "gain": 2.0, "std": 0.06}) == "normal, gain 2.0, std 0.06"
