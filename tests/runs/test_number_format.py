"""Number formats of 16 bits: where a training in them gives out is what was expected, and what torch alone shows."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import nn

from gradexp import MLP
from gradexp.choices import ConfigError
from gradexp.config import Config, DataConfig, InitConfig, OptimizerConfig, VerdictConfig
from gradexp.history.step import STATUSES
from gradexp.numerics.seeds import generator
from gradexp.predict.forecast import forecast
from gradexp.predict.text import describe
from gradexp.runs.data import batches, load
from gradexp.runs.experiment import run, run_stack
from gradexp.runs.losses import batch_losses, output_gradient
from gradexp.runs.number_format import Failure, FormatCheck, Range, flushes_subnormals
from gradexp.runs.optimizers import build_optimizer
from gradexp.runs.precision import Precision
from gradexp.runs.result import Result
from gradexp.runs.stacks import stackable_groups
from gradexp.runs.summary import summary
from gradexp.runs.training import clip

pytestmark = pytest.mark.usefixtures("on_one_thread")

NAMES = {"dtype=float16": {"dtype": "float16"}, "dtype=bfloat16": {"dtype": "bfloat16"}}
NAMES |= {f"precision={name}": {"precision": name} for name in ("amp_float16", "amp_bfloat16")}
NORMAL = (0.25, 0.05)

DEEP = {
    "sigmoid": {"activation": "sigmoid", "init": InitConfig("xavier")},
    "relu, large": {"init": InitConfig("normal", std=NORMAL[0])},
    "tanh, small": {"activation": "tanh", "init": InitConfig("normal", std=NORMAL[1])},
    "residual": {"residual": "plain"},
    "lesson": {"activation": "linear", "init": InitConfig("identity", gain=0.5), "data": "ones"},
    "tanh, large": {"activation": "tanh", "init": InitConfig("normal", std=NORMAL[0])},
}


def check_of(result: Result) -> FormatCheck:
    assert result.format_check is not None
    assert result.format_check.is_measured
    return result.format_check


def untrained(**options: Any) -> Result:
    """A run whose weights stay as they were drawn."""
    base = {"steps": 1, "optimizer": OptimizerConfig("sgd", lr=0.0), "save_weights": True}
    return run(Config(**{**base, **options}))


def lesson(gain: float, depth: int = 40, **options: Any) -> Result:
    """Layer l puts out gain**l in every unit of every sample."""
    init = InitConfig("identity", gain=gain)
    return untrained(depth=depth, width=8, activation="linear", init=init, data="ones", **options)


def by_torch(result: Result) -> tuple[dict[str, list[torch.Tensor]], torch.Tensor]:
    """Outputs of each layer and their gradients in the first step, without any code of runs and of probes."""
    config, weights = result.config, result.weights
    assert weights is not None
    data = load(config.data, config.width)
    rows = next(batches(len(data.x_train), config.batch_size, generator(config.seed, "batches")))
    dtype = getattr(torch, config.dtype)
    x, outputs = data.x_train[rows].to(dtype), []
    phi = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "linear": lambda z: z}[config.activation]
    for index in range(config.depth):
        w, b = (weights[f"layers.{index}.{name}"][0] for name in ("weight", "bias"))
        outputs.append(F.linear(phi(outputs[-1]) if index else x, w.requires_grad_(), b))
        outputs[-1].retain_grad()
    loss = F.cross_entropy(outputs[-1].float(), data.y_train[rows])
    loss.backward()
    gradients = [z.grad for z in outputs if z.grad is not None]
    return {"output": [z.detach() for z in outputs], "output_grad": gradients}, loss.detach()


def words(result: Result, quantity: str) -> list[str]:
    assert result.gradients is not None
    return [STATUSES[code] for code in result.gradients.status[quantity][0, 0]]


# ---- where a format gives out


def test_the_first_failure_is_that_of_the_numbers() -> None:
    """float16: below 2**-25 is 0, from 65520 on is inf."""
    f16 = Range("float16")
    fine = np.zeros(4)
    assert f16.first_failure(fine, fine) is None
    assert f16.first_failure(np.array([0, -7.4, -7.6, -7.8]), fine) == Failure("output", False, 3)
    assert f16.first_failure(np.array([0, 4.8, 4.9, -9]), fine) == Failure("output", True, 3)
    assert f16.first_failure(fine, np.array([-9, -8, -7, 0.0])) == Failure("output_grad", False, 2)
    assert f16.first_failure(fine, np.array([9, 8, 3, 0.0])) == Failure("output_grad", True, 2)
    assert f16.first_failure(np.array([0, 0, -np.inf, -np.inf]), np.array([-np.inf, -np.inf, 0, 0])) is None
    assert f16.first_failure(np.array([0, 0, np.nan, np.nan]), np.full(4, np.nan)) == Failure("output", True, 3)


def test_a_scaler_lifts_gradients_by_2_to_the_16_and_lowers_what_would_overflow() -> None:
    scaled = Range("float16", is_scaled=True)
    fine = np.zeros(4)
    lifted = 16 * math.log10(2)
    assert scaled.first_failure(fine, np.array([-7.53 - lifted, -7.52 - lifted, -3, -2])) == Failure(
        "output_grad", False, 1
    )
    # The largest fits with a factor of 2**-17, which leaves 0 of the other end.
    assert scaled.first_failure(fine, np.array([9.9, 5, 0, -3.0])) == Failure("output_grad", False, 4)
    assert scaled.first_failure(fine, np.array([9.9, 5, 0, -2.0])) is None


def test_bfloat16_holds_what_float32_does_but_for_subnormal_numbers_where_they_are_flushed() -> None:
    gradient = np.array([-38.5, -37, 0.0])
    assert Range("bfloat16").first_failure(np.zeros(3), gradient) is None
    assert Range("bfloat16", is_flushed=True).first_failure(np.zeros(3), gradient) == Failure("output_grad", False, 1)
    weight = np.array([0.0, -2, 0])  # 10^-37 times 10^-2, summed up
    flushed = Range("bfloat16", is_flushed=True).first_failure(np.zeros(3), np.array([-37.5, -37, 0.0]), weight)
    assert flushed == Failure("output_grad", False, 1)


def test_whether_products_are_flushed_is_seen_at_a_product() -> None:
    for name, units in (("float32", 48), ("bfloat16", 48), ("bfloat16", 2)):
        dtype = getattr(torch, name)
        tiny, bias = torch.full((1, 48, units), 2.0**-128, dtype=dtype), torch.zeros(1, 48, units, dtype=dtype)
        product = torch.baddbmm(bias, tiny, torch.eye(units, dtype=dtype).unsqueeze(0))
        assert flushes_subnormals(name, "cpu", 48, units) == (not product.any())
    assert not flushes_subnormals("float32", "cpu", 48, 48)


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_the_lessons_networks_fail_at_the_power_that_the_format_cannot_hold(gain: float) -> None:
    assert lesson(gain).format_check is None
    check = check_of(lesson(gain, dtype="float16"))
    layer = 25 if gain < 1 else 16  # 2**-25 rounds to 0, 2**16 to inf
    assert check.expected == check.measured == Failure("output", gain > 1, layer)


def test_four_fifths_of_the_smallest_number_round_to_it_so_that_nothing_becomes_0() -> None:
    init = InitConfig("identity", gain=0.8)
    result = untrained(depth=120, width=16, activation="linear", init=init, dtype="float16")
    data = load(result.config.data, 16)
    rows = next(batches(len(data.x_train), 64, generator(0, "batches")))
    bits = math.log2(data.x_train[rows, :16].abs().max().item()) + 25
    check = check_of(result)
    assert check.expected == Failure("output", False, math.ceil(bits * math.log(2) / math.log(1.25)))
    assert "zero" not in words(result, "output")
    assert check.measured is None
    assert not check.is_failing
    assert "was expected, which rounding prevents" in check.text


def test_without_training_the_verdict_says_what_will_be_lost() -> None:
    result = lesson(0.5, dtype="float16", steps=0)
    assert result.verdict is not None
    assert "float16 will not hold it: outputs underflow to 0 from layer 25 up" in result.verdict.text


@pytest.mark.parametrize(
    ("name", "deep"), few([(name, deep) for deep in list(DEEP)[:3] for name in list(NAMES)[1::-1]])
)
def test_what_a_run_measures_is_what_torch_alone_computes_in_that_format(name: str, deep: str) -> None:
    options = {**DEEP[deep], "depth": 40, "width": 32}
    result = untrained(**options, **NAMES[name])
    tensors, loss = by_torch(result)
    assert result.training is not None
    assert result.training.losses[0] == pytest.approx(loss.item(), rel=1e-3, nan_ok=True)
    for quantity, values in tensors.items():
        zero = [not value.any() for value in values]
        lost = [not bool(value.isfinite().all()) for value in values]
        assert [word == "zero" for word in words(result, quantity)] == zero
        assert [word == "nonfinite" for word in words(result, quantity)] == lost
    check = check_of(result)
    if check.measured is not None:
        at = tensors[check.measured.quantity][check.measured.layer - 1]
        assert not at.any() or not at.isfinite().all()


def assert_within_two_layers(check: FormatCheck) -> None:
    if check.expected is None:
        assert check.measured is None
        return
    assert check.measured is not None
    assert check.measured[:2] == check.expected[:2]
    assert abs(check.measured.layer - check.expected.layer) <= 2


@pytest.mark.parametrize(
    ("deep", "name"),
    few([("lesson", "dtype=float16"), ("sigmoid", "dtype=bfloat16"), ("sigmoid", "dtype=float16")]),
)
def test_a_small_network_gives_out_within_two_layers_of_where_that_is_expected(deep: str, name: str) -> None:
    check = check_of(run(Config(depth=150, width=16, batch_size=16, steps=1, **DEEP[deep], **NAMES[name])))
    assert check.expected is not None
    assert_within_two_layers(check)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NAMES)[:3])
@pytest.mark.parametrize("deep", DEEP)
def test_a_format_gives_out_within_two_layers_of_where_that_is_expected(deep: str, name: str) -> None:
    result = run(Config(depth=150, width=128, steps=1, **DEEP[deep], **NAMES[name]))
    if name == "precision=amp_float16" and deep == "tanh, large":  # one step is not enough for its scale
        assert result.training is not None
        assert result.training.skipped == [0]
    else:
        assert_within_two_layers(check_of(result))


@pytest.mark.slow
@pytest.mark.parametrize("deep", ["sigmoid", "relu, large", "lesson", "tanh, small"])
def test_theory_names_the_layer_without_a_network(deep: str) -> None:
    config = Config(depth=150, steps=1, dtype="float16", **DEEP[deep])
    predicted = forecast(config)
    assert predicted.in_format is not None
    failure, layers = predicted.in_format
    measured = check_of(run(config)).measured
    assert failure is not None
    assert measured is not None
    assert failure[:2] == measured[:2]
    assert abs(failure.layer - measured.layer) <= 2 + 3 * layers
    assert f"in float16, batches of 64: {failure}" in " ".join(describe(predicted).split())


def test_theory_names_the_layer_of_exact_powers() -> None:
    config = Config(depth=150, width=16, batch_size=16, dtype="float16", **DEEP["lesson"])
    predicted = forecast(config).in_format
    assert predicted is not None
    assert predicted.failure is not None
    assert predicted.failure[:2] == ("output", False)
    assert abs(predicted.failure.layer - 25) <= 2  # 0.5**25 rounds to 0


def test_predict_is_silent_about_formats_that_hold_what_others_do() -> None:
    assert forecast(Config()).in_format is None
    assert "in training" not in describe(forecast(Config()))


# ---- the recorded gradients


@pytest.mark.parametrize("name", few(["precision=amp_float16", "precision=amp_bfloat16", *list(NAMES)[:2]], 3))
def test_recorded_gradients_are_the_real_ones_whatever_scaled_the_loss(name: str) -> None:
    options = {"depth": 8, "width": 24, "activation": "tanh", "init": InitConfig("orthogonal")}
    result, exact = untrained(**options, **NAMES[name]), untrained(**options, dtype="float64")
    assert result.gradients is not None
    assert exact.gradients is not None
    for quantity in ("output", "output_grad", "weight_grad"):
        mine, theirs = (each.gradients.log10[quantity] for each in (result, exact))  # type: ignore[union-attr]
        assert mine == pytest.approx(theirs, abs=0.02), quantity
    own = "float32" if "amp" in name else name.removeprefix("dtype=")
    assert result.gradients.dtypes["output"] == name.rpartition("_")[2].removeprefix("dtype=")
    assert result.gradients.dtypes["weight_grad"] == own


@pytest.mark.slow
def test_skipped_steps_are_counted_and_no_divergence() -> None:
    network = {"depth": 30, "width": 16, "activation": "tanh", "init": InitConfig("normal", std=0.8)}
    small = {"data": DataConfig("gaussian", samples=80), "optimizer": OptimizerConfig(lr=1e-9)}
    result = run(Config(**network, **small, steps=12, precision="amp_float16"))
    training, verdict = result.training, result.verdict
    assert training is not None
    assert verdict is not None
    assert result.gradients is not None
    assert 0 in training.skipped
    assert training.diverged_at is None
    assert len(training.losses) == 12
    assert summary(result)["training"]["skipped_steps"] == len(training.skipped)
    update = [STATUSES[code] for code in result.gradients.status["update"][:, 0, 0]]
    assert [word != "ok" for word in update] == [step in training.skipped for step in range(12)]
    assert f"{len(training.skipped)} of 12 steps are left out" in verdict.text


def test_a_scaled_step_is_the_step_of_the_unscaled_loss() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    precision = Precision("amp_float16", "cpu")
    optimizer = build_optimizer(Config(optimizer=OptimizerConfig(lr=0.5)).optimizer, [weight])
    precision.scaler.scale((weight * torch.tensor([1.0, -3.0])).sum()).backward()
    assert precision.step(optimizer)
    assert weight.tolist() == [0.5, 3.5]
    optimizer.zero_grad()
    precision.scaler.scale((weight * torch.tensor([1.0, math.inf])).sum()).backward()
    assert not precision.step(optimizer)
    assert weight.tolist() == [0.5, 3.5]


# ---- what is said, and what helps


def test_the_verdict_names_the_format_the_layer_and_what_holds_it() -> None:
    """Outputs grow by 2.5 per layer of the identity, and a gradient of 10**4 counts as stable here."""
    config = Config(
        depth=14,
        width=16,
        activation="linear",
        init=InitConfig("identity", gain=2.5),
        data="ones",
        verdict=VerdictConfig(decades=9),
        dtype="float16",
        steps=3,
        optimizer=OptimizerConfig("sgd", lr=1e-13),
    )
    result = run(config)
    assert result.verdict is not None
    assert "float16 does not hold it: outputs overflow from layer 13 up (expected: layer 13)" in result.verdict.text
    options = check_of(result).cures[0]
    assert options == {"dtype": "float32", "precision": "amp_bfloat16"}
    cured = run(replace(config, **options))
    assert cured.training is not None
    assert cured.training.diverged_at is None
    assert not check_of(cured).is_failing
    assert summary(result)["number_format"] == {
        "name": "float16",
        **{key: {"quantity": "output", "overflow": True, "layer": 13} for key in ("expected", "measured")},
    }


@pytest.mark.slow
def test_steps_that_bfloat16_rounds_away_are_named_and_mixed_precision_makes_them() -> None:
    config = Config(
        depth=12, width=32, activation="tanh", init=InitConfig("orthogonal"), optimizer=OptimizerConfig(lr=0.002)
    )
    result = run(replace(config, dtype="bfloat16"))
    assert result.verdict is not None
    assert "mostly rounded away in bfloat16" in result.verdict.text
    assert result.verdict.remedy == "dtype=float32 precision=amp_bfloat16"
    losses = [run(replace(config, **o)).training.losses[-1] for o in ({}, {"precision": "amp_bfloat16"})]  # type: ignore[union-attr]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


# ---- parts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_16_bits_are_computed_in_float32(dtype: torch.dtype) -> None:
    output = torch.linspace(-4, 300, 24).view(1, 4, 6).to(dtype)
    y = torch.tensor([[0, 2, 1, 5]])
    value = batch_losses(output, y, "cross_entropy")
    assert value.dtype is torch.float32
    assert value.item() == pytest.approx(F.cross_entropy(output[0].double(), y[0]).item(), rel=1e-6)


def test_the_gradient_at_the_output_is_that_of_softmax_over_the_batch() -> None:
    output = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([[0, 1, 2, 2, 0], [1, 1, 1, 0, 2]])
    expected = (output.softmax(2) - F.one_hot(y, 3)) / 5
    torch.testing.assert_close(output_gradient(output, y, "cross_entropy"), expected)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_an_epsilon_that_float16_cannot_hold_does_not_divide_0_by_0(name: str) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float16))
    options = Config(optimizer=OptimizerConfig(name, weight_decay=0.0)).optimizer
    optimizer = build_optimizer(options, [weight])
    weight.grad = torch.tensor([0.0, 1e-5, 1.0], dtype=torch.float16)
    optimizer.step()
    assert weight.isfinite().all()
    assert weight[0] == 1
    assert weight[2] < 1
    wide = nn.Parameter(torch.ones(3))
    assert build_optimizer(options, [wide]).param_groups[0]["eps"] == 1e-8


def test_clipping_in_float16_takes_factors_that_float16_cannot_hold() -> None:
    gradient = torch.full((1, 4), 6e4, dtype=torch.float16)
    clip([gradient], 1e-3)
    assert gradient.double().norm().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_written_out_passes_are_those_of_autograd_in_16_bits(activation: str, dtype: torch.dtype) -> None:
    from gradexp.networks.one_node import OneNode

    model = MLP([5, 16, 16, 3], activation, networks=2, dtype=dtype)
    other = MLP([5, 16, 16, 3], activation, networks=2, dtype=dtype)
    other.load_state_dict(model.state_dict())
    network, x = OneNode(other), torch.randn(2, 8, 5).to(dtype)
    gradients = torch.autograd.grad(model(x).float().square().sum(), [*model.parameters()])
    network(x).float().square().sum().backward()
    for mine, theirs in zip(network.gradients.all, gradients, strict=True):
        assert torch.equal(mine, theirs)


# ---- stacks


def test_what_scales_its_loss_is_not_stacked() -> None:
    base = Config(depth=4, width=8, steps=2)
    for name, groups in (
        ("dtype=bfloat16", [[0, 1]]),
        ("precision=amp_bfloat16", [[0, 1]]),
        ("precision=amp_float16", [[0], [1]]),
    ):
        assert stackable_groups([replace(base, seed=seed, **NAMES[name]) for seed in (0, 1)]) == groups
    with pytest.raises(ConfigError, match="precision=amp_float16 scales the loss of each network by itself"):
        run_stack([replace(base, seed=seed, precision="amp_float16") for seed in (0, 1)])


@pytest.mark.slow
@pytest.mark.parametrize("name", few(["dtype=bfloat16", "precision=amp_bfloat16", "dtype=float16"]))
def test_a_member_of_a_stack_is_the_run_alone(name: str) -> None:
    base = Config(depth=6, width=16, batch_size=16, steps=4, normalization="layer", affine=True, **NAMES[name])
    configs = [replace(base, seed=seed) for seed in (0, 5)]
    for config, stacked in zip(configs, run_stack(configs), strict=True):
        alone = run(config)
        assert alone.training is not None
        assert stacked.training is not None
        assert stacked.training.losses == pytest.approx(alone.training.losses, rel=2e-2)
        assert stacked.format_check is not None
        assert stacked.format_check.expected == check_of(alone).expected
        assert stacked.building == alone.building
