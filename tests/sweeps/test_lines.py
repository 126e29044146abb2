"""The lines of a sweep: one for the jobs that differ in their seed only."""

from pathlib import Path

import numpy as np
import pytest
from pages import Parsed
from sweep_folders import cube, grid, leave

from gradexp.config import Config, InitConfig
from gradexp.history.history import History, write_csv
from gradexp.sweeps.compare import compare
from gradexp.sweeps.lines import sweep_lines
from gradexp.sweeps.page import headline, sweep_page


def test_jobs_that_differ_in_their_seed_are_one_line_with_their_range(tmp_path: Path) -> None:
    lines = sweep_lines(compare(grid(tmp_path)))
    assert [line.name for line in lines] == ["depth 4, he", "depth 4, xavier", "depth 10, he", "depth 10, xavier"]
    slopes = -0.4 - np.arange(3)  # of the three seeds, as grid leaves them
    expected = -slopes[:, None] / (2 * np.log(10)) * np.arange(4)
    assert lines[0].initial["output_grad"] == pytest.approx(expected.mean(axis=0))
    assert lines[0].low["output_grad"] == pytest.approx(expected.min(axis=0))
    assert lines[0].high["output_grad"] == pytest.approx(expected.max(axis=0))
    assert lines[0].words == ("vanishing", "stuck")


def test_a_dead_network_does_not_bend_the_mean(tmp_path: Path) -> None:
    for seed, size in enumerate((-1.0, -2.0, np.nan)):
        config = Config(depth=3, seed=seed)
        job = leave(tmp_path, f"{seed}_x", config, [f"seed={seed}"])
        log10 = np.full((1, 1, 3), size)
        status = np.full(log10.shape, int(np.isnan(size)), np.int8)  # zero
        sizes = dict.fromkeys(("output", "output_grad", "weight_grad"), log10)
        history = History("init", ["a", "b", "c"], [0], [seed], sizes, dict.fromkeys(sizes, status))
        write_csv(job / "layers.csv", [history])
    (line,) = sweep_lines(compare(tmp_path))
    assert line.initial["output_grad"] == pytest.approx([-1.5] * 3)


def test_many_lines_share_the_colours_of_one_option(tmp_path: Path) -> None:
    comparison = cube(tmp_path, depth=2, init=4, width=2)
    lines = sweep_lines(comparison)
    colours = {line.name.split(", ")[1]: line.colour for line in lines}
    assert len(lines) == 16
    assert len(set(colours.values())) == len(colours) == 4


def test_a_damaged_file_costs_one_line(tmp_path: Path) -> None:
    leave(tmp_path, "0_x", Config(init=InitConfig("he"), depth=3), ["init=he"])
    job = leave(tmp_path, "1_x", Config(init=InitConfig("xavier"), depth=3), ["init=xavier"])
    (job / "layers.csv").write_text("phase,step\n")
    comparison = compare(tmp_path)
    assert [line.name for line in sweep_lines(comparison)] == ["he"]
    assert Parsed(sweep_page(comparison, {}).html()).data is not None


def test_the_headline_says_who_keeps_the_gradient(tmp_path: Path) -> None:
    outcomes = {"he": "stable", "xavier": "vanishing", "normal": "exploding"}
    verdict = {"training": "stuck", "theory": "agrees", "text": ""}
    for number, (init, word) in enumerate(outcomes.items()):
        config = Config(depth=5, init=InitConfig(init))
        leave(tmp_path, f"{number}_x", config, [f"init={init}"], 2.0, verdict={"gradient": word, **verdict})
    comparison = compare(tmp_path)
    title, text = headline(comparison, sweep_lines(comparison))
    assert title == "init: only he keeps the gradient"
    end = "(10^+1.7 at layer 1)"  # 2.0 / (2 ln 10) per layer, over four layers
    assert text == f"Stable: he {end}. Vanishing: xavier {end}. Exploding: normal {end}."
