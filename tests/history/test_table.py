import math

import numpy as np
import pytest
import torch
from torch import nn

from gradexp import GradientProbe, History, measure
from gradexp.history.step import STATUSES
from gradexp.history.table import power_of_ten, table


def probed(output_grad, statuses=None, names=None, weight_grad=None, weight_statuses=None, dtype="float32"):
    """Return what a probe may have recorded in one step."""
    layers = len(output_grad)
    sizes = {"output_grad": output_grad, "weight_grad": weight_grad or [0.0] * layers}
    codes = {"output_grad": statuses or ["ok"] * layers, "weight_grad": weight_statuses or ["ok"] * layers}
    return History(
        "train",
        names or [f"layers.{index}" for index in range(layers)],
        [0],
        [0],
        {quantity: np.array(values, float)[None, None] for quantity, values in sizes.items()},
        {q: np.array([[[STATUSES.index(name) for name in row]]], np.int8) for q, row in codes.items()},
        dtypes={"output_grad": dtype, "weight_grad": dtype},
    )


def test_each_layer_is_one_line_with_its_sizes_its_status_and_a_bar():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    history = measure(model, lambda y: y.square().mean(), torch.ones(2, 3))
    lines = str(history).split("\n")
    assert " ".join(lines[0].split()) == "layer name output rms output grad weight grad status gradient"
    for line, layer, name in zip(lines[1:3], "12", "02", strict=True):
        words = line.split()
        assert words[:2] == [layer, name]
        for word, quantity in zip(words[2:5], ("output", "output_grad", "weight_grad"), strict=True):
            assert float(word) == pytest.approx(10 ** history.profile(quantity)[int(layer) - 1], rel=0.005)
        assert words[5] == "ok"
        assert set(words[6]) <= set("▏▎▍▌▋▊▉█")
    assert lines[3] == ""
    assert lines[4].startswith("stable: towards the input the output gradient ")
    assert lines[-1] == "(vanishing: below 10^-3 in all, exploding: above 10^+3)"


def test_bars_grow_with_the_logarithm_of_the_output_gradient():
    lines = table(probed([-30.0, -20.0, -10.0, 0.0]).at()).split("\n")[1:5]
    lengths = [line.count("█") for line in lines]
    assert lengths == [0, 2, 5, 8]


def test_a_cell_without_a_number_shows_why_and_the_status_names_the_worst():
    statuses = ["zero", "nonfinite", "hook_missed", "ok"]
    lines = table(probed([math.nan, math.nan, math.nan, 0.0], statuses).at()).split("\n")[1:5]
    assert [line.split()[2] for line in lines] == ["zero", "nonfinite", "hook_missed", "1.00e+00"]
    assert [line.split()[4] for line in lines] == statuses


def test_a_table_fits_into_80_columns():
    names = [f"model.encoder.layers.{index}.self_attention.in_projection" for index in range(3)]
    lines = table(probed([-2.0, -1.0, 0.0], names=names, weight_statuses=["not_called"] * 3).at()).split("\n")
    assert max(len(line) for line in lines) <= 80
    assert lines[1].split()[1].endswith("in_projection")


def test_very_deep_networks_leave_out_the_middle():
    lines = table(probed([0.0] * 10_000).at()).split("\n")
    assert len(lines) < 210
    assert lines[100].split() == ["...", "9801", "layers", "more"]
    assert lines[200].split()[0] == "10000"


def test_a_probe_that_recorded_nothing_says_so():
    model = nn.Linear(2, 2)
    assert str(GradientProbe(model).history) == "nothing is recorded yet of 1 layers"


def test_the_verdict_of_an_underflowing_network_names_the_layers():
    nan = math.nan
    history = probed(
        [nan, -40.0, -20.0, -1.0],
        ["zero", "subnormal", "ok", "ok"],
        weight_grad=[nan, -30.0, -5.0, 0.0],
        weight_statuses=["zero", "ok", "ok", "ok"],
    )
    assert history.verdict().text == (
        "vanishing: towards the input the output gradient shrinks x10^-19.5 per layer, "
        "10^-39.0 from layer 4 to layer 2; it is below float32's smallest normal number in layer 2, "
        "and it is exactly 0 in layer 1, and the weight gradients are exactly 0 in layer 1"
    )


def test_a_gradient_that_is_cut_off_without_vanishing_before_is_dead():
    history = probed([math.nan, -1.0, 0.0], ["zero", "ok", "ok"])
    assert history.verdict().gradient == "dead"


def test_layers_that_were_never_seen_do_not_hide_the_verdict():
    nan = math.nan
    history = probed([nan, -8.0, -4.0, 0.0, nan], ["frozen", "ok", "ok", "ok", "not_called"])
    assert history.at().ends("output_grad") == (2, 4)
    assert history.log_chi() == pytest.approx(2 * math.log(10) * -8 / 2)
    assert history.verdict().gradient == "vanishing"


def test_a_network_whose_output_gradients_were_never_seen_has_no_ends():
    history = probed([math.nan] * 2, ["hook_missed"] * 2)
    assert history.at().ends("output_grad") is None
    assert history.log_chi() is None
    assert "hook_missed" in history.verdict().text


@pytest.mark.parametrize(
    ("log10", "shown"), [(0.0, "1.00e+00"), (-23.456, "3.50e-24"), (1760.9126, "8.18e+1760"), (2.99999, "1.00e+03")]
)
def test_sizes_beyond_every_number_format_are_shown(log10, shown):
    assert power_of_ten(log10, "ok") == shown


def test_long_names_keep_what_tells_them_apart():
    names = [f"{part}.layers.{index}.self_attn" for part in ("encoder", "decoder") for index in (0, 11)]
    names += ["layers.0.self_attn.out_proj", "0.parametrizations.weight", "", "a\nb\t\x1b", "x" * 40]
    lines = table(probed([0.0] * len(names), names=names).at()).split("\n")[1 : len(names) + 1]
    shown = [line.split()[1] for line in lines]
    assert len(set(shown)) == len(shown)
    assert shown[4:8] == ["lay.0.sel.out_proj", "0.par.weight", "(model)", "a?b??"]
    assert max(len(line) for line in lines) <= 80


def test_a_layer_far_below_both_ends_is_named():
    text = probed([-0.5, -8.0, -0.2]).verdict().text
    assert text.endswith("; in layer 2 it is more than 3 powers of ten below both ends")


def test_one_bad_sample_is_not_said_to_be_all():
    history = probed([math.nan] * 2, ["nonfinite"] * 2)
    history.log10["output"], history.status["output"] = history.log10["output_grad"], history.status["output_grad"]
    assert history.verdict().text == "nonfinite: layers.0 outputs inf or nan"


def test_a_history_says_what_it_cannot_do():
    model = nn.Linear(2, 2)
    empty = GradientProbe(model).history
    for ask in (empty.log_chi, empty.verdict, lambda: empty.profile("output")):
        with pytest.raises(ValueError, match=r"^nothing is recorded yet$"):
            ask()
    history = probed([0.0, 0.0])
    with pytest.raises(ValueError, match=r"^step is an index from 0 to 0, or -1 for the last, got 5$"):
        history.profile("output_grad", 5)
    with pytest.raises(ValueError, match=r"^decades must be above 0, got -1$"):
        history.verdict(-1)
    with pytest.raises(TypeError, match=r"^writer must be a torch.utils.tensorboard.SummaryWriter, got a str$"):
        history.to_tensorboard("folder")


def test_a_file_of_somebody_else_is_no_history(tmp_path):
    np.savez(tmp_path / "other.npz", meta=3)
    with pytest.raises(ValueError, match=r"is not a saved History$"):
        History.load(tmp_path / "other.npz")
