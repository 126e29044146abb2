"""A job of a sweep in one line of the terminal."""

import pytest
from results import result

from gradexp.history.verdict import Verdict
from gradexp.runs.summary import summary
from gradexp.sinks.job_line import job_line, option_words


def content(**options):
    return summary(result(verdict=Verdict("vanishing", "diverged", "agrees"), **options))


def test_number_and_options_come_first_then_what_became_of_it():
    run = content(overrides=["init=he", "depth=50", "steps=20"])
    run["initial"]["log_chi"] = -0.04
    run["training"]["loss_last"], run["seconds"] = 2.28, 4.2
    line = job_line("3_depth=50,init=he", run).plain
    assert line.split() == [
        "3",
        "he,",
        "depth",
        "50",
        "vanishing",
        "diverged",
        "x0.98/layer",
        "loss",
        "2.280",
        "4.2",
        "s",
    ]
    assert line.startswith("  3  he, depth 50  ")


@pytest.mark.parametrize("width", [60, 80, 132])
@pytest.mark.parametrize("length", [1, 200])
def test_it_fits_the_terminal_however_long_its_options_are(width, length):
    values = ",".join("7" * length)
    run = content(overrides=["init=he", f"widths=[{values}]"], seconds=123.4)
    line = job_line(f"1234_init=he,widths=[{values}]", run, width).plain
    assert len(line) <= width + 2  # a number of four digits
    assert "vanishing" in line
    assert ("…" in line) == (length > 1)
    assert (" s" in line) == (width > 60)


def test_options_without_room_for_their_names_have_their_values():
    run = content(overrides=["model=resnet", "residual=fixup", "normalization=batch"])
    assert job_line("3_normalization=batch,residual=fixup", run).plain.startswith("  3  fixup, batch  ")
    run = content(overrides=["precision=amp_float16", "seed=1"])
    assert job_line("3_precision=amp_float16,seed=1", run).plain.startswith("  3  amp_float16, seed 1  ")


def test_the_columns_of_all_jobs_are_below_each_other():
    short = job_line("0_init=he", content(overrides=["init=he"])).plain
    long = job_line("12_depth=150,init=xavier", content(overrides=["init=xavier", "depth=150"])).plain
    assert short.index("vanishing") == long.index("vanishing")
    assert short.index("loss") == long.index("loss")


def test_a_job_without_slope_or_training_has_no_number_for_them():
    run = summary(result(training=None, initial=None, verdict=Verdict("dead", "none", "unavailable")))
    assert job_line("7_", run).plain.split() == ["7", "dead", "none", "loss", "-", "2.5", "s"]


def test_parts_of_your_own_are_told_though_no_folder_may_be_called_so():
    run = content(overrides=["depth=10", r"init=mine\:my_init_", "activation=tanh", "data.path=my/data.npz"])
    line = job_line("3_activation=tanh,data.path=my-data.npz,init=mine-my_init_", run, 132).plain
    assert line.startswith("  3  mine:my_init_, tanh, path my/data.npz  ")


@pytest.mark.parametrize("name", ["mine", "run [red]a[/red]", "0_init=xavier"])
def test_a_folder_with_another_name_is_shown_by_it(name):
    run = content(overrides=["init=he", "depth=50"])
    assert name.removeprefix("0_") in job_line(name, run).plain


def test_large_and_tiny_factors_are_powers_of_ten():
    run = content()
    for slope, shown in ((2.302585 * 2 * 3, "x10^3.0/layer"), (-2.302585 * 2 * 30, "x10^-30.0/layer")):
        run["initial"]["log_chi"] = slope
        assert shown in job_line("0_init=he", run).plain


def test_options_are_named_in_words() -> None:
    assert option_words({"init": "normal", "init.std": 0.06, "depth": 50}) == "normal, std 0.06, depth 50"
    assert option_words({"init": "he", "init.std": None, "optimizer": "adam"}) == "he, adam"
    assert option_words({"residual": "none", "bias": True}) == "residual none, bias True"
