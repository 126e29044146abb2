"""``python -m gradexp.measure``, called in this process; one test starts it as people do."""

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_processes import LIMIT

import gradexp.diagnosis.measure
from gradexp import History

MODELS = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

NUMBER = 3


def build(activation, std):
    torch.manual_seed(0)
    layers = []
    for _ in range(10):
        layers += [nn.Linear(16, 16), activation()]
        nn.init.normal_(layers[-2].weight, std=std)
    return nn.Sequential(*layers, nn.Linear(16, 4)), cross_entropy, (torch.randn(64, 16), torch.arange(64) % 4)


def healthy():
    return build(nn.Tanh, 0.25)


def vanishing():
    return build(nn.Sigmoid, 0.25)


def closure():
    model, loss_fn, (x, y) = build(nn.Tanh, 0.25)
    return model, lambda: loss_fn(model(x), y)


def stale():
    model, loss_fn, batch = build(nn.Tanh, 0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[-1] = nn.Linear(16, 4)
    return model, loss_fn, batch, optimizer


def broken():
    return torch.zeros(2) + torch.zeros(3)


def four():
    return 1, 2, 3, 4


def misshapen():
    return nn.Linear(3, 2), mse_loss, (torch.zeros(5, 4), torch.zeros(5, 2))
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "my_models"
    sys.modules.pop("my_models", None)


def call(monkeypatch, *arguments):
    """Run the command and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["measure", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("gradexp.measure", run_name="__command__")["main"]()
    return end.value.code


@pytest.fixture(autouse=True)
def _the_function_keeps_its_name(monkeypatch):
    # Run under another name the file would put the function in the place of its own module.
    monkeypatch.setitem(sys.modules, "__command__", None)


def test_it_prints_the_verdict_on_somebodys_own_model(models, monkeypatch, capsys):
    assert call(monkeypatch, f"{models}:healthy") == 0
    assert "stable" in capsys.readouterr().out
    assert call(monkeypatch, f"{models}:closure") == 0
    assert "stable" in capsys.readouterr().out


def test_check_tells_a_sick_model_by_the_exit_code(models, monkeypatch, capsys):
    assert call(monkeypatch, f"{models}:healthy", "--check") == 0
    assert call(monkeypatch, f"{models}:vanishing", "--check") == 1
    assert "vanishing" in capsys.readouterr().out
    assert call(monkeypatch, f"{models}:vanishing") == 0


def test_an_optimizer_that_lacks_a_layer_is_told(models, monkeypatch, capsys):
    assert call(monkeypatch, f"{models}:stale", "--check") == 1
    assert "'20' is not in the optimizer and never changes" in capsys.readouterr().out


def test_a_file_is_named_as_well_as_a_module_and_its_numbers_are_kept(models, monkeypatch):
    assert call(monkeypatch, f"{models}.py:healthy", "--save", "kept.npz") == 0
    assert History.load("kept.npz").depth == 11


def test_a_page_is_written_if_asked(models, monkeypatch, capsys):
    assert call(monkeypatch, f"{models}:vanishing", "--report", "mine.html") == 0
    assert f"<h1>{models}:vanishing" in Path("mine.html").read_text(encoding="utf-8")
    assert call(monkeypatch, f"{models}:vanishing", "--report", "nowhere/mine.html") == 1
    assert capsys.readouterr().err.startswith("cannot write to nowhere/mine.html: No such file")


MISTAKES = {
    "healthy": "name a module and a function in it, such as train:example; got 'healthy'",
    "nowhere:healthy": "cannot import nowhere: No module named 'nowhere' (looked in this folder and",
    "nowhere.py:healthy": "there is no file nowhere.py",
    "my_models:ill": "my_models has no function 'ill'; it has build, healthy",
    "my_models:NUMBER": "my_models holds no function 'NUMBER' but 3; it has build, healthy",
    "my_models:broken": "my_models:broken raised RuntimeError: The size of tensor a (2)",
    "my_models:four": "my_models:four must return (model, loss_fn, batch), or (model, closure)",
    "my_models:misshapen": "my_models:misshapen cannot be measured: RuntimeError: ",
}


@pytest.mark.parametrize("target", MISTAKES)
def test_a_mistake_is_told_in_one_line(target, models, monkeypatch, capsys):
    assert call(monkeypatch, target) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(MISTAKES[target])


def test_the_place_of_an_error_in_somebodys_own_code_is_named(models, monkeypatch, capsys):
    call(monkeypatch, f"{models}:broken")
    line = 1 + MODELS.splitlines().index("    return torch.zeros(2) + torch.zeros(3)")
    assert capsys.readouterr().err.strip().endswith(f"my_models.py, line {line})")


@pytest.mark.slow
def test_the_command_starts_as_a_process(models, tmp_path):
    command = [sys.executable, "-m", "gradexp.measure", f"{models}:healthy", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_name_is_that_of_the_function_also_after_the_file_was_imported():
    try:
        imported = importlib.import_module("gradexp.measure")
        assert imported is gradexp.diagnosis.measure.measure
        assert gradexp.measure is imported
    finally:
        del sys.modules["gradexp.measure"]
