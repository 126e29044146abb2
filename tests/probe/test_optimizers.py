"""Updates by several optimizers, by wrapped ones, and by none."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import GradientProbe
from gradexp.history.step import STATUSES
from gradexp.probe.optimizers import unwrapped


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal by Newton-Schulz, as its users write it for matrices."""

    def __init__(self, params, lr=0.02, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.mul_(group["momentum"]).add_(p.grad)
                    x = buffer / (buffer.norm() + 1e-7)
                    for _ in range(5):
                        gram = x @ x.T
                        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                    p.sub_(x, alpha=group["lr"])


class Wrapper(torch.optim.Optimizer):
    """As accelerate and opacus wrap one: of an optimizer's class, but never made as one."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        self.optimizer.step(closure)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(9, 6), nn.Flatten(), nn.Linear(18, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3)
    )


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, (5, 3), generator=generator), torch.randint(3, (5,), generator=generator)


def loss_of(model):
    x, y = batch()
    return F.cross_entropy(model(x), y)


def weights_of(model):
    return {name: p.detach().double().clone() for name, p in model.named_parameters() if p.dim() > 1}


def changes(before, after):
    return [(after[name] - before[name]).norm().log10().item() for name in before]


def status(history, quantity, step=0):
    return [STATUSES[code] for code in history.status[quantity][step, 0]]


def muon_and_adamw(model):
    hidden = [model[2].weight, model[4].weight]
    others = [p for p in model.parameters() if all(p is not weight for weight in hidden)]
    return Muon(hidden), torch.optim.AdamW(others, lr=0.01)


def test_each_weight_has_the_update_of_the_optimizer_that_holds_it():
    model = network()
    muon, adamw = muon_and_adamw(model)
    expected = []
    with GradientProbe(model, optimizer=[muon, adamw]) as probe:
        for step in range(2):
            before = weights_of(model)
            loss_of(model).backward()
            probe.collect(step)
            for optimizer in (muon, adamw):
                optimizer.step()
                optimizer.zero_grad()
                _ = probe.history  # between two steps it must lose neither
            expected.append(changes(before, weights_of(model)))
    assert probe.history.names == ["0", "2", "4", "5"]
    for step in range(2):
        assert probe.history.profile("update", step) == pytest.approx(expected[step], abs=1e-6)
        assert status(probe.history, "update", step) == ["ok"] * 4


def test_training_with_two_optimizers_is_bit_identical():
    def trained(watched):
        model = network()
        optimizers = muon_and_adamw(model)
        probe = GradientProbe(model, optimizer=optimizers, every=2)
        if watched:
            probe.attach()
        for _ in range(5):
            loss_of(model).backward()
            if watched:
                probe.collect()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        probe.remove()
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))


def test_a_weight_that_no_optimizer_holds_is_not_optimized():
    model = network()
    model[5].weight.requires_grad_(False)
    muon, _ = muon_and_adamw(model)
    before = weights_of(model)
    with GradientProbe(model, optimizer=muon) as probe:
        loss_of(model).backward()
        probe.collect(0)
        muon.step()
    assert status(probe.history, "update") == ["not_optimized", "ok", "ok", "frozen"]
    expected = changes(before, weights_of(model))
    assert probe.history.profile("update")[1:3] == pytest.approx(expected[1:3], abs=1e-6)
    assert math.isnan(probe.history.profile("update")[0])


def test_an_optimizer_of_biases_only_is_watched_beside_that_of_the_weights():
    model = network()
    biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    optimizers = [torch.optim.SGD(weights, lr=0.1), torch.optim.SGD(biases, lr=0.2)]
    before = weights_of(model)
    with GradientProbe(model, optimizer=optimizers) as probe:
        loss_of(model).backward()
        probe.collect(0)
        for optimizer in optimizers:
            optimizer.step()
    assert probe.history.profile("update") == pytest.approx(changes(before, weights_of(model)), abs=1e-6)


def test_optimizers_that_step_in_turn_each_have_their_own_steps():
    # As in adversarial training: each backward pass is followed by the step of one of the two.
    model = nn.ModuleDict({"generator": nn.Linear(3, 3), "critic": nn.Linear(3, 1)})
    torch.manual_seed(0)
    optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in model.items()}
    z, expected = torch.randn(4, 3), []
    with GradientProbe(model, optimizer=optimizers.values()) as probe:
        for name in ("critic", "generator", "critic"):
            before = weights_of(model)
            model["critic"](model["generator"](z)).mean().backward()
            probe.collect()
            optimizers[name].step()
            model.zero_grad()
            expected.append(dict(zip(model, changes(before, weights_of(model)), strict=True)))
    history = probe.history
    for step, name in enumerate(("critic", "generator", "critic")):
        row = history.names.index(name)
        assert history.log10["update"][step, 0, row] == pytest.approx(expected[step][name], abs=1e-6)
        assert status(history, "update", step)[1 - row] == "not_called"


def test_a_weight_that_two_optimizers_hold_has_no_one_update():
    model = network()
    both = [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model[5].parameters(), lr=0.1)]
    with GradientProbe(model, optimizer=both) as probe:
        loss_of(model).backward()
        probe.collect(0)
        for optimizer in both:
            optimizer.step()
    assert status(probe.history, "update") == ["ok", "ok", "ok", "hook_missed"]


def test_a_wrapped_optimizer_is_watched():
    model = network()
    before = weights_of(model)
    optimizer = Wrapper(torch.optim.SGD(model.parameters(), lr=0.5))
    with GradientProbe(model, optimizer=optimizer) as probe:
        loss_of(model).backward()
        probe.collect(0)
        optimizer.step()
    assert probe.history.profile("update") == pytest.approx(changes(before, weights_of(model)), abs=1e-6)


def test_a_collect_after_one_of_several_steps_is_refused():
    model = network()
    muon, adamw = muon_and_adamw(model)
    with GradientProbe(model, optimizer=[muon, adamw]) as probe:
        loss_of(model).backward()
        muon.step()
        with pytest.raises(RuntimeError, match=r"collect was called after optimizer\.step\(\); call it before"):
            probe.collect(0)


def test_a_scaler_of_several_optimizers_is_undone():
    model = network()
    gradients = torch.autograd.grad(loss_of(model), list(model.parameters()))
    expected = [g.double().norm().log10().item() for g in gradients if g.dim() > 1]
    muon, adamw = muon_and_adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with GradientProbe(model, optimizer=[muon, adamw], scaler=scaler) as probe:
        scaler.scale(loss_of(model)).backward()
        scaler.unscale_(muon)
        scaler.unscale_(adamw)
        probe.collect(0)
        scaler.step(muon)
        scaler.step(adamw)
        scaler.update()
        model.zero_grad()
        scaler.scale(loss_of(model)).backward()
        scaler.unscale_(muon)
        with pytest.raises(RuntimeError, match="unscale those of all before collect"):
            probe.collect(1)
    assert probe.history.profile("weight_grad", 0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("adam", "a str"),
        (torch.optim.SGD, "the class SGD"),
        ([3], "a int"),
        ({}, "a dict"),
        (nn.Linear(2, 2), "a Linear"),
    ],
)
def test_what_is_no_optimizer_is_named(given, what):
    with pytest.raises(TypeError, match=rf"^optimizer must be a torch.optim.Optimizer, got {what}$"):
        unwrapped(given)


def test_wrappers_of_other_libraries_are_taken_off():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    joined = type("Joined", (), {"chained_optimizers": [optimizer, Wrapper(optimizer)]})()
    opacus = type("Opacus", (), {"original_optimizer": optimizer})()
    for given in (optimizer, iter([optimizer]), (optimizer, optimizer), Wrapper(Wrapper(optimizer)), joined, opacus):
        assert [id(one) for one in unwrapped(given)] == [id(optimizer)]
    assert unwrapped(None) == []
