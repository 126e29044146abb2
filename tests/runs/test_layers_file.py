"""layers.csv gives back what was measured; a file that is not whole is refused."""

import re
from pathlib import Path

import numpy as np
import pytest

from gradexp.config import Config, DataConfig
from gradexp.history.history import write_csv
from gradexp.runs import run
from gradexp.runs.layers_file import read_layers
from gradexp.runs.result import Result


@pytest.fixture(scope="module")
def result() -> Result:
    data = DataConfig("gaussian", samples=100, features=6)
    return run(Config(depth=4, width=5, steps=7, seeds=2, batch_size=8, data=data))


@pytest.fixture
def path(result: Result, tmp_path: Path) -> Path:
    assert result.initial is not None
    assert result.gradients is not None
    write_csv(tmp_path / "layers.csv", [result.initial, result.gradients])
    return tmp_path / "layers.csv"


def test_what_was_written_is_read(result: Result, path: Path) -> None:
    for read, written in zip(read_layers(path), (result.initial, result.gradients), strict=True):
        assert (read.phase, read.names, read.steps, read.seeds) == (
            written.phase,
            written.names,
            written.steps,
            written.seeds,
        )
        for quantity in ("output", "output_grad", "weight_grad"):
            assert np.array_equal(read.log10[quantity], written.log10[quantity], equal_nan=True)
            assert np.array_equal(read.status[quantity], written.status[quantity])
        assert read.theory.keys() == written.theory.keys()
        for key, values in written.theory.items():
            assert read.theory[key] == pytest.approx(values, rel=1e-12)


def test_some_steps_are_read_evenly_and_none_if_none_are_asked_for(result: Result, path: Path) -> None:
    _, training = read_layers(path, 4)
    assert training.steps == [0, 2, 4, 6]
    assert np.array_equal(training.log10["output_grad"], result.gradients.log10["output_grad"][[0, 2, 4, 6]])
    initial, training = read_layers(path, 0)
    assert initial.depth == 4
    assert training is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("phase,", "phases,", 1),
        lambda text: text[: len(text) // 2],
        lambda text: re.sub(r"(?m)^init,0,1,", "init,0,x,", text, count=1),
        lambda text: text.replace(",ok,", ",fine,"),
        lambda text: "",
        lambda text: text + "elsewhere" + text,
    ],
)
def test_a_damaged_file_is_refused(damage, path: Path) -> None:
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match="is damaged"):
        read_layers(path)
