import math

import numpy as np
import pytest

from gradexp.history.history import History
from gradexp.history.slope import Line, is_slope
from gradexp.history.step import STATUSES
from gradexp.history.trunk import places

ZERO = -math.inf


def history(values, feeds, kinds=None, calls=None, output=None, weight_grad=None):
    """Return a training step: name -> log10 gradient, -inf for exactly 0; feeds as ``"a>b b>loss"``."""
    names = list(values)
    rows = {name: row for row, name in enumerate(names)} | {"loss": len(names)}
    given = {"output_grad": values.values()}
    given |= {"output": output} if output is not None else {}
    given |= {"weight_grad": weight_grad} if weight_grad is not None else {}
    arrays = {quantity: np.array([*numbers], float)[None, None] for quantity, numbers in given.items()}
    codes = {q: np.where(np.isneginf(x), STATUSES.index("zero"), 0).astype(np.int8) for q, x in arrays.items()}
    numbers = {q: np.where(np.isneginf(x), np.nan, x) for q, x in arrays.items()}
    named = [name.partition("#") for name in names]
    made = History("train", [name for name, *_ in named], [0], [0], numbers, codes)
    made.calls = [int(call or 0) for *_, call in named]
    made.feeds = [(rows[a], rows[b]) for a, _, b in (pair.partition(">") for pair in feeds.split())]
    made.kinds = kinds or []
    return made


def chain(values, prefix="layers.", **options):
    names = [f"{prefix}{index}" for index in range(len(values))]
    feeds = " ".join(f"{a}>{b}" for a, b in zip(names, [*names[1:], "loss"], strict=True))
    return history(dict(zip(names, values, strict=True)), feeds, **options)


def found(history):
    return [(finding.kind, finding.text) for finding in history.verdict().findings]


def test_branches_are_not_compared_with_each_other():
    for order in ("ab", "ba"):
        values = dict(zip(order, (-4.0, 0.0) if order == "ab" else (0.0, -4.0), strict=True))
        verdict = history(values, "a>loss b>loss").verdict()
        assert (verdict.gradient, verdict.findings) == ("stable", ())


def test_a_head_whose_loss_weighs_little_is_no_end_to_compare_with():
    values = {"body.0": 0.0, "body.1": 0.0, "head": 0.0, "aux": -5.0}
    assert history(values, "body.0>body.1 body.1>head body.1>aux head>loss aux>loss").verdict().gradient == "stable"


def test_a_tower_beside_a_short_way_is_judged_by_itself():
    tower = {f"deep.{index}": -0.9 * (9 - index) for index in range(10)}
    feeds = " ".join(f"deep.{index}>deep.{index + 1}" for index in range(9))
    verdict = history({"wide": 0.0, **tower}, f"wide>loss {feeds} deep.9>loss").verdict()
    assert verdict.gradient == "vanishing"
    assert verdict.text.endswith("shrinks x0.126 per layer, by 10^-8.1 in all from deep.9 to deep.0")


def test_the_step_that_takes_nearly_all_is_named():
    verdict = chain([-7.6, -7.58, -7.56, -7.54, -0.14, -0.1, -0.05, 0.0]).verdict()
    assert verdict.gradient == "vanishing"
    assert "10^-7.6 from layers.7 to layers.0: 10^-7.4 between layers.3 and layers.4, elsewhere" in verdict.text
    assert verdict.findings[0].modules == ("layers.3", "layers.0", "layers.7")


def test_a_head_of_another_width_is_no_slope():
    kinds = ["Linear(256x784)", *["Linear(256x256)"] * 10, "Linear(10x256)"]
    text = chain([-0.4] * 11 + [0.0], kinds=kinds).verdict().text
    assert text == (
        "stable: towards the input the gradient changes by 10^-0.4 from layers.11 to layers.0: "
        "10^-0.4 between layers.10 and layers.11, elsewhere it keeps its size"
    )


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([2.46, 1.23, 0.0], "exploding"),
        ([-2.46, -1.23, 0.0], "vanishing"),
        ([1.8, 0.9, 0.0], "stable"),  # below a decade per layer
        ([2.2, 0.2, 0.0], "stable"),  # one step, no slope
        ([2.7, 1.8, 0.9, 0.0], "stable"),
        ([-1.7, -0.85, 0.0], "stable"),  # a net of three sigmoid layers, which learns
        ([3.1, 2.0, 1.0, 0.0], "exploding"),
    ],
)
def test_a_slope_of_a_decade_per_layer_is_too_steep_however_short(values, word):
    assert chain(values).verdict().gradient == word


def test_a_random_walk_over_many_layers_is_no_slope_until_it_is_four_decades():
    steps = np.random.default_rng(0).normal(0, 0.3, 149)
    for total, word in ((-3.3, "stable"), (-4.2, "vanishing")):
        values = np.cumsum(steps - steps.mean() - total / 149)
        assert chain(values - values[-1]).verdict().gradient == word
    even = np.linspace(-3.3, 0, 150)
    assert chain(even).verdict().gradient == "vanishing"


def test_a_significant_mean_makes_a_slope():
    assert is_slope(np.array([0.2, 0.21, 0.19]))
    assert not is_slope(np.array([0.2, -0.2, 0.3, -0.1]))
    assert not is_slope(np.array([5.0]))


def residual(stream, branch):
    """Return a stack of blocks with one row each on a residual stream, between a stem and a head."""
    names = ["stem", *[f"blocks.{index}.fc" for index in range(len(branch))], "head"]
    feeds = [f"{a}>{b}" for index, a in enumerate(names) for b in names[index + 1 :]]
    return history(dict(zip(names, [stream, *branch, 0.0], strict=True)), " ".join([*feeds, "head>loss"]))


def test_closed_branches_beside_an_open_stream_are_harmless():
    verdict = residual(0.1, [-6.0, -2.0, -6.1, 0.0, -5.0, -6.0]).verdict()
    assert verdict.gradient == "stable"
    assert [(finding.kind, finding.severity) for finding in verdict.findings] == [("closed branches", 0)]
    assert "blocks.*.fc (4 modules) get 10^-6.1" in verdict.findings[0].text
    assert residual(0.1, [ZERO] * 6).verdict().gradient == "stable"


@pytest.mark.parametrize(
    ("branch", "text"),
    [
        ([0.0, -6.0, 0.0], "blocks.1.fc gets 10^-6.0 of the gradient that passes beside it, which is harmless"),
        ([0.0, -6.0, -6.0], "blocks.*.fc (2 modules) get 10^-6.0 of the gradient that passes beside them, which"),
        ([-5.0, -6.0, 0.0], "blocks.*.fc (2 modules) get 10^-6.0 to 10^-5.0 of the gradient that passes beside them"),
    ],
)
def test_one_closed_branch_is_told_in_the_singular_and_several_with_their_range(branch, text):
    (finding,) = residual(0.0, branch).verdict().findings
    assert finding.text.startswith(text)


def test_a_stream_that_vanishes_or_explodes_is_judged_by_blocks():
    for sign, word in ((-1, "vanishing"), (1, "exploding")):
        verdict = residual(sign * 5.0, [sign * (4.8 - 0.8 * index) for index in range(6)]).verdict()
        assert verdict.gradient == word
        assert "per block" in verdict.text


def test_an_encoder_and_a_decoder_are_stacks_of_their_own():
    values = {f"encoder.{i}.fc": -2.7 for i in range(3)} | {f"decoder.{i}.fc": 0.2 for i in range(3)}
    feeds = "encoder.0.fc>encoder.1.fc encoder.1.fc>encoder.2.fc encoder.2.fc>decoder.0.fc encoder.2.fc>decoder.1.fc "
    feeds += "encoder.2.fc>decoder.2.fc decoder.0.fc>decoder.1.fc decoder.1.fc>decoder.2.fc decoder.2.fc>loss"
    text = history(values, feeds).verdict().text
    assert "10^+0.0 from encoder.2.fc to encoder.0.fc" in text
    assert "10^+0.0 from decoder.2 to decoder.0" in text
    lost = history({name: value - (value < 0) for name, value in values.items()}, feeds).verdict()
    assert lost.gradient == "vanishing"
    assert lost.text.endswith(
        "10^-3.9 from decoder.2.fc to encoder.0.fc: 10^-3.9 between encoder.2.fc and decoder.0.fc"
    )


def test_an_embedding_of_small_outputs_before_a_norm_does_not_explode():
    kinds = ["Embedding(50x8)", "Linear(8x8)", "Linear(8x8)"]
    assert chain([3.9, 0.0, 0.0], kinds=kinds, output=[-4.0, 0.0, 0.0]).verdict().gradient == "stable"
    assert chain([3.9, 0.0, 0.0], output=[-4.0, 0.0, 0.0]).verdict().gradient == "exploding"


def test_rows_without_a_gradient_are_passed_through():
    made = chain([-8.0, 0.0, -4.0, 0.0])
    made.log10["output_grad"][..., 1] = np.nan
    made.status["output_grad"][..., 1] = STATUSES.index("not_called")
    assert "by 10^-8.0 in all from layers.3 to layers.0" in made.verdict().text


def test_a_gradient_that_shrinks_to_0_vanishes_and_is_not_dead():
    verdict = chain([ZERO, ZERO, -44.0, -30.0, -15.0, 0.0]).verdict()
    assert verdict.gradient == "vanishing"
    assert verdict.text.endswith("by 10^-44.0 in all from layers.5 to layers.2; it is exactly 0 from layers.1 down")


def test_weight_gradients_of_0_are_told_with_the_output_gradient_or_with_their_own_layer():
    values = [ZERO, ZERO, -44.0, -30.0, -15.0, 0.0]
    alike = chain(values, weight_grad=values).verdict().text
    assert alike.endswith("; it is exactly 0 from layers.1 down, as are the weight gradients")
    higher = chain(values, weight_grad=[ZERO] * 3 + [0.0] * 3).verdict().text
    assert higher.endswith(
        "; it is exactly 0 from layers.1 down; the weight gradients are exactly 0 from layers.2 down"
    )


def test_layers_after_which_all_is_0_are_dead():
    verdict = chain([ZERO, ZERO, ZERO, 0.0], output=[0, 0, ZERO, 0], weight_grad=[ZERO, ZERO, ZERO, ZERO]).verdict()
    assert verdict.gradient == "dead"
    assert verdict.text == (
        "dead: layers.2 outputs 0 for every sample, and gets nothing but 0 from what comes after layers.1"
    )


def test_a_last_layer_of_zeros_that_learns_is_not_dead():
    verdict = chain([ZERO, ZERO, 0.0], output=[0, 0, ZERO], weight_grad=[ZERO, ZERO, 0.0]).verdict()
    assert verdict.gradient == "stable"
    assert verdict.text.startswith("stable: below layers.2 the gradient is exactly 0, since its weights are")
    assert [finding.severity for finding in verdict.findings] == [0]


def test_a_saturated_step_lets_nothing_through_though_what_is_above_learns():
    verdict = chain([ZERO, ZERO, 0.0], output=[0, 0, 0], weight_grad=[ZERO, ZERO, 0.0]).verdict()
    assert verdict.gradient == "dead"
    assert "layers.1 receives a gradient of exactly 0 for every sample, though layers.2 gets one" in verdict.text


def test_a_layer_after_which_nothing_fires_has_a_remedy():
    [finding] = chain([ZERO, ZERO, 0.0], output=[0, 0, 0], weight_grad=[ZERO, ZERO, ZERO]).verdict().findings
    assert (finding.kind, finding.modules) == ("dead", ("layers.1", "layers.2"))
    assert finding.remedy.startswith("gradexp.initialize(model, 'he', sigma_b2=0), if a ReLU")
    [finding] = chain([ZERO, ZERO, ZERO], output=[0, 0, 0], weight_grad=[ZERO, ZERO, ZERO]).verdict().findings
    assert finding.remedy.startswith("no ReLU, clamp or other flat function")


def test_outputs_that_grow_from_layer_to_layer_are_told():
    verdict = chain([0.0] * 8, output=[0.4 * index for index in range(8)]).verdict()
    assert verdict.gradient == "stable"
    assert verdict.text == (
        "exploding activations: towards the loss outputs grow x2.51 per layer, 10^+2.8 from layers.0 to layers.7"
    )
    assert chain([0.0] * 8, output=[0.2 * index for index in range(8)]).verdict().findings == ()


def test_calls_of_one_module_are_steps_in_time_and_no_layers():
    def loop(count, per_call):
        names = ["cell", *[f"cell#{call}" for call in range(1, count)]]
        feeds = " ".join(f"{a}>{b}" for a, b in zip(names, [*names[1:], "head"], strict=True))
        values = {name: per_call * (count - index) for index, name in enumerate(names)}
        return history({**values, "head": 0.0}, f"{feeds} head>loss").verdict()

    assert loop(20, -0.2).gradient == "stable"  # 10^-3.8, of which the sum over time loses nothing
    verdict = loop(300, -0.2)
    assert verdict.gradient == "vanishing"
    assert verdict.text == (
        "vanishing over time: the gradient at cell falls by 10^-59.8 from call 300 back to call 1, x0.631 per call"
    )
    assert loop(40, 0.2).text.startswith("exploding over time: the gradient at cell grows by 10^+7.8")


def test_calls_side_by_side_are_no_steps_in_time():
    made = history({"tower": -20.0, "tower#1": 0.0, "tower#2": 0.0}, "tower>loss tower#1>loss tower#2>loss")
    assert made.verdict().findings == ()


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        ("output", "the output of layers.1 is inf or nan"),
        ("output_grad", "layers.2 receives a gradient of inf or nan"),
    ],
)
def test_what_is_not_finite_has_a_word_of_its_own(quantity, text):
    made = chain([0.0, 0.0, 0.0, 0.0], output=[0.0] * 4)
    made.status[quantity][..., 1:3] = STATUSES.index("nonfinite")
    assert made.verdict().text == f"nonfinite: {text}"


def test_without_a_gradient_that_anybody_saw_the_word_is_unknown():
    made = chain([0.0, 0.0])
    made.status["output_grad"][:] = STATUSES.index("hook_missed")
    verdict = made.verdict()
    assert (verdict.gradient, verdict.text) == (
        "unknown",
        "unknown: no layer shows a gradient (hook_missed in 2 of 2)",
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer.h.11.attn.c_attn", [("transformer.h", 11, "attn.c_attn")]),
        ("layers.3", [("layers", 3, "")]),
        ("0", [("", 0, "")]),
        ("1.blocks.2.fc1", [("", 1, "blocks.2.fc1"), ("1.blocks", 2, "fc1")]),
        ("fc1", []),
    ],
)
def test_block_and_role_follow_from_the_name(name, expected):
    assert places(name) == expected


def test_a_line_leaves_single_steps_out_of_its_slope():
    line = Line(list("abcdef"), np.array([-8.0, -7.9, -7.8, -0.2, -0.1, 0.0]), [""] * 6)
    assert line.single() == [2]
    assert line.rate() == pytest.approx(-0.1)


def test_a_small_scale_inside_of_a_bypassed_branch_is_harmless_and_a_slope_is_not():
    def branch(values):
        names = ["stem", *[f"fc{index}" for index in range(len(values))], "head"]
        feeds = " ".join(f"{a}>{b}" for a, b in zip(names, [*names[1:], "loss"], strict=True))
        return history(dict(zip(names, [0.0, *values, 0.0], strict=True)), f"{feeds} stem>head").verdict()

    assert branch([-6.1, -6.0, -6.0, -0.1, 0.0]).gradient == "stable"
    assert branch([-4.8, -4.0, -3.2, -2.4, -1.6, -0.8, 0.0]).gradient == "vanishing"


def test_a_loss_that_joins_further_down_is_no_growth():
    values = {f"b.{index}": 0.0 if index < 4 else -4.0 for index in range(5)}
    values |= {f"h.{index}": values[f"b.{index}"] for index in range(5)}
    feeds = " ".join(f"b.{index}>b.{index + 1}" for index in range(4))
    heads = " ".join(f"b.{index}>h.{index} h.{index}>loss" for index in range(5))
    assert history(values, f"{feeds} {heads}").verdict().gradient == "stable"
