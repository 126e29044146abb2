import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import MLP, GradientProbe
from gradexp.choices import OF_EVERY_OPTIMIZER, OPTIMIZER_OPTIONS
from gradexp.config import OptimizerConfig
from gradexp.networks.one_node import side_by_side
from gradexp.runs.losses import batch_losses
from gradexp.runs.optimizers import build_optimizer
from gradexp.runs.training import Split, Training, all_finite, clip, evaluate, train


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def classes(samples=12, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (samples,), generator=generator)
    return Split(torch.randn(samples, width, generator=generator), labels, labels)


def linear(weight):
    """One weight, no bias: every number can be followed by hand."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def constant_part(x=1.0, y=0.0):
    return Split(torch.tensor([[x]]), torch.tensor([[y]]), None)


def fit(model, part, steps, loss="cross_entropy", lr=0.1, test_part=None, rows=None, **options):
    """Train on whole parts, unless rows of each batch are given; return what was logged and the probe."""
    log, probe = Training(), GradientProbe(model)
    batches = itertools.repeat(torch.arange(len(part.x))) if rows is None else iter(rows)
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=lr)
    train(model, part, test_part or part, [batches], loss, optimizer, steps, probe, [log], **options)
    return log, probe


def test_an_sgd_step_on_softmax_regression_equals_the_one_by_hand():
    part, model, lr = classes(), nn.Linear(5, 3), 0.7
    x, y = part.x.double().numpy(), part.y.numpy()
    weight, bias = (p.detach().double().numpy().copy() for p in model.parameters())
    logits = x @ weight.T + bias
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (share - np.eye(3)[y]) / len(y)
    log, _ = fit(model, part, 1, lr=lr)
    assert model.weight.detach().numpy() == pytest.approx(weight - lr * error.T @ x, abs=1e-6)
    assert model.bias.detach().numpy() == pytest.approx(bias - lr * error.sum(0), abs=1e-6)
    assert log.losses == pytest.approx([-np.log(share[np.arange(len(y)), y]).mean()], rel=1e-6)
    assert log.accuracies == [(logits.argmax(1) == y).mean()]


def test_mse_steps_equal_those_by_hand_and_losses_are_from_before_each_update():
    w, x, y, lr, weights, losses = 0.5, 2.0, 3.0, 0.05, [], []
    model = linear(w)
    for _ in range(4):
        losses.append((w * x - y) ** 2)
        w -= lr * 2 * x * (w * x - y)
        weights.append(w)
    seen = []
    log, _ = fit(
        model, constant_part(x, y), 4, "mse", lr, on_step=lambda step: seen.append((step, model.weight.item()))
    )
    assert log.losses == pytest.approx(losses, rel=1e-6)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert [weight for _, weight in seen] == pytest.approx(weights, rel=1e-6)
    assert log.diverged_at is None


def test_mse_is_the_mean_over_samples_and_outputs():
    output, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert batch_losses(output[None], y[None], "mse").tolist() == [(1 + 16) / 4]


def test_each_step_takes_the_next_batch():
    part, rows = classes(), [torch.tensor(r) for r in ([0, 3], [7, 1, 2], [5])]
    model = nn.Linear(5, 3)
    with torch.no_grad():
        expected = [F.cross_entropy(model(part.x[r]), part.y[r]).item() for r in rows]
    log, _ = fit(model, part, 3, lr=0.0, rows=rows)
    assert log.losses == pytest.approx(expected, rel=1e-6)


def test_test_evaluations_are_logged_before_updates_and_at_the_end():
    part, test_part, model = classes(), classes(7, seed=1), nn.Linear(5, 3)
    expected = {}

    def measure(step):
        with torch.no_grad():
            output = model(test_part.x)
        loss = F.cross_entropy(output, test_part.y).item()
        expected[step + 1] = (loss, (output.argmax(1) == test_part.labels).double().mean().item())

    measure(-1)
    log, _ = fit(model, part, 20, test_part=test_part, on_step=measure)
    assert [step for step, _, _ in log.tests] == list(range(0, 21, 2))
    for step, loss, accuracy in log.tests:
        assert loss == pytest.approx(expected[step][0], rel=1e-6)
        assert accuracy == expected[step][1]
    with torch.no_grad():
        right = model(part.x).argmax(1) == part.labels
    assert log.train_accuracy == right.double().mean().item()


def test_fewer_than_ten_steps_are_tested_at_each():
    log, _ = fit(nn.Linear(5, 3), classes(), 3)
    assert [step for step, _, _ in log.tests] == [0, 1, 2, 3]


def test_regression_has_no_accuracy():
    log, _ = fit(linear(1.0), constant_part(), 2, "mse")
    assert log.accuracies == []
    assert log.train_accuracy is None
    assert [accuracy for _, _, accuracy in log.tests] == [None] * 3


def test_evaluation_runs_in_parts_and_equals_one_pass_over_everything():
    part, model, sizes = classes(2500), nn.Linear(5, 3), []
    model.register_forward_hook(lambda _m, args, _o: sizes.append(args[0].shape[-2]))
    (loss,), (accuracy,) = evaluate(model, part, "cross_entropy")
    assert sizes == [1024, 1024, 452]
    with torch.no_grad():
        output = model.double()(part.x.double())
    assert loss == pytest.approx(F.cross_entropy(output, part.y).item(), rel=1e-6)
    assert accuracy == (output.argmax(1) == part.labels).double().mean().item()


def test_evaluation_leaves_no_gradient():
    model = nn.Linear(5, 3)
    evaluate(model, classes(), "cross_entropy")
    assert model.weight.grad is None


def test_the_probe_sees_the_batch_and_not_the_test_part():
    part, rows = classes(), torch.tensor([0, 5])
    far = Split(1e4 * part.x, part.y, part.labels)
    model = nn.Linear(5, 3)
    with torch.no_grad():
        rms = model(part.x[rows]).double().square().mean().sqrt()
    _, probe = fit(model, part, 2, lr=0.0, test_part=far, rows=[rows, rows])
    assert probe.history.log10["output"].ravel() == pytest.approx([math.log10(rms)] * 2, abs=1e-6)


def test_the_probe_collects_before_clipping():
    part = constant_part(2.0, 3.0)
    _, probe = fit(linear(0.5), part, 1, "mse", clip_norm=1e-3)
    assert probe.history.profile("weight_grad") == pytest.approx([math.log10(8)])
    assert probe.history.steps == [0]


def test_a_clipped_step_is_as_long_as_the_limit_says():
    model = linear(0.5)
    fit(model, constant_part(2.0, 3.0), 1, "mse", lr=0.1, clip_norm=0.5)
    assert model.weight.item() == pytest.approx(0.5 + 0.1 * 0.5)


def with_gradients(*gradients):
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def float64_norm(gradients):
    return np.linalg.norm(np.concatenate([g.double().numpy().ravel() for g in gradients]))


@pytest.mark.parametrize(
    ("size", "largest", "by_torch"), [(1e-30, 1e-31, 0.0), (1.0, 0.01, None), (1e25, 1.0, math.inf)]
)
def test_clipping_scales_all_gradients_together_to_the_limit_at_any_size(size, largest, by_torch):
    gradients = [size * torch.randn(4, 3), size * torch.randn(5), 1e-3 * size * torch.randn(2, 2)]
    if by_torch is not None:  # what makes torch's own clipping fail
        assert torch.linalg.vector_norm(torch.cat([g.ravel() for g in gradients])).item() == by_torch
    parameters = with_gradients(*gradients)
    clip([p.grad for p in parameters], largest)
    clipped = [p.grad for p in parameters]
    norm = float64_norm(gradients)
    assert norm > largest
    assert float64_norm(clipped) == pytest.approx(largest, rel=1e-6)
    for before, after in zip(gradients, clipped, strict=True):
        assert after.double().numpy() == pytest.approx(before.double().numpy() * (largest / norm), rel=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0])
def test_a_gradient_below_the_limit_is_not_changed_at_all(size):
    gradients = [size * torch.randn(4, 3), size * torch.randn(5)]
    parameters = with_gradients(*gradients)
    clip([p.grad for p in parameters], 1.001 * float64_norm(gradients) + 1e-40)
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, gradients, strict=True))


def test_a_loss_that_is_not_finite_ends_training_at_its_step():
    # Each step multiplies the weight by 1 - 2 lr = -1e10; its square leaves float32 at step 2.
    steps = []
    log, probe = fit(linear(1.0), constant_part(), 50, "mse", lr=0.5e10, on_step=steps.append)
    assert log.losses[:2] == pytest.approx([1.0, 1e20], rel=1e-6)
    assert log.losses[2:] == [math.inf]
    assert log.diverged_at == 2
    assert steps == [0, 1, 2]
    assert probe.history.steps == [0, 1, 2]
    assert log.train_accuracy is None
    assert log.tests[-1][0] <= 2


def test_a_weight_that_is_not_finite_ends_training_though_every_loss_is():
    model = linear(1.0)
    log, _ = fit(model, constant_part(1e3), 50, "mse", lr=1e33)
    assert log.losses == pytest.approx([1e6])
    assert math.isinf(model.weight.item())
    assert log.diverged_at == 0


def test_no_hook_is_left_after_divergence():
    model = linear(1.0)
    fit(model, constant_part(1e3), 50, "mse", lr=1e33)
    assert not model._forward_hooks


def test_an_interruption_keeps_what_was_logged():
    def interrupt(step):
        if step == 3:
            raise KeyboardInterrupt

    log, model, part = Training(), nn.Linear(5, 3), classes()
    probe = GradientProbe(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = itertools.repeat(torch.arange(12))
    with pytest.raises(KeyboardInterrupt):
        train(model, part, part, [rows], "cross_entropy", optimizer, 50, probe, [log], on_step=interrupt)
    assert len(log.losses) == len(log.accuracies) == 4
    assert probe.history.steps == [0, 1, 2, 3]
    assert not model._forward_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_anywhere_is_found(bad, dtype):
    parameters = [nn.Parameter(torch.randn(3, 4, dtype=dtype)) for _ in range(3)]
    assert all_finite(parameters)
    parameters[1].data[2, 1] = bad
    assert not all_finite(parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_numbers_of_a_format_are_finite(dtype):
    assert all_finite([nn.Parameter(torch.full((10, 10), torch.finfo(dtype).max, dtype=dtype))])


def test_infinities_of_both_signs_do_not_cancel():
    assert not all_finite([nn.Parameter(torch.tensor([math.inf, -math.inf]))])


@pytest.mark.parametrize("name", sorted(OPTIMIZER_OPTIONS.keys() - {"muon"}))  # which has tests of its own
def test_every_option_reaches_torch(name):
    kinds = {"sgd": torch.optim.SGD, "momentum": torch.optim.SGD, "adam": torch.optim.Adam}
    kinds |= {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}
    given = {"lr": 0.125, "weight_decay": 0.25, "momentum": 0.625}
    given = {key: value for key, value in given.items() if key in OPTIMIZER_OPTIONS[name]}
    assert {*given, *OF_EVERY_OPTIMIZER} == set(OPTIMIZER_OPTIONS[name])  # the latter are train's
    parameters = list(MLP([2, 3, 2]).parameters())
    optimizer = build_optimizer(resolved(name, **given), parameters)
    assert isinstance(optimizer, kinds[name])
    (group,) = optimizer.param_groups
    assert all(mine is theirs for mine, theirs in zip(group["params"], parameters, strict=True))
    assert {key: group[key] for key in given} == given
    if name == "sgd":
        assert group["momentum"] == 0


def resolved(name, **given):
    return OptimizerConfig(name, **{**OPTIMIZER_OPTIONS[name], **given})


def test_momentum_and_weight_decay_follow_their_formula():
    w, velocity, lr, momentum, decay = 0.5, 0.0, 0.05, 0.8, 0.3
    model = linear(w)
    config = resolved("momentum", lr=lr, momentum=momentum, weight_decay=decay)
    fit(model, constant_part(2.0, 3.0), 4, "mse", optimizer=build_optimizer(config, list(model.parameters())))
    for _ in range(4):
        velocity = momentum * velocity + 2 * 2.0 * (w * 2.0 - 3.0) + decay * w
        w -= lr * velocity
    assert model.weight.item() == pytest.approx(w, rel=1e-6)


def test_parameters_side_by_side_train_to_the_same_bits():
    x, y = torch.randn(7, 5), torch.randint(3, (7,))
    model = MLP([5, 6, 3]).requires_grad_(True)
    other = MLP([5, 6, 3])
    other.load_state_dict(model.state_dict())
    buffer, _ = side_by_side(list(model.parameters()))
    assert all(a.data_ptr() % 64 == buffer.data_ptr() % 64 for a in model.parameters())
    for network in (model, other):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    total = sum(parameter.double().sum() for parameter in model.parameters())
    assert buffer.double().sum().item() == pytest.approx(total.item(), abs=1e-12)


def test_the_losses_are_in_the_history_of_a_training():
    part, log = classes(), Training()
    model = MLP([5, 4, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = GradientProbe(model, optimizer=optimizer)
    train(model, part, part, [itertools.repeat(torch.arange(4))], "cross_entropy", optimizer, 3, probe, [log])
    assert probe.history.loss[:, 0].tolist() == log.losses
