import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import few
from pages import EVIL, Parsed

from gradexp import MLP, exact_profile, initialize
from gradexp.config import Config, InitConfig, OptimizerConfig, VerdictConfig
from gradexp.history.finding import Finding
from gradexp.history.history import History
from gradexp.history.step import STATUSES
from gradexp.history.verdict import Verdict, gradient_verdict
from gradexp.runs.verdict import run_verdict, training_verdict
from gradexp.theory import Agreement

NAN = math.nan


def history(output_grad, statuses="ok", quantities=None, **options):
    """Return a History of one step; ``output_grad`` has one row of log10 norms per network."""
    values = {"output_grad": np.array(output_grad, ndmin=2)[None]}
    shape = values["output_grad"].shape
    for quantity, rows in (quantities or {}).items():
        values[quantity] = np.broadcast_to(np.array(rows, float), shape)
    codes = {quantity: np.zeros(shape, np.int8) for quantity in values}
    for quantity, rows in (statuses if isinstance(statuses, dict) else {}).items():
        codes[quantity][:] = [[STATUSES.index(name) for name in row] for row in rows]
    layers, networks = shape[2], shape[1]
    return History(
        "init", [f"layers.{i}" for i in range(layers)], [0], list(range(networks)), values, codes, **options
    )


def initial(ratio=0.0, cosine=0.1, weight_grad=0.0):
    return history([ratio, ratio / 2, 0.0], quantities={"weight_grad": weight_grad}, output_cosine=np.array([cosine]))


def judged(config=None, losses=(), diverged_at=None, chance=2.3, gradients=None, **options):
    return run_verdict(config or Config(depth=60), initial(**options), losses, diverged_at, chance, gradients)


LOST = "from layer to layer {} of the gradient is left: {} of it reaches layer 1"
GROWN = "from layer to layer the gradient grows {}: it is {} times as large at layer 1"
KEPT = "the gradient keeps its size (x1 over 3 layers)"


@pytest.mark.parametrize(
    ("ratio", "outcome", "text"),
    [
        (-3.1, "vanishing", LOST.format("2.82 %", "10^-3.1")),
        (-1760.0, "vanishing", LOST.format("10^-880.0", "10^-1760.0")),
        (3.1, "exploding", GROWN.format("x35.5", "10^3.1")),
        (0.0, "stable", KEPT),
        (-0.00001, "stable", KEPT),
        (-1.0, "stable", LOST.format("31.6 %", "0.1")),
        (-2.9, "stable", LOST.format("3.55 %", "10^-2.9")),
        (2.9, "stable", GROWN.format("x28.2", "10^2.9")),
        (-3.0, "stable", LOST.format("3.16 %", "10^-3.0")),
        (3.0, "stable", GROWN.format("x31.6", "10^3.0")),
    ],
)
def test_the_gradient_is_judged_by_the_first_layer_over_the_last(ratio, outcome, text):
    found = gradient_verdict(history([5 + ratio, 100.0, 5.0]).at())
    assert found == Verdict(outcome, "none", "unavailable", f"{outcome}: {text}")


def test_what_a_layer_changes_little_may_be_much_over_a_thousand():
    assert "keeps its size (x1.41 over 150 layers)" in gradient_verdict(history(np.linspace(0.15, 0, 150)).at()).text
    assert "99.5 % of the gradient is left: 10^-2.0 of it" in (
        gradient_verdict(history(np.linspace(-2.0, 0, 1000)).at()).text
    )


@pytest.mark.parametrize(("decades", "outcome"), [(1.0, "vanishing"), (2.0, "stable"), (2.5, "stable")])
def test_the_limit_can_be_chosen(decades, outcome):
    assert gradient_verdict(history([-2.0, 0.0]).at(), decades).gradient == outcome
    config = Config(depth=2, verdict=VerdictConfig(decades))
    assert run_verdict(config, history([-2.0, 0.0], quantities={"weight_grad": 0}), [], None, 1.0).gradient == outcome


def test_the_ratio_is_the_mean_over_networks_that_have_one():
    rows = [[-8.0, 0.0], [-2.0, 0.0], [NAN, 0.0]]
    found = gradient_verdict(history(rows, dead_fraction=np.array([0.0, 0.0, 1.0])).at())
    assert found.gradient == "vanishing"
    assert "10^-5.0 of it reaches layer 1" in found.text


def test_a_history_judges_itself():
    assert history([-4.0, 0.0]).verdict() == gradient_verdict(history([-4.0, 0.0]).at())
    assert history([-4.0, 0.0]).verdict(decades=5).gradient == "stable"


def test_each_step_can_be_judged():
    both = history([0.0, 0.0])
    both.log10["output_grad"] = np.array([[[0.0, 0.0]], [[-9.0, 0.0]]])
    both.status["output_grad"] = np.zeros((2, 1, 2), np.int8)
    both.steps = [0, 1]
    assert [gradient_verdict(both.at(step)).gradient for step in (0, 1, -1)] == ["stable", "vanishing", "vanishing"]


@pytest.mark.parametrize(
    ("statuses", "outcome", "text"),
    [
        ({"output": [["ok", "zero", "zero"]]}, "dead", "dead: layer 2 outputs 0 for every sample"),
        (
            {"output": [["ok", "nonfinite", "nonfinite"]]},
            "exploding",
            "exploding: layer 2 outputs inf or nan",
        ),
        (
            {"output_grad": [["zero", "zero", "ok"]]},
            "dead",
            "dead: layer 2 receives a gradient of exactly 0 for every sample",
        ),
        (
            {"output_grad": [["nonfinite", "nonfinite", "ok"]]},
            "exploding",
            "exploding: layer 2 receives a gradient of inf or nan",
        ),
        ({"output_grad": [["frozen", "ok", "ok"]]}, "dead", "dead: no gradient is seen at layer 1 (frozen)"),
        (
            {"output_grad": [["ok", "ok", "hook_missed"]]},
            "dead",
            "dead: no gradient is seen at layer 3 (hook_missed)",
        ),
        ({}, "dead", "dead: no sample has a gradient at both the first and the last layer"),
    ],
)
def test_without_a_number_at_both_ends_the_reason_is_named(statuses, outcome, text):
    given = history([NAN, NAN, 0.0], statuses, {"output": [0.0, NAN, NAN]})
    assert gradient_verdict(given.at()) == Verdict(outcome, text=text)


def test_a_layer_is_dead_only_if_it_is_in_every_network():
    statuses = {"output": [["zero", "ok", "zero"], ["ok", "ok", "zero"]]}
    given = history([[NAN, 0.0, NAN], [NAN, 0.0, NAN]], statuses, {"output": 0.0})
    assert gradient_verdict(given.at()).text == "dead: layer 3 outputs 0 for every sample"


def test_networks_whose_samples_all_die_are_dead_whatever_numbers_the_ends_have():
    given = history([0.0, 0.0], dead_fraction=np.array([1.0]))
    assert gradient_verdict(given.at()).gradient == "dead"
    given = history([[0.0, 0.0], [0.0, 0.0]], dead_fraction=np.array([1.0, 0.9]))
    assert gradient_verdict(given.at()).gradient == "stable"


@pytest.mark.parametrize(
    ("losses", "diverged_at", "chance", "outcome"),
    [
        ([], None, 2.3, "none"),
        ([2.3, NAN], 1, 2.3, "diverged"),
        ([2.3, 0.1], 1, 2.3, "diverged"),
        ([2.3, 2.2], 0, 2.3, "diverged"),
        ([2.3] * 30, None, 2.3, "stuck"),
        ([0.0] * 30 + [2.3] * 10, None, 2.3, "stuck"),
        ([2.3] * 30 + [1.0] * 10, None, 2.3, "trained"),
        ([2.0], None, 2.3, "trained"),
        ([0.9], None, 1.0, "stuck"),  # 0.9 of chance is not below it
        ([math.nextafter(0.9, 0)], None, 1.0, "trained"),
        ([4.0, 4.0, 3.7], None, 0.0, "stuck"),
        ([4.0] + [3.0] * 10, None, 0.0, "trained"),
        ([0.0, 0.0], None, 0.0, "stuck"),
    ],
)
def test_training_is_judged_by_its_last_ten_losses_against_chance(losses, diverged_at, chance, outcome):
    assert training_verdict(losses, diverged_at, chance) == outcome


FLAT = f"stable: {KEPT}"


def test_a_training_that_works_says_where_the_loss_goes_and_needs_no_cure():
    found = judged(losses=[2.345678, 0.01234], chance=2.3)
    course = "the loss falls from 2.346 to 0.012 (guessing: 2.300)"
    assert found == Verdict("stable", "trained", text=f"{FLAT}; {course}")


def test_without_training_only_a_bad_gradient_gets_a_cure():
    assert judged() == Verdict("stable", "none", text=FLAT)
    found = judged(ratio=-22.0)
    expected = f"vanishing: {LOST.format('10^-11.0', '10^-22.0')}; try init=orthogonal activation=tanh"
    assert found == Verdict("vanishing", "none", text=expected)


def updates(share, statuses="ok"):
    """Return recorded updates of that log10 share of weights of size 10^1."""
    quantities = {"update": np.array(share) + 1.0, "weight": 1.0}
    return history([0.0, 0.0, 0.0], {"update": [[statuses] * 3]} if statuses != "ok" else "ok", quantities)


def test_that_nothing_is_learned_is_said_from_the_updates_not_from_the_output_gradient():
    found = judged(ratio=-22.0, losses=[2.3] * 9, gradients=updates([-27.2, -26.1, NAN]))
    assert (found.gradient, found.training) == ("vanishing", "stuck")
    assert ", and a step changes the weights by only 10^-27 of their size; try init=" in found.text
    assert (
        "a step leaves the weights of most layers exactly as they were"
        in judged(losses=[2.3] * 9, gradients=updates([NAN, NAN, NAN], "zero")).text
    )
    moving = judged(ratio=-22.0, losses=[2.3] * 9, gradients=updates([-3.0, -3.0, -3.0]))
    assert ", and after 9 steps the loss is 2.300 (guessing: 2.300); try init=" in moving.text


def test_a_network_blind_to_its_input_is_said_to_be():
    found = judged(losses=[2.3] * 100, cosine=0.99)
    reason = "but after 60 relu layers all inputs point the same way (mean cosine of two outputs 0.990)"
    assert found.text.endswith(f"{FLAT}, {reason}; try init=orthogonal activation=tanh")
    assert "point the same way" not in judged(losses=[2.3] * 100, cosine=0.98).text
    assert "point the same way" not in judged(losses=[2.3] * 99, cosine=0.99).text


def test_a_dead_network_cannot_learn_and_gets_a_cure():
    dead = history(
        [NAN, NAN, 0.0],
        {"output": [["ok", "zero", "ok"]]},
        {"output": 0.0, "weight_grad": NAN},
        output_cosine=np.array([NAN]),
    )
    found = run_verdict(Config(depth=10, init=InitConfig("xavier")), dead, [2.3] * 9, None, 2.3)
    text = "dead: layer 2 outputs 0 for every sample, and nothing can be learned through it; try init=he"
    assert found == Verdict("dead", "stuck", text=text)


@pytest.mark.parametrize("cosine", [0.1, NAN])
def test_a_stable_but_stuck_training_is_sent_to_the_optimizer(cosine):
    config = Config(depth=5, optimizer=OptimizerConfig(lr=0.25))
    found = judged(config, losses=[2.3] * 9, cosine=cosine)
    reason = ", but after 9 steps the loss is 2.300 (guessing: 2.300)"
    assert found.text.endswith(f"{reason}; try more steps, or another optimizer.lr than 0.25")


def test_an_exploding_gradient_whose_loss_does_not_fall_is_cured_by_the_initialisation():
    found = judged(ratio=40.0, losses=[2.3] * 9)
    expected = f"exploding: {GROWN.format('by 10^20.0', '10^40.0')}, and after 9 steps the loss is 2.300"
    assert found.text.startswith(expected)
    assert found.text.endswith("; try init=orthogonal activation=tanh")


def test_divergence_names_its_step_and_a_stable_gradient_gets_a_smaller_learning_rate():
    found = judged(Config(depth=5, optimizer=OptimizerConfig(lr=30.0)), losses=[2.3, 9.0], diverged_at=1)
    assert found.training == "diverged"
    text = "; the loss or a weight is not finite from step 1 on; try optimizer.lr="
    key, _, rate = found.remedy.partition("=")
    assert (key, found.text.endswith(text + rate)) == ("optimizer.lr", True)
    assert 0 < float(rate) <= 3
    assert judged(ratio=9.0, losses=[NAN], diverged_at=0).text.endswith("; try init=orthogonal activation=tanh")
    assert judged(losses=[NAN], diverged_at=0).text.endswith("; try smaller inputs or dtype=float64")


def test_one_layer_is_not_compared_with_itself():
    assert gradient_verdict(history([3.0]).at()).text == "stable: there is one layer only"


@pytest.mark.parametrize(
    ("options", "cure"),
    few(
        [
            ({"activation": "relu", "init": InitConfig("xavier"), "depth": 10}, "init=he"),
            ({"activation": "linear", "init": InitConfig("identity", gain=1.5)}, "init=orthogonal init.gain=1"),
            ({"activation": "linear", "init": InitConfig("xavier")}, "init=orthogonal"),
            ({"activation": "leaky_relu", "init": InitConfig("normal"), "depth": 10}, "init=he"),
            ({"activation": "relu", "init": InitConfig("normal", gain=3), "depth": 10}, "init=he init.gain=1"),
            ({"activation": "relu", "init": InitConfig("xavier"), "depth": 50}, "init=orthogonal activation=tanh"),
            ({"activation": "relu", "init": InitConfig("he"), "depth": 50}, "init=orthogonal activation=tanh"),
            ({"activation": "sigmoid", "init": InitConfig("he"), "depth": 10}, "init=orthogonal activation=tanh"),
            (
                {"activation": "tanh", "init": InitConfig("orthogonal", gain=0.5)},
                "init=orthogonal init.gain=1",
            ),
        ],
        3,
    ),
)
def test_the_cure_fits_activation_depth_and_initialisation(options, cure):
    for ratio in (-30.0, 30.0):
        assert judged(Config(**options), ratio=ratio).text.endswith(f"; try {cure}")


def test_theory_has_its_word_and_speaks_up_when_it_is_contradicted():
    history = measured_relu()
    for word, text, added in (
        ("agrees", "agrees, z = +0.1", ""),
        ("unavailable", "theory unavailable: no reason", ""),
        ("deviates", "deviates from layer 7 on, z = +9.0", "; theory deviates from layer 7 on, z = +9.0"),
    ):
        verdict = run_verdict(Config(steps=0), history, theory=Agreement(word, None, None, text))
        assert verdict.theory == word
        assert verdict.text == history.verdict().text + added
    assert run_verdict(Config(steps=0), history).theory == "unavailable"


def measured_relu():
    mlp = MLP([8] * 6, "relu", dtype=torch.float64)
    initialize(mlp, "he", seed=1)
    return exact_profile(mlp, torch.ones(2, 8, dtype=torch.float64))


def test_a_verdict_is_shown_in_words_and_as_html() -> None:
    findings = (Finding("cut", f"{EVIL} by detach()", ("<b>",), f"remove {EVIL}", 3), Finding("updates", "too small"))
    verdict = Verdict("dead", "stuck", "agrees", f"cut: {EVIL} by detach()", findings)
    assert repr(verdict).splitlines() == [
        "Verdict(gradient: dead, training: stuck, theory: agrees)",
        f"cut: {EVIL} by detach()",
        "findings: cut, updates",
    ]
    page = Parsed(verdict._repr_html_())
    for text in ("✕ dead", "– stuck", "✓ theory agrees", EVIL, f"remove {EVIL}", "too small"):
        assert text in page.words
    assert not {"img", "script", "b"} & set(page.tags)
    assert len(repr(replace(verdict, text="word " * 1000, findings=findings * 100))) < 800
    assert repr(Verdict("stable")) == "Verdict(gradient: stable, training: none, theory: unavailable)"
