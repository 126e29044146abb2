import csv
import dataclasses
import json
import math
import sys

import numpy as np
import pytest
from pages import EVIL, Parsed

from gradexp.history.history import COLUMNS, History, write_csv
from gradexp.history.step import QUANTITIES, STATUSES, mean, standard_error

OK, ZERO, NONFINITE = (STATUSES.index(name) for name in ("ok", "zero", "nonfinite"))


def make(output_grad=None, steps=(0,), phase="init", dead=None, status=None, **others):
    """Make a History from log10 values of shape (step, network, layer); a list of layers is one network."""
    if output_grad is not None:
        others["output_grad"] = output_grad
    log10 = {key: np.array(value, dtype=np.float64, ndmin=3) for key, value in others.items()}
    networks, layers = next(iter(log10.values())).shape[1:]
    codes = {key: np.where(np.isnan(value), NONFINITE, OK).astype(np.int8) for key, value in log10.items()}
    codes.update({key: np.array(value, dtype=np.int8, ndmin=3) for key, value in (status or {}).items()})
    return History(
        phase=phase,
        names=[f"layers.{index}" for index in range(layers)],
        steps=list(steps),
        seeds=list(range(5, 5 + networks)),
        log10=log10,
        status=codes,
        dead_fraction=None if dead is None else np.array(dead, dtype=np.float64),
    )


def random_history(steps=3, networks=2, layers=4):
    rng = np.random.default_rng(0)
    shape = (steps, networks, layers)
    log10 = {quantity: rng.normal(scale=100, size=shape) for quantity in QUANTITIES}
    log10["output"][1:2, 0, 2] = np.nan
    return History(
        phase="train",
        names=[f"block.{index}.schicht_ä" for index in range(layers)],
        steps=[0, 10, 20][:steps],
        seeds=[3, 4][:networks],
        log10=log10,
        status={quantity: rng.integers(0, len(STATUSES), shape).astype(np.int8) for quantity in QUANTITIES},
        largest_log10={quantity: rng.normal(size=shape) for quantity in ("output", "output_grad")},
        dead_fraction=rng.random(networks),
        output_cosine=np.array([np.nan, 0.25])[:networks],
    )


def assert_same(one, other):
    for entry in dataclasses.fields(History):
        mine, theirs = getattr(one, entry.name), getattr(other, entry.name)
        if isinstance(mine, dict):
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                assert theirs[key].dtype == value.dtype
                np.testing.assert_array_equal(theirs[key], value)
        elif isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(theirs, mine)
        else:
            assert theirs == mine


# ---- slopes


def test_log_chi_is_the_mean_of_the_differences_of_log_squared_norms():
    log10 = [[3.0, -1.0, 4.0, 1.5, -9.0], [2.0, 6.0, 5.0, 3.0, 5.5]]
    history = make([log10])
    log_square = 2 * math.log(10) * np.array(log10)
    expected = (log_square[:, :-1] - log_square[:, 1:]).mean(axis=1)
    assert history.at().log_chi_per_network() == pytest.approx(expected)
    assert history.log_chi() == pytest.approx(expected.mean())


@pytest.mark.parametrize(("first", "last"), [(1, 2), (2, 4), (3, 5), (1, None), (4, None)])
def test_log_chi_of_a_window_uses_its_layers_only(first, last):
    log10 = [3.0, -1.0, 4.0, 1.5, -9.0]
    window = 2 * math.log(10) * np.array(log10[first - 1 : last])
    expected = (window[:-1] - window[1:]).mean()
    assert make(log10).log_chi(first, last) == pytest.approx(expected)
    assert make(log10).depth_scale(first, last) == pytest.approx(1 / abs(expected))


def test_a_gradient_that_grows_towards_the_input_has_a_positive_log_chi():
    assert make([2.0, 1.0, 0.0]).log_chi() == pytest.approx(math.log(100))
    assert make([-2.0, -1.0, 0.0]).log_chi() == pytest.approx(-math.log(100))


def test_depth_scale_is_a_number_of_layers_for_a_factor_e_in_the_squared_norm():
    per_layer = -0.25
    log10 = [per_layer * (10 - layer) / (2 * math.log(10)) for layer in range(1, 11)]
    assert make(log10).depth_scale() == pytest.approx(4)
    assert make([1.0, 1.0]).depth_scale() is None


def test_log_chi_of_one_step_is_of_that_step():
    history = make([[[0.0, 1.0]], [[3.0, 1.0]]], steps=[0, 100])
    assert history.log_chi(step=0) == pytest.approx(-math.log(100))
    assert history.log_chi(step=1) == history.log_chi() == pytest.approx(2 * math.log(100))


@pytest.mark.parametrize(("first", "last"), [(0, 3), (3, 2), (1, 4), (-1, 2), (4, None)])
def test_a_window_outside_the_layers_is_refused(first, last):
    message = rf"^first and last must satisfy 1 <= first <= last <= 3, got {first}, {last or 3}$"
    with pytest.raises(ValueError, match=message):
        make([1.0, 2.0, 3.0]).log_chi(first, last)


def test_a_window_of_one_layer_has_no_slope():
    assert make([1.0]).log_chi() is None
    assert make([1.0]).depth_scale() is None
    assert make([1.0, 2.0]).log_chi(2, 2) is None


def test_a_network_without_a_number_at_an_end_is_left_out_of_log_chi():
    history = make([[[math.nan, 1.0, 0.0], [2.0, math.nan, 0.0]]])
    assert np.isnan(history.at().log_chi_per_network()).tolist() == [True, False]
    assert history.log_chi() == pytest.approx(math.log(100))


def test_a_dead_network_has_no_log_chi():
    assert make([2.0, 1.0, 0.0], dead=[1.0]).log_chi() is None
    assert make([2.0, 1.0, 0.0], dead=[0.99]).log_chi() == pytest.approx(math.log(100))
    both = make([[[2.0, 1.0, 0.0], [8.0, 4.0, 0.0]]], dead=[0.0, 1.0])
    assert both.log_chi() == pytest.approx(math.log(100))


def test_first_over_last_is_in_decades_and_averaged_over_networks():
    history = make(weight_grad=[[[3.0, 9.0, 1.0], [-1.0, 9.0, 5.0], [math.nan, 1.0, 1.0]]])
    assert history.first_over_last("weight_grad") == pytest.approx((2.0 - 6.0) / 2)
    assert make([math.nan, 1.0]).first_over_last("output_grad") is None


def test_a_profile_is_the_mean_of_the_logs_over_networks_that_have_one():
    nan = math.nan
    history = make(output=[[[1.0, 2.0, nan], [3.0, nan, nan], [8.0, 4.0, nan]]])
    np.testing.assert_array_equal(history.profile("output"), [4.0, 3.0, nan])
    assert history.depth == 3


def test_a_profile_is_of_the_last_step_unless_another_is_asked_for():
    history = make(output=[[[1.0, 2.0]], [[3.0, 4.0]]], steps=[0, 7])
    assert history.profile("output").tolist() == [3.0, 4.0]
    assert history.profile("output", step=0).tolist() == [1.0, 2.0]


def test_a_quantity_that_was_not_recorded_is_named_with_the_choices():
    history = make([1.0, 2.0], output=[1.0, 2.0])
    for ask in (history.profile, history.first_over_last):
        with pytest.raises(ValueError, match=r"^'update' was not recorded; choose one of output, output_grad$"):
            ask("update")
    with pytest.raises(ValueError, match=r"^'output_grad' was not recorded; choose one of output$"):
        make(output=[1.0, 2.0]).log_chi()


# ---- small statistics


def test_standard_error_is_the_sample_deviation_over_root_n():
    values = [1.0, 4.0, 2.5, -3.0]
    average = sum(values) / 4
    expected = math.sqrt(sum((v - average) ** 2 for v in values) / 3) / math.sqrt(4)
    assert standard_error(np.array(values)) == pytest.approx(expected)
    assert standard_error(np.array([*values, math.nan, math.inf])) == pytest.approx(expected)
    assert mean(np.array([*values, math.nan, -math.inf])) == pytest.approx(average)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_fewer_than_two_networks_have_no_standard_error(values):
    assert standard_error(np.array(values, dtype=np.float64)) is None


def test_no_numbers_have_no_mean():
    assert mean(np.array([math.nan, math.inf])) is None
    assert mean(np.array([])) is None


# ---- verdict


@pytest.mark.parametrize(
    ("ratio", "gradient"),
    [(-3.01, "vanishing"), (-2.99, "stable"), (0.0, "stable"), (2.99, "stable"), (3.01, "exploding")],
)
def test_the_verdict_follows_the_decades_between_first_and_last_layer(ratio, gradient):
    verdict = make([ratio + 7, 50.0, 7.0]).verdict()
    assert verdict.gradient == gradient
    assert (f"10^{ratio:.1f}" if ratio else "x1 ") in verdict.text
    assert "\n" not in verdict.text


def test_the_threshold_of_the_verdict_can_be_moved():
    history = make([-2.0, 0.0])
    assert history.verdict().gradient == "stable"
    assert history.verdict(decades=1.0).gradient == "vanishing"
    assert history.verdict(decades=2.0).gradient == "stable"


def test_the_verdict_is_of_the_step_asked_for():
    history = make([[[-5.0, 0.0]], [[5.0, 0.0]]], steps=[0, 100])
    assert history.verdict(step=0).gradient == "vanishing"
    assert history.verdict().gradient == "exploding"


def test_a_dead_network_is_dead_and_says_where():
    nan = math.nan
    status = {"output": [OK, ZERO, ZERO], "output_grad": [ZERO, ZERO, OK]}
    verdict = make([nan, nan, 0.0], output=[1.0, nan, nan], status=status, dead=[1.0]).verdict()
    assert verdict.gradient == "dead"
    assert verdict.text == "dead: layer 2 outputs 0 for every sample"


def test_a_gradient_that_reaches_some_layers_only_is_dead_where_it_stops():
    status = {"output_grad": [ZERO, ZERO, OK]}
    verdict = make([math.nan, math.nan, 0.0], status=status, phase="train").verdict()
    assert verdict.gradient == "dead"
    assert "layer 2 receives a gradient of exactly 0" in verdict.text


def test_numbers_that_are_not_finite_are_an_explosion():
    verdict = make([math.nan, math.nan, 0.0]).verdict()
    assert verdict.gradient == "exploding"
    assert "layer 2" in verdict.text


# ---- rows, files


def test_rows_hold_every_step_network_and_layer_in_order():
    history = random_history()
    rows = list(history.rows())
    assert [(row["step"], row["seed"], row["layer"]) for row in rows] == [
        (step, seed, layer) for step in (0, 10, 20) for seed in (3, 4) for layer in (1, 2, 3, 4)
    ]
    for row in rows:
        assert tuple(row) == COLUMNS
        s, n, layer = [0, 10, 20].index(row["step"]), row["seed"] - 3, row["layer"] - 1
        assert (row["phase"], row["call"], row["name"]) == ("train", 0, history.names[layer])
        for quantity in QUANTITIES:
            value = history.log10[quantity][s, n, layer]
            assert row[f"log10_{quantity}"] == (None if math.isnan(value) else value)
        for quantity in ("output", "output_grad", "weight_grad"):
            assert row[f"status_{quantity}"] == STATUSES[history.status[quantity][s, n, layer]]
        assert all(row[column] is None for column in COLUMNS if column.startswith("theory"))


def test_a_quantity_that_was_not_recorded_leaves_its_columns_empty():
    row = next(make([1.0, 2.0]).rows())
    assert row["log10_output_grad"] == 1.0
    assert row["status_output_grad"] == "ok"
    for column in ("log10_output", "status_output", "log10_weight", "log10_update"):
        assert row[column] is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_cell_without_a_number_is_empty_and_never_infinite(value, tmp_path):
    history = make([value, 1.0])
    assert [row["log10_output_grad"] for row in history.rows()] == [None, 1.0]
    write_csv(tmp_path / "layers.csv", [history])
    text = (tmp_path / "layers.csv").read_text()
    assert "inf" not in text.replace("nonfinite", "")
    assert "nan" not in text


def test_csv_keeps_every_digit(tmp_path):
    first, second = make([0.1, -1 / 3, 1e-17]), random_history()
    write_csv(tmp_path / "layers.csv", [first, second])
    with (tmp_path / "layers.csv").open(newline="") as file:
        header, *lines = list(csv.reader(file))
    assert tuple(header) == COLUMNS
    rows = [*first.rows(), *second.rows()]
    assert len(lines) == len(rows) == 3 + 24
    for line, row in zip(lines, rows, strict=True):
        for text, value in zip(line, row.values(), strict=True):
            assert (float(text) if isinstance(value, float) else text) == (
                value if isinstance(value, float) else "" if value is None else str(value)
            )
    assert lines[0][COLUMNS.index("log10_output_grad")] == "0.1"  # no digit more than it takes


def test_csv_holds_the_numbers_of_the_arrays(tmp_path):
    history = random_history()
    history.log10["output_grad"][2] = np.inf  # a whole step without a number
    history.names = ['a,"b"', "", "layers.2", "schicht_ä"]
    history.calls = [0, 1, 0, 2]
    history.theory = {"log10_output": np.array([0.5, np.nan, 1 / 3, -2.0])}
    write_csv(tmp_path / "layers.csv", [history])
    with (tmp_path / "layers.csv").open(newline="", encoding="utf-8") as file:
        columns = {name: column for name, *column in zip(*csv.reader(file), strict=True)}
    for quantity, values in history.log10.items():
        expected = ["" if not math.isfinite(value) else value for value in values.ravel().tolist()]
        assert [text and float(text) for text in columns[f"log10_{quantity}"]] == expected
    for quantity in ("output", "output_grad", "weight_grad"):
        codes = history.status[quantity].ravel()
        assert columns[f"status_{quantity}"] == [STATUSES[code] for code in codes]
    assert columns["name"] == history.names * 6
    assert columns["call"] == ["0", "1", "0", "2"] * 6
    assert columns["seed"] == (["3"] * 4 + ["4"] * 4) * 3
    assert columns["theory_log10_output"] == ["0.5", "", repr(1 / 3), "-2.0"] * 6


@pytest.mark.parametrize("dead", [None, [0.25, 1.0]])
def test_the_course_is_first_over_last_of_every_step(dead):
    history = random_history()
    history.dead_fraction = None if dead is None else np.array(dead)
    # Step 1: layer 1 was not called in any network, and layer 4 in one of them; step 2: no layer was.
    history.status["output"][1, :, 0] = history.status["output"][1, 0, 3] = STATUSES.index("not_called")
    history.status["output"][2] = STATUSES.index("not_called")
    history.log10["output"][0, 0, 0] = np.nan
    for quantity in QUANTITIES:
        each = [history.first_over_last(quantity, step) for step in range(3)]
        np.testing.assert_array_equal(history.ratio_over_steps(quantity), np.array(each, dtype=float))


def test_a_history_without_steps_has_no_ratios_over_steps():
    assert random_history(steps=0).ratio_over_steps("output").size == 0


def test_a_writer_gets_one_scalar_per_number():
    class Writer:
        def __init__(self):
            self.scalars, self.flushes = {}, 0

        def add_scalar(self, tag, value, step):
            self.scalars.setdefault(tag, []).append((step, value))

        def flush(self):
            self.flushes += 1

    writer, history = Writer(), make([[[1.0, math.nan]], [[4.0, 2.5]]], steps=[0, 10], weight=[[[0.0, 1.0]]] * 2)
    history.to_tensorboard(writer, step=0)
    assert writer.flushes == 1
    assert writer.scalars == {
        "profile/log10_output_grad": [(1, 1.0)],
        "gradient/log10_first_over_last": [(10, 1.5)],
        "gradient/nonfinite_layers": [(0, 1.0), (10, 0.0)],
        "gradient/zero_layers": [(0, 0.0), (10, 0.0)],
    }


def test_the_dataframe_has_the_rows_and_the_columns():
    pd = pytest.importorskip("pandas")
    history = random_history()
    frame = history.to_dataframe()
    assert isinstance(frame, pd.DataFrame)
    assert tuple(frame.columns) == (*COLUMNS, "log10_update_ratio", "stack", "block", "role")
    assert len(frame) == 24
    np.testing.assert_array_equal(frame["log10_update_ratio"], frame["log10_update"] - frame["log10_weight"])
    for quantity in QUANTITIES:
        np.testing.assert_array_equal(frame[f"log10_{quantity}"], history.log10[quantity].ravel())
    assert frame["layer"].tolist() == [1, 2, 3, 4] * 6
    assert frame["theory_log10_output"].isna().all()


def test_without_pandas_the_dataframe_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^to_dataframe needs pandas; install it with pip install pandas$"):
        make([1.0, 2.0]).to_dataframe()


def test_what_is_saved_is_what_is_loaded(tmp_path):
    history = random_history()
    history.save(tmp_path / "history.npz")
    assert_same(history, History.load(tmp_path / "history.npz"))


def test_a_history_without_optional_parts_is_saved_without_them(tmp_path):
    history = make([1.0, math.nan], phase="train")
    history.save(str(tmp_path / "named as asked"))
    assert_same(history, History.load(str(tmp_path / "named as asked")))


def test_a_saved_history_holds_no_pickle(tmp_path):
    random_history().save(tmp_path / "history.npz")
    with np.load(tmp_path / "history.npz", allow_pickle=False) as file:
        assert all(file[key].dtype != object for key in file.files)
        assert json.loads(str(file["meta"]))["steps"] == [0, 10, 20]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: np.savez(path, x=np.ones(3)),
        lambda path: path.write_bytes(b"\x93NUMPY" + bytes(100)),
        lambda path: path.write_text("step,loss\n0,1\n"),
        lambda path: path.write_bytes(b""),
    ],
    ids=["npz", "npy", "text", "empty"],
)
def test_a_foreign_file_is_refused(write, tmp_path):
    path = tmp_path / "other.npz"
    write(path)
    with pytest.raises(ValueError, match=r"other\.npz is not a saved History$"):
        History.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        History.load(tmp_path / "none.npz")


# ---- number formats


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [
        ("float64", 2.0**-1074, 2.0**1023),
        ("float32", 2.0**-149, 2.0**127),
        ("float16", 2.0**-24, 2.0**15),
        ("bfloat16", 2.0**-133, 2.0**127),
    ],
)
def test_a_layer_fails_beyond_the_ends_of_its_format(dtype, least, most):
    log2 = [math.log2(least), math.log2(least) - 1.01, 0, math.log2(most), math.log2(most) + 1.01]
    largest = np.array(log2, ndmin=3) * math.log10(2)
    history = make([0.0] * 5, output=[0.0] * 5)
    history.largest_log10 = {"output": largest, "output_grad": largest}
    for quantity in ("output", "output_grad"):
        assert history.failing_layer(quantity, dtype, overflow=False) == 2
        assert history.failing_layer(quantity, dtype, overflow=True) == 5


def test_outputs_fail_from_below_and_gradients_from_above():
    largest = np.array([[[0.0, -50.0, -50.0, 0.0], [0.0, 0.0, -50.0, 0.0]]])
    history = make([[[0.0] * 4] * 2])
    history.largest_log10 = {"output": largest, "output_grad": largest}
    assert history.failing_layer("output", "float32", overflow=False) == 2
    assert history.failing_layer("output_grad", "float32", overflow=False) == 3
    assert history.failing_layer("output", "float32", overflow=True) is None


def test_a_dead_network_is_left_out_of_both_slopes() -> None:
    status = np.zeros((1, 2, 2), np.int8)
    log10 = np.array([[[-5.0, 0.0], [-1.0, 0.0]]])
    dead = np.array([1.0, 0.5])
    history = History("init", ["a", "b"], [0], [0, 1], {"output_grad": log10}, {"output_grad": status}, {}, dead)
    assert history.first_over_last("output_grad") == -1.0
    assert history.log_chi() == pytest.approx(-2 * math.log(10))


def test_a_layer_that_is_0_in_any_format_has_not_underflowed() -> None:
    status = np.zeros((1, 1, 2), np.int8)
    largest = {"output": np.array([[[0.0, -np.inf]]])}
    history = History("init", ["a", "b"], [0], [0], {"output": largest["output"]}, {"output": status}, largest)
    assert history.failing_layer("output", "float32", overflow=False) is None


def test_joined_histories_hold_the_networks_of_all_in_order():
    whole = random_history(networks=2)
    whole.samples = np.random.default_rng(1).normal(size=(3, 2, 4, 5))
    whole.theory = {"log10_output": np.arange(4.0)}
    whole.stats = {"output.kurtosis": np.random.default_rng(2).normal(size=(3, 2, 4))}
    parts = [one_network(whole, index) for index in range(2)]
    assert_same(History.join(parts), whole)
    assert_same(History.join([whole]), whole)
    swapped = History.join(parts[::-1])
    assert swapped.seeds == [4, 3]
    assert swapped.log10["output_grad"][:, 1].tolist() == whole.log10["output_grad"][:, 0].tolist()


def one_network(history, index):
    own = slice(index, index + 1)
    middle = {
        kind: {key: value[:, own] for key, value in getattr(history, kind).items()}
        for kind in ("log10", "status", "largest_log10", "stats")
    }
    return dataclasses.replace(
        history,
        seeds=history.seeds[own],
        dead_fraction=history.dead_fraction[own],
        output_cosine=history.output_cosine[own],
        samples=history.samples[:, own],
        **middle,
    )


def test_what_one_history_does_not_have_the_joined_one_does_not_have():
    one, other = random_history(networks=1), random_history(networks=1)
    other.dead_fraction = None
    joined = History.join([one, other])
    assert joined.dead_fraction is None
    assert joined.samples is None
    assert joined.output_cosine.shape == (2,)
    assert History.join([dataclasses.replace(one, stats={"output.cosine": np.zeros((2, 1, 3))}), other]).stats == {}


def test_histories_of_different_networks_cannot_be_joined():
    with pytest.raises(ValueError, match=r"^histories must hold at least one$"):
        History.join([])
    for other in (random_history(layers=3), random_history(steps=2), make([1.0, 2.0, 3.0, 4.0])):
        with pytest.raises(ValueError, match=r"^histories must have the same phase, layers and steps$"):
            History.join([random_history(), other])


def test_a_history_is_shown_in_words_and_as_html() -> None:
    empty = History("train", ["a"], [], [0], {"output_grad": np.empty((0, 1, 1))}, {})
    assert repr(empty) == "History(0 steps, 1 network, 1 layer: output_grad)"
    assert empty._repr_html_() is None
    history = random_history(layers=3)
    counts, verdict = repr(history).splitlines()
    assert counts.startswith("History(3 steps, 2 networks, 3 layers: output, output_grad, ")
    assert verdict == history.verdict().text
    page = Parsed(history._repr_html_())
    assert history.verdict().gradient in page.words
    assert page.tags.count("svg") == 1
    named = dataclasses.replace(history, names=[EVIL, "<b>", "c"])
    assert Parsed(named._repr_html_()).tags == page.tags
    assert EVIL in Parsed(named._repr_html_()).words


def test_500_layers_of_long_names_are_shown_in_little_room() -> None:
    history = make(np.linspace(-9, 0, 500)[None, None], phase="train")
    history.names = [f"model.{'<' * 300}.{row}" for row in range(500)]
    assert len(history._repr_html_()) < 400_000
    assert len(repr(history)) < 500
