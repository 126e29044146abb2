"""``log=``: a run in a logger has the profile, each training step with its gradients, and the outcome."""

import csv
import sys

import numpy as np
import pytest

from gradexp import Config
from gradexp.choices import ConfigError
from gradexp.config import DataConfig
from gradexp.runs.experiment import run
from gradexp.runs.summary import config_hash
from gradexp.sinks.curves import Curves, curves_for


def config(**options):
    return Config(depth=4, width=8, data=DataConfig("gaussian", samples=100), **{"steps": 5, **options})


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def test_a_csv_file_has_each_training_step_with_its_gradients(tmp_path):
    result = run(config(), [curves_for("csv", tmp_path)])
    *rows, after = rows_of(tmp_path / "curves.csv")
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4]
    assert [float(row["train/loss"]) for row in rows] == result.training.losses
    sizes = [[float(row[f"log10_output_grad/layers.{layer}"]) for layer in range(4)] for row in rows]
    np.testing.assert_array_equal(sizes, result.gradients.log10["output_grad"][:, 0])
    assert [float(row["test/loss"]) for row in [*rows, after]] == [loss for _, loss, _ in result.training.tests]
    assert (after["step"], after["train/loss"]) == ("5", "")


def test_gradients_stand_at_the_steps_that_were_recorded(tmp_path):
    options = config(steps=7)
    options.record.every = 3
    run(options, [curves_for("csv", tmp_path)])
    rows = rows_of(tmp_path / "curves.csv")
    assert [bool(row["gradient/log10_total"]) for row in rows] == [step in (0, 3, 6) for step in range(8)]


def test_a_logger_has_the_profile_over_layers_then_the_steps_then_the_outcome():
    seen = []

    def log(step, numbers, *, findings):
        seen.append((step, numbers, findings))

    result = run(config(), [Curves(log)])
    profile, steps, (_, after, _), (last, outcome, findings) = seen[:4], seen[4:9], seen[9], seen[10]
    assert [step for step, _, _ in profile] == [1, 2, 3, 4]
    expected = result.initial.profile("output_grad")
    assert [numbers["profile/log10_output_grad"] for _, numbers, _ in profile] == pytest.approx(expected, abs=1e-8)
    assert [step for step, _, _ in steps] == [0, 1, 2, 3, 4]
    assert after.keys() == {"test/loss"}
    assert (last, outcome["summary/loss_last"]) == (5, result.training.losses[-1])
    assert findings == [result.verdict.text]
    assert len(seen) == 11


def test_a_run_without_training_has_its_profile():
    seen = []
    run(config(steps=0), [Curves(lambda step, numbers: seen.append((step, *numbers)))])
    assert [step for step, *_ in seen] == [1, 2, 3, 4, 0]


def test_what_a_logger_raises_is_one_warning_and_the_run_is_complete():
    def log(step, numbers):
        raise OSError("the server\nis gone")

    with pytest.warns(RuntimeWarning, match=r"^what follows is not in the log: OSError: the server is gone$") as told:
        result = run(config(), [Curves(log)])
    assert len(told) == 1
    assert result.status == "complete"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_missing_is_told_in_a_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f"^log={name} needs a package that is not installed: pip install {name}$"):
        curves_for(name, tmp_path)


def test_a_library_that_cannot_begin_is_told_in_a_line_before_anything_is_measured(tmp_path, monkeypatch):
    package = tmp_path / "mlflow"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no store\\nhere')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(ConfigError, match=r"^log=mlflow: ImportError: no store here$"):
        run(config(), [curves_for("mlflow", tmp_path)])


def test_a_logger_changes_nothing_that_is_computed():
    with pytest.raises(ConfigError, match=r"^log must be one of wandb, mlflow, csv, got 'tensorboad'$"):
        config(log="tensorboad")
    assert config_hash(config(log="csv")) == config_hash(config())
    logged = run(config(), [Curves(lambda step, numbers: None)])
    assert logged.training.losses == run(config()).training.losses
