import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_comparison import grid, leave

from gradexp.comparison import Comparison, compare, seed_groups
from gradexp.config import Config, InitConfig
from gradexp.report_page import write_page
from gradexp.sweep_figures import (
    ACCURACY,
    LOG_CHI,
    axes_of,
    outcome_figure,
    profiles_figure,
    read_profile,
    write_figures,
)


def cube(folder: Path, **counts: int) -> Comparison:
    """Make a sweep over some numbers of depths, inits, widths and seeds."""
    inits = ["he", "xavier", "lecun", "orthogonal"]
    number = 0
    for d in range(counts.get("depth", 1)):
        for i in range(counts.get("init", 1)):
            for w in range(counts.get("width", 1)):
                config = Config(depth=d + 3, init=InitConfig(inits[i]), width=w + 5)
                given = [f"depth={d + 3}", f"init={inits[i]}", f"width={w + 5}"]
                leave(folder, f"{number}_x", config, given, -1.0 - d - 10 * i - 100 * w)
                number += 1
    return compare(folder)


def test_profiles_of_seeds_are_averaged_and_their_spread_is_kept(tmp_path: Path) -> None:
    for (shared, rows), sign in zip(seed_groups(compare(grid(tmp_path))), range(4), strict=True):
        profile = read_profile(rows)
        assert profile is not None
        slopes = np.array([-shared["depth"] / 10 - seed for seed in range(3)])
        each = -slopes[:, None] / (2 * np.log(10)) * np.arange(shared["depth"])
        assert profile.mean == pytest.approx(each.mean(0)), sign
        assert profile.low == pytest.approx(each.min(0))
        assert profile.high == pytest.approx(each.max(0))
        assert np.isnan(profile.theory).all()


@pytest.mark.parametrize(
    "text", ["", "phase,layer\n", "phase,layer,log10_output_grad,theory_log10_output_grad\ninit,1,"]
)
def test_a_file_that_is_missing_or_half_written_is_left_out(text: str, tmp_path: Path) -> None:
    job = leave(tmp_path, "0_x", Config(depth=3), [])
    (job / "layers.csv").write_text(text)
    (row,) = compare(tmp_path).rows
    assert read_profile([row]) is None
    (job / "layers.csv").unlink()
    assert read_profile([row]) is None
    assert profiles_figure(compare(tmp_path)) is None


def test_rows_of_the_training_are_not_read(tmp_path: Path) -> None:
    job = leave(tmp_path, "0_x", Config(depth=3), [])
    (row,) = compare(tmp_path).rows
    before = read_profile([row])
    lines = (job / "layers.csv").read_text().splitlines()
    (job / "layers.csv").write_text("\n".join([*lines, lines[-1].replace("init", "train"), "garbage"]))
    after = read_profile([row])
    assert before is not None
    assert after is not None
    assert after.mean.tolist() == before.mean.tolist()


@pytest.mark.parametrize(
    ("counts", "axes"),
    [
        ({"depth": 3, "init": 4}, ("init", "depth")),
        ({"depth": 4, "init": 2}, ("depth", "init")),
        ({"depth": 2, "init": 4, "width": 3}, ("width", "depth")),
        ({"depth": 3}, ("depth", None)),
        ({}, (None, None)),
    ],
)
def test_the_axes_are_those_with_most_values_numbers_first(
    counts: dict[str, int], axes: tuple[str | None, str | None], tmp_path: Path
) -> None:
    assert axes_of(cube(tmp_path, **counts)) == axes


def test_a_heat_map_shows_each_number_in_its_cell(tmp_path: Path) -> None:
    figure = outcome_figure(cube(tmp_path, depth=2, init=3), LOG_CHI)
    assert figure is not None
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_xticklabels()]
    depths = [int(text.get_text()) for text in axes.get_yticklabels()]
    assert sorted(names) == ["he", "lecun", "xavier"]
    shown = np.asarray(axes.images[0].get_array())
    for line, depth in enumerate(depths):
        for column, init in enumerate(names):
            expected = -1.0 - (depth - 3) - 10 * ["he", "xavier", "lecun"].index(init)
            assert shown[line, column] == pytest.approx(expected)
    low, high = axes.images[0].get_clim()
    assert low == -high  # white is 0


def test_options_on_no_axis_have_panels_of_their_own(tmp_path: Path) -> None:
    figure = outcome_figure(cube(tmp_path, depth=2, init=4, width=2), LOG_CHI)
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert sorted(titles) == ["init=he", "init=lecun", "init=orthogonal", "init=xavier"]


def test_many_profiles_are_spread_over_panels_and_never_a_long_legend(tmp_path: Path) -> None:
    figure = profiles_figure(cube(tmp_path, depth=9, init=4))
    assert figure is not None
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert len(panels) == 4
    assert all(len([line for line in axes.lines if len(line.get_xdata()) > 1]) >= 9 for axes in panels)
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert len(labels) <= 8


def test_accuracy_is_drawn_only_if_there_is_one(tmp_path: Path) -> None:
    assert outcome_figure(cube(tmp_path, depth=2, init=2), ACCURACY) is None


@pytest.mark.parametrize("counts", [{}, {"depth": 2}, {"init": 2}, {"depth": 3, "init": 2, "width": 2}])
def test_the_page_holds_all_and_asks_for_nothing(counts: dict[str, int], tmp_path: Path) -> None:
    comparison = cube(tmp_path, **counts)
    figures = write_figures(comparison)
    assert all(path.stat().st_size > 1000 for path in figures.values())
    text = write_page(comparison, figures).read_text()
    assert len(re.findall(r'<img alt="[^"]+" src="data:image/png;base64,', text)) == len(figures) >= 1
    assert not re.search(r"(src|href)=\"?(https?:)?//", text)
    assert text.count("<tr ") == len(comparison.rows)
    for row in comparison.rows:
        assert f'href="{row.job.name}/"' in text


def test_the_page_escapes_what_it_is_given(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    leave(tmp_path, "0_a<b>&c", Config(seed=0), ["seed=0"], status="failed", error=evil)
    leave(tmp_path, "1_x", Config(seed=1), ["seed=1"])
    text = write_page(compare(tmp_path), {}).read_text()
    assert evil not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "a<b>" not in text


def test_failed_jobs_alone_make_a_page_without_pictures(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"status": "failed", "error": "x"}
    job = leave(tmp_path, "0_a", Config(), [], **changes)
    (job / "layers.csv").unlink()
    comparison = compare(tmp_path)
    assert write_page(comparison, write_figures(comparison)).exists()
