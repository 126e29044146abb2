import math

import numpy as np
import pytest
import torch
from torch import nn

from gradexp import GradientProbe, History, measure
from gradexp.history.columns import power_of_ten
from gradexp.history.finding import Finding
from gradexp.history.headline import wrapped
from gradexp.history.step import STATUSES
from gradexp.history.table import table


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


def body(text):
    """Return the lines of a table below its headings."""
    lines = text.split("\n")
    begin = next(index for index, line in enumerate(lines) if line.startswith("layer  name")) + 1
    rest = lines[begin:]
    return rest[: rest.index("")] if "" in rest else rest


def test_the_verdict_comes_first_and_then_each_layer_with_its_sizes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    history = measure(model, lambda y: y.square().mean(), torch.ones(2, 3))
    text = str(history)
    assert text.startswith("stable: towards the input the gradient ")
    assert f"loss {history.loss[0, 0]:.3f}, norm of all gradients " in text
    lines = body(text)
    for line, layer, name in zip(lines, "12", "02", strict=True):
        words = line.split()
        assert words[:2] == [layer, name]
        for word, quantity in zip(words[2:5], ("output_grad", "weight_grad", "output"), strict=True):
            assert float(word) == pytest.approx(10 ** history.profile(quantity)[int(layer) - 1], rel=0.005)
        assert "█" in line
    assert text.endswith("(vanishing: below 10^-3 in all, exploding: above 10^+3)")


def test_what_is_stable_is_straight_and_what_vanishes_is_slanted():
    def marks(log10):
        return [line.index("█") for line in body(table(probed(log10).at()))]

    assert len(set(marks([0.1, -0.1, 0.05, 0.0]))) == 1
    slanted = marks([-3.0, -2.0, -1.0, 0.0])
    assert len(set(np.diff(slanted))) == 1
    assert slanted[1] > slanted[0]
    wide = marks([-30.0, -20.0, -10.0, 0.0])
    assert sorted(wide) == wide
    assert len(set(wide)) == 4


def test_a_scale_of_more_than_three_decades_says_so():
    head = next(line for line in table(probed([-30.0, 0.0]).at()).split("\n") if line.startswith("layer"))
    assert head.split()[-2:] == ["-30", "+3"]


def test_a_cell_without_a_number_shows_why_and_the_status_names_the_worst():
    statuses = ["zero", "nonfinite", "hook_missed", "ok"]
    lines = body(table(probed([math.nan, math.nan, math.nan, 0.0], statuses).at()))
    assert [line.split()[2] for line in lines] == ["zero", "nonfinite", "hook_missed", "1.00e+00"]
    assert [line.split()[4] for line in lines] == statuses
    assert lines[0].split()[-2:] == ["0", "|"]
    assert lines[1].endswith("x")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("layers", [3, 100])
def test_a_table_fits_into_the_terminal(width, layers):
    names = [f"model.encoder.layers.{index}.self_attention.in_projection" for index in range(layers)]
    history = probed([-1.0] * layers, names=names, weight_statuses=["not_called"] * layers)
    text = table(history.at(), width=width)
    assert max(len(line) for line in text.split("\n")) <= width
    if width > 60:
        assert body(text)[0].split()[1].endswith("in_projection")


def test_names_shorter_than_their_heading_take_its_room():
    history = probed([-1.0] * 3, names=["0", "2", "4"])
    history.stats = {f"output.{name}": np.zeros((1, 1, 3)) for name in ("dead", "saturated", "cosine")}
    widths = [max(map(len, table(history.at(), width=width).split("\n"))) - width for width in range(60, 100)]
    assert max(widths) <= 0


def test_layers_in_no_order_leave_out_the_middle():
    names = [f"layer_{'abc'[index % 3]}{index}x" for index in range(2_000)]
    lines = table(probed([0.0] * 2_000, names=names).at()).split("\n")
    assert len(lines) < 220
    assert "  ...  1800 lines more" in lines
    assert lines[-3].split()[0] == "2000"


def deep(blocks=40, roles=("attention.query", "mlp.fc1", "mlp.fc2"), **changes):
    """Return what a probe may have recorded of a transformer, some cells of which are changed: name -> status."""
    names = ["embed", *(f"layers.{block}.{role}" for block in range(blocks) for role in roles), "head"]
    statuses = ["ok"] * len(names)
    for name, status in changes.get("statuses", {}).items():
        statuses[names.index(name)] = status
    log10 = [-float(index % 3) if status == "ok" else math.nan for index, status in enumerate(statuses)]
    for name, value in changes.get("log10", {}).items():
        log10[names.index(name)] = value
    return probed(log10, statuses, names)


def test_blocks_fold_into_a_line_for_each_role_with_the_range():
    lines = body(table(deep(log10={"layers.7.mlp.fc1": -2.3}).at()))
    assert [line.split()[:2] for line in lines] == [
        ["1", "embed"],
        ["layers.0-39:", "40"],
        ["40x", "attention.query"],
        ["40x", "mlp.fc1"],
        ["40x", "mlp.fc2"],
        ["122", "head"],
    ]
    assert lines[3].split()[2] == "5.0e-3…1.0e-2"


def test_what_is_unusual_about_a_block_is_unfolded():
    history = deep(statuses={"layers.20.mlp.fc1": "zero"}, log10={"layers.30.mlp.fc2": 4.0})
    lines = body(table(history.at()))
    shown = [line.split()[:2] for line in lines]
    assert ["63", "20.mlp.fc1"] in shown
    assert ["94", "30.mlp.fc2"] in shown
    assert [count for count, _ in shown] == ["1", "layers.0-39:", "40x", "39x", "63", "39x", "94", "122"]


def test_a_slope_over_the_blocks_unfolds_nothing():
    blocks = 40
    names = [f"layers.{index}" for index in range(blocks)]
    text = table(probed([0.5 * index for index in range(blocks)], names=names).at())
    (line,) = body(text)
    assert line.split()[:2] == ["40x", "layers.0-39"]
    picture = line.split()[-1]
    assert sorted(picture) == [*picture]
    assert picture[0] == "▁"


def test_zeros_and_infinities_are_marked_in_a_folded_line():
    names = [f"layers.{index}" for index in range(50)]
    statuses = ["zero"] * 20 + ["ok"] * 28 + ["nonfinite"] * 2
    log10 = [0.0 if status == "ok" else math.nan for status in statuses]
    lines = body(table(probed(log10, statuses, names).at()))
    assert [line.split()[1:3] for line in lines] == [
        ["layers.0-19", "zero"],
        ["layers.20-47", "1.00e+00"],
        ["layers.48", "nonfinite"],
        ["layers.49", "nonfinite"],  # unfolded, since the verdict names it
    ]
    assert [line.split()[-1][0] for line in lines[:2]] == ["0", "▄"]


def test_findings_come_worst_first_with_what_to_try_and_mark_their_rows():
    history = deep()
    history.findings = [
        (
            Finding("dead units", "100% of layers.3.mlp.fc1", ("layers.3.mlp.fc1",), 'initialize(model, "he")', 3),
            Finding("small branch", "layers.*.attention.query", ("layers.0.attention.query",), "", 0),
        )
    ]
    lines = table(history.at(), width=120).split("\n")
    # The worst one is the verdict, and is told once.
    assert lines[:3] == ["dead units: 100% of layers.3.mlp.fc1", '  try: initialize(model, "he")', ""]
    assert lines[3] == "harmless: small branch: layers.*.attention.query"
    row = next(line for line in lines if "3.mlp.fc1" in line and line.split()[0] == "12")
    assert "dead units" in row
    assert not any(line.split()[:1] == ["2"] for line in lines)


def test_a_call_to_copy_is_not_broken_between_lines():
    remedy = "word " * 12 + 'initialize(model, "orthogonal", gain=1.5)'
    lines = wrapped(f"try: {remedy}", 80, "  ")
    assert max(map(len, lines)) <= 80
    assert lines[-1].endswith('initialize(model, "orthogonal", gain=1.5)')


def test_what_was_asked_for_is_shown_below_where_it_has_no_room():
    history = deep()
    shape = history.log10["output_grad"].shape
    history.stats = {
        f"output.{name}": np.full(shape, 0.25) for name in ("dead", "spread_of_all", "kurtosis", "x", "y")
    }
    history.samples = np.zeros((*shape, 4))
    history.log10 |= {"weight": np.zeros(shape), "update": np.full(shape, -3.0)}
    history.status |= {"weight": history.status["output_grad"], "update": history.status["output_grad"]}
    for width in (60, 80, 200):
        text = table(history.at(), width=width)
        assert max(len(line) for line in text.split("\n")) <= width
        words = text.split()
        for word in ("dead", "spread_of_all", "kurtosis", "update/", "25%", "1.00e-03", "sd"):
            assert word in words


def test_rows_without_what_is_shown_below_are_left_out_there():
    history = probed([0.0, 0.0, 0.0], names=["first", "middle", "last"])
    history.stats = {"output.cosine": np.array([[[np.nan, np.nan, 0.25]]])}
    below = table(history.at(), width=50).split("layer  name")[-1]
    assert "last" in below
    assert "0.25" in below
    assert "middle" not in below


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
        "vanishing: from layer to layer 10^-19.5 of the gradient is left: 10^-39.0 of it reaches layer 2; "
        "it is below float32's smallest normal number in layer 2, "
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
    lines = body(table(probed([0.0] * len(names), names=names).at(), width=60))
    shown = [line.split()[1] for line in lines]
    assert len(set(shown)) == len(shown)
    assert shown[6:8] == ["(model)", "a?b??"]
    assert max(len(line) for line in lines) <= 60


def test_a_layer_far_below_both_ends_is_named():
    text = probed([-0.5, -8.0, -0.2]).verdict().text
    assert text.endswith("; in layer 2 it is more than 3 powers of ten below both ends")


def test_one_bad_sample_is_not_said_to_be_all():
    history = probed([math.nan] * 2, ["nonfinite"] * 2)
    history.log10["output"], history.status["output"] = history.log10["output_grad"], history.status["output_grad"]
    assert history.verdict().text == "nonfinite: the output of layers.0 is inf or nan"


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
