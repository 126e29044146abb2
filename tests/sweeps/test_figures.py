import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import few
from matplotlib import rc_context
from matplotlib.figure import Figure
from sweep_folders import cube, grid, leave

from gradexp.choices import INIT_OPTIONS
from gradexp.config import Config, InitConfig, OptimizerConfig
from gradexp.plotting import save
from gradexp.sweeps.compare import Row, SweepResults, compare, seed_groups
from gradexp.sweeps.folder import Job
from gradexp.sweeps.outcome_figure import ACCURACY, LOG_CHI, axes_of, outcome_figure
from gradexp.sweeps.profile_figure import profiles_figure, read_profile


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


def test_a_figure_is_drawn_once_for_each_file_and_looks_alike_in_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = outcome_figure(compare(grid(tmp_path)), LOG_CHI)
    assert figure is not None
    places: list[list[tuple[float, ...]]] = []
    draw = Figure.draw

    def counted(self: Figure, renderer: Any) -> None:
        draw(self, renderer)
        places.append([axes.get_position().bounds for axes in self.axes])

    monkeypatch.setattr(Figure, "draw", counted)
    with rc_context({"figure.autolayout": True}):  # of somebody's own settings
        save(figure, tmp_path / "log_chi", 50)
    assert len(places) == 2
    assert places[0] == places[1]
    figure.draw_without_rendering()
    assert places[2] == places[0]


@pytest.mark.parametrize("dead", few([1, 3]))
def test_a_dead_network_hides_no_other(dead: int, tmp_path: Path) -> None:
    comparison = compare(grid(tmp_path))
    rows = seed_groups(comparison)[0][1]
    for row in rows[:dead]:
        path = row.job.folder / "layers.csv"
        lines = list(csv.reader(path.read_text().splitlines()))
        lines[2][lines[0].index("log10_output_grad")] = ""  # of the second layer
        path.write_text("\n".join(map(",".join, lines)))
    profile = read_profile(rows)
    assert profile is not None
    each = [0.4 + seed for seed in range(dead, 3)]
    expected = np.mean(each) / (2 * np.log(10)) * np.arange(4) if each else np.full(4, np.nan)
    assert profile.mean == pytest.approx(expected, nan_ok=True)
    assert profiles_figure(comparison) is not None


@pytest.mark.parametrize("dead", few([1, 0, 3]))
def test_cells_with_dead_networks_are_marked(dead: int, tmp_path: Path) -> None:
    comparison = compare(grid(tmp_path))
    for row in seed_groups(comparison)[0][1][:dead]:
        row.numbers.update(log_chi=None, gradient="dead")
    figure = outcome_figure(comparison, LOG_CHI)
    assert figure is not None
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"-2.00", {0: "-1.40", 1: "-1.90 †", 3: "†"}[dead]} | ({"-1.40"} if dead else set())
    assert ("†: a run is dead" in " ".join(figure.get_suptitle().split())) == bool(dead)


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
        ({"depth": 3, "init": 4}, ("depth", "init")),
        ({"depth": 4, "init": 2}, ("depth", "init")),
        ({"depth": 2, "init": 4, "width": 3}, ("width", "init")),
        ({"depth": 3, "init": 3, "width": 2}, ("depth", "init")),
        ({"depth": 3}, ("depth", None)),
        ({}, (None, None)),
    ],
)
def test_the_axes_are_those_with_most_values_and_names_are_lines(
    counts: dict[str, int], axes: tuple[str | None, str | None], tmp_path: Path
) -> None:
    assert axes_of(cube(tmp_path, **counts)) == axes


def test_a_heat_map_shows_each_number_in_its_cell(tmp_path: Path) -> None:
    figure = outcome_figure(cube(tmp_path, depth=2, init=3), LOG_CHI)
    assert figure is not None
    axes = figure.axes[0]
    depths = [int(text.get_text()) for text in axes.get_xticklabels()]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert sorted(names) == ["he", "lecun", "xavier"]
    shown = np.asarray(axes.images[0].get_array())
    for column, depth in enumerate(depths):
        for line, init in enumerate(names):
            expected = -1.0 - (depth - 3) - 10 * ["he", "xavier", "lecun"].index(init)
            assert shown[line, column] == pytest.approx(expected)
    low, high = axes.images[0].get_clim()
    assert low == -high  # white is 0


def test_options_on_no_axis_have_panels_of_their_own(tmp_path: Path) -> None:
    figure = outcome_figure(cube(tmp_path, depth=3, init=4, width=2), LOG_CHI)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["width=5", "width=6"]


@pytest.mark.slow
def test_many_profiles_are_spread_over_panels_and_never_a_long_legend(tmp_path: Path) -> None:
    figure = profiles_figure(cube(tmp_path, depth=9, init=4))
    assert figure is not None
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title().partition(":")[0] for axes in panels] == [
        "init=he",
        "init=lecun",
        "init=orthogonal",
        "init=xavier",
    ]
    assert all(len([line for line in axes.lines if len(line.get_xdata()) > 1]) >= 9 for axes in panels)
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert len(labels) <= 8


def test_accuracy_is_drawn_only_if_there_is_one(tmp_path: Path) -> None:
    assert outcome_figure(cube(tmp_path, depth=2, init=2), ACCURACY) is None


def test_few_profiles_share_a_panel_and_their_legend_says_what_became_of_them(tmp_path: Path) -> None:
    leave(tmp_path, "0_x", Config(depth=5), ["init=he"], slope=-1.0)
    verdict = {"gradient": "exploding", "training": "none", "theory": "unavailable", "text": ""}
    leave(tmp_path, "1_x", Config(depth=9, init=InitConfig("xavier")), ["init=xavier"], slope=1.0, verdict=verdict)
    figure = profiles_figure(compare(tmp_path))
    assert figure is not None
    (axes,) = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["init=he: vanishing", "init=xavier: exploding"]
    assert sorted(len(line.get_xdata()) for line in axes.lines if line.get_label()[0] != "_") == [5, 9]


@pytest.mark.slow
def test_many_names_have_a_panel_each_with_all_others_behind(tmp_path: Path) -> None:
    for number, init in enumerate(INIT_OPTIONS):
        leave(tmp_path, f"{number}_x", Config(depth=4, init=InitConfig(init)), [f"init={init}"], -number / 10)
    figure = profiles_figure(compare(tmp_path))
    assert figure is not None
    assert len(figure.axes) == len(INIT_OPTIONS)
    [text] = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert text.startswith("stable:")  # the band; a panel has the name of its line


@pytest.mark.slow
def test_panels_that_do_not_fit_are_said_to_be_left_out(tmp_path: Path) -> None:
    numbers = {"log_chi": 1.0, "diverged_at": None, "gradient": "exploding"}
    swept = [
        {"depth": depth, "width": width, "init.gain": index % 4, "init.std": index // 4}
        for index, depth, width in itertools.product(range(13), range(5), range(5))
    ]
    rows = [Row(Job(tmp_path, {}), own, numbers) for own in swept]
    figure = outcome_figure(SweepResults(tmp_path, list(swept[0]), rows), LOG_CHI)
    assert figure is not None
    assert len([axes for axes in figure.axes if axes.get_title()]) == 12
    assert "12 of 13 panels" in figure.get_suptitle()


def by_hand(folder: Path) -> SweepResults:
    """Runs that somebody made one after the other: an option of one init only, so that a grid of them has holes."""
    for number, (init, std) in enumerate([("he", None), ("normal", 0.06), ("normal", 0.25), ("xavier", None)]):
        given = [f"init={init}", *([] if std is None else [f"init.std={std}"])]
        leave(folder, f"{number}_x", Config(depth=5, init=InitConfig(init, std=std)), given, 1.0 - number)
    return compare(folder)


def test_where_a_grid_would_have_holes_there_are_bars(tmp_path: Path) -> None:
    comparison = by_hand(tmp_path)
    figure = outcome_figure(comparison, LOG_CHI)
    assert figure is not None
    [axes] = figure.axes
    assert not axes.images
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["init=he", "init=normal, init.std=0.06", "init=normal, init.std=0.25", "init=xavier"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([1.0, 0.0, -1.0, -2.0])
    assert "none" not in " ".join(names)


def test_bars_mark_what_is_lost(tmp_path: Path) -> None:
    comparison = by_hand(tmp_path)
    comparison.rows[0].numbers.update(log_chi=None, gradient="dead")
    figure = outcome_figure(comparison, LOG_CHI)
    assert figure is not None
    assert [text.get_text().endswith("†") for text in figure.axes[0].get_yticklabels()] == [True, False, False, False]
    assert "†: a run is dead" in " ".join(figure.get_suptitle().split())


def test_the_profiles_have_a_band_in_which_they_are_stable_and_theory_dashed_on_top(tmp_path: Path) -> None:
    figure = profiles_figure(by_hand(tmp_path))
    assert figure is not None
    [axes] = figure.axes
    low, high = axes.get_ylim()
    assert high - low >= 6
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "stable:\nwithin 3 powers of ten" in labels
    assert not any("none" in label for label in labels)
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    solid = [line for line in axes.get_lines() if line.get_linestyle() == "-"]
    assert {line.get_color() for line in dashed} == {"black"}
    assert min(line.get_zorder() for line in dashed) > max(line.get_zorder() for line in solid)


def test_a_panel_is_as_wide_as_its_own_networks_are_deep(tmp_path: Path) -> None:
    figure = profiles_figure(cube(tmp_path, init=4, width=2, depth=4))
    assert figure is not None
    for axes in figure.axes:
        deepest = max((len(line.get_xdata()) for line in axes.get_lines()), default=0)
        low, high = axes.get_ylim()
        drawn = [value for line in axes.get_lines() for value in line.get_ydata() if np.isfinite(value)]
        assert not drawn or low <= min(drawn) <= max(drawn) <= high
        assert not deepest or axes.get_xlim()[1] == pytest.approx(1.02 * deepest)


@pytest.mark.parametrize("share", few([1, 0, 2]))
def test_cells_hold_the_mean_over_seeds_and_mark_what_diverged(share: int, tmp_path: Path) -> None:
    content = {"steps": 1, "loss_first": 2.0, "loss_last": 1.0, "train_accuracy": 0.5, "test_loss": 1.0}
    for number, (depth, init, seed) in enumerate(itertools.product((3, 4), ("he", "xavier"), range(2))):
        lost = depth == 3 and init == "he" and seed < share
        training = {**content, "test_accuracy": 0.2 + 0.4 * seed, "diverged_at": None}
        if lost:
            training.update(train_accuracy=None, test_accuracy=None, diverged_at=1)
        config = Config(depth=depth, init=InitConfig(init), seed=seed)
        given = [f"depth={depth}", f"init={init}", f"seed={seed}"]
        leave(tmp_path, f"{number}_x", config, given, training=training)
    figure = outcome_figure(compare(tmp_path), ACCURACY)
    assert figure is not None
    shown = np.ma.filled(np.asarray(figure.axes[0].images[0].get_array()), np.nan)
    expected = {0: np.mean([0.2, 0.6]), 1: 0.6, 2: np.nan}[share]
    assert shown == pytest.approx(np.array([[expected, 0.4], [0.4, 0.4]]), nan_ok=True)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0] == {0: "40%", 1: "60% ×", 2: "×"}[share]
    assert not any("×" in text for text in texts[1:])


def test_a_heat_map_whose_jobs_all_failed_but_one_is_grey_with_dots(tmp_path: Path) -> None:
    comparison = cube(tmp_path, depth=2, init=2)
    for row in comparison.rows[1:]:
        row.numbers["log_chi"] = None
    figure = outcome_figure(comparison, LOG_CHI)
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts].count("·") == 3


def test_options_that_are_no_numbers_or_do_not_apply_are_drawn(tmp_path: Path) -> None:
    for number, (clip, bias) in enumerate(itertools.product((None, 0.5, 1.0), (True, False))):
        config = Config(depth=4, bias=bias, optimizer=OptimizerConfig(clip_norm=clip))
        given = [f"optimizer.clip_norm={'null' if clip is None else clip}", f"bias={bias}"]
        leave(tmp_path, f"{number}_x", config, given, -number / 10)
    assert axes_of(compare(tmp_path)) == ("optimizer.clip_norm", "bias")
    figure = outcome_figure(compare(tmp_path), LOG_CHI)
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["0.5", "1", "none"]
    assert profiles_figure(compare(tmp_path)) is not None
