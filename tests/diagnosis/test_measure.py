import contextlib
import copy
import gc
import math
import random
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradexp import MLP, initialize, measure
from gradexp.history.step import STATUSES


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(), nn.Linear(48, 4)
    )


def batch():
    return torch.randn(5, 1, 6, 6), torch.randint(4, (5,))


def test_sizes_are_those_of_plain_autograd():
    model, (x, y) = convolutional().double().eval(), batch()
    x = x.double()
    history = measure(model, F.cross_entropy, (x, y))
    z1 = model[0](x)
    z2 = model[5](F.relu(model[1](z1)).flatten(1))
    weights = [model[0].weight, model[5].weight]
    found = torch.autograd.grad(F.cross_entropy(z2, y), [z1, z2, *weights])
    logs = [math.log10(gradient.norm().item()) for gradient in found]
    assert history.names == ["0", "5"]
    rms = [math.log10(z.detach().square().mean().sqrt()) for z in (z1, z2)]
    assert history.profile("output") == pytest.approx(rms, abs=1e-12)
    assert history.profile("output_grad") == pytest.approx(logs[:2], abs=1e-12)
    assert history.profile("weight_grad") == pytest.approx(logs[2:], abs=1e-12)


def assert_equal_states(model, before):
    assert all(torch.equal(now, then) for now, then in zip(model.state_dict().values(), before.values(), strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_the_model_is_left_as_it_was_found(training, with_gradients):
    model, (x, y) = convolutional().train(training), batch()
    model[3].eval()
    if with_gradients:
        F.cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad for parameter in model.parameters()]
    values = [None if gradient is None else gradient.clone() for gradient in gradients]
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    measure(model, F.cross_entropy, (x, y))
    assert_equal_states(model, before)
    assert all(p.grad is then for p, then in zip(model.parameters(), gradients, strict=True))
    assert all(g is None or torch.equal(g, v) for g, v in zip(gradients, values, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_model_is_left_as_it_was_found_after_an_error():
    model, (x, y) = convolutional(), batch()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()

    def broken(output, target):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure(model, broken, (x, y))
    assert_equal_states(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_of_inputs_are_left_alone():
    x = torch.randn(2, 3, requires_grad=True)
    x.grad = torch.ones(2, 3)
    measure(nn.Linear(3, 1), lambda y: y.sum(), x)
    assert torch.equal(x.grad, torch.ones(2, 3))


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, scale):
        return self.linear(x) * scale


def test_inputs_may_be_a_tensor_a_tuple_or_a_mapping():
    model, x, y = Keywords(), torch.randn(4, 3), torch.randn(4, 2)
    expected = measure(model, F.mse_loss, ((x, 2.0), y)).profile("weight_grad")
    assert measure(model, F.mse_loss, [{"x": x, "scale": 2.0}, y]).profile("weight_grad") == pytest.approx(expected)
    alone = measure(model, lambda output: F.mse_loss(output, y), {"x": x, "scale": 2.0})
    assert alone.profile("weight_grad") == pytest.approx(expected)
    assert measure(model.linear, F.mse_loss, (x, y)).depth == 1


def test_it_works_where_gradients_are_switched_off():
    model, (x, y) = convolutional(), batch()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            history = measure(model, F.cross_entropy, (x, y))
        assert history.status["output_grad"].max() == 0


def test_150_layers_with_torchs_own_weights_are_told_where_the_gradient_dies():
    model = initialize(MLP([64, *[32] * 149, 10], "relu"), "torch_default", seed=0)
    verdict = measure(model, F.cross_entropy, (torch.randn(64, 64), torch.randint(10, (64,)))).verdict()
    assert verdict.gradient == "vanishing"
    (text,) = [finding.text for finding in verdict.findings if finding.kind == "vanishing"]
    assert "; it is below float32's smallest normal number from layers." in text
    assert " and exactly 0 from layers." in text


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"batch": (1, 2, 3)},
            TypeError,
            r"batch must be \(inputs, target\), a tensor or a mapping, got 3 items; for .*",
        ),
        ({"batch": 1.0}, TypeError, r"batch must be \(inputs, target\), a tensor or a mapping, got float; for .*"),
        ({"loss_fn": None}, TypeError, r"loss_fn must be a function or module that returns a loss, got None"),
        (
            {"loss_fn": nn.MSELoss},
            TypeError,
            r"loss_fn must be a function or module that returns a loss, got the class MSELoss; call it first",
        ),
        (
            {"model": nn.Linear(3, 1, device="meta")},
            ValueError,
            r"the model is on the meta device, where there are no numbers to measure",
        ),
        ({"model": 3.0}, TypeError, r"model must be an nn.Module, got a float"),
        ({"loss_fn": lambda y: y}, ValueError, r"loss_fn must return one number, got a tensor of shape \(2, 1\)"),
        ({"loss_fn": lambda y: 1.0}, TypeError, r"loss_fn must return a tensor, got float"),
        (
            {"loss_fn": lambda y: y.detach().sum()},
            ValueError,
            r"the loss does not depend on any parameter that requires a gradient: detach\(\) cuts them off "
            r"\(test_measure\.py:\d+\)",
        ),
    ],
)
def test_a_mistake_gets_one_clear_line(given, error, message):
    arguments = {"model": nn.Linear(3, 1), "loss_fn": lambda y: y.sum(), "batch": torch.ones(2, 3), **given}
    with pytest.raises(error, match=rf"^{message}$"):
        measure(**arguments)


def gradient_size(model, x):
    twin = copy.deepcopy(model).double()
    return torch.autograd.grad(twin(x.double()).square().sum(), twin.weight)[0].norm().item()


logged = []


def steps(parameter):
    parameter.data.sub_(parameter.grad)


@pytest.mark.parametrize("hook", [steps, logged.append])
def test_hooks_that_run_once_a_gradient_is_complete_do_not_run(hook):
    model, x = nn.Linear(3, 1), torch.ones(2, 3)
    model.weight.register_post_accumulate_grad_hook(hook)
    before = model.weight.detach().clone()
    history = measure(model, lambda y: y.square().sum(), x)
    assert torch.equal(model.weight, before)
    assert 10 ** history.profile("weight_grad")[0] == pytest.approx(gradient_size(model, x), rel=1e-6)
    assert not logged
    model(x).sum().backward()  # after it they run again
    assert logged or not torch.equal(model.weight, before)
    logged.clear()


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*:UserWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_hooks_that_move_gradients_away_get_none_of_a_measurement(reentrant):
    class Model(nn.Sequential):
        def forward(self, x):
            return checkpoint(self[0], x, use_reentrant=True) if reentrant else self[0](x)

    model, x = Model(nn.Linear(3, 2)), torch.ones(2, 3, requires_grad=True)
    weight = model[0].weight
    weight.main_grad = torch.ones(2, 3)
    node = weight.view_as(weight).grad_fn.next_functions[0][0]

    def move(*_):
        weight.main_grad.add_(weight.grad)
        weight.grad = None

    node.register_hook(move)
    history = measure(model, lambda y: y.square().sum(), x)
    assert torch.equal(weight.main_grad, torch.ones(2, 3))
    assert weight.grad is None
    if reentrant:
        assert STATUSES[history.status["weight_grad"][0, 0, 0]] == "hook_missed"
    else:
        assert 10 ** history.profile("weight_grad")[0] == pytest.approx(gradient_size(model[0], x.detach()), rel=1e-6)
    y = model[0](x.detach()).detach()
    assert 10 ** history.profile("output_grad")[0] == pytest.approx((2 * y).norm().item(), rel=1e-6)


def test_passes_inside_a_measured_loss_do_not_count_whoever_holds_its_graph():
    model = nn.Linear(3, 1)
    x = torch.ones(2, 3, requires_grad=True)
    held = model(x)  # as an earlier loss that is still a variable

    def loss(y):
        return (torch.autograd.grad(y.square().sum(), x, create_graph=True)[0] ** 2).sum()

    history = measure(model, loss, x)
    # The slope is 2 y w, so that d loss / dy = 8 y |w|^2.
    size = (8 * held * model.weight.square().sum()).norm().item()
    assert 10 ** history.profile("output_grad")[0] == pytest.approx(size, rel=1e-5)


class Actor(nn.Module):
    """A policy whose loss needs two methods, and neither is ``forward``."""

    def __init__(self):
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 1)

    def log_probability(self, x):
        return F.log_softmax(self.policy(torch.tanh(self.body(x))), dim=-1)

    def worth(self, x):
        return self.value(torch.tanh(self.body(x)))


def test_a_loss_of_several_methods_is_measured_by_a_closure():
    model, x = Actor().double(), torch.randn(4, 3, dtype=torch.double)

    def loss():
        return model.worth(x).square().mean() - model.log_probability(x)[:, 0].mean()

    history = measure(model, loss)
    expected = torch.autograd.grad(loss(), [model.body.weight, model.policy.weight, model.value.weight])
    found = dict(zip(history.names, history.profile("weight_grad"), strict=True))
    for name, gradient in zip(("body", "policy", "value"), expected, strict=True):
        assert found[name] == pytest.approx(gradient.norm().log10().item(), abs=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert history.loss[0, 0] == pytest.approx(loss().item(), abs=1e-12)


def test_a_closure_in_place_of_a_batch_gives_the_same_numbers():
    model, (x, y) = convolutional().eval(), batch()
    with_batch = measure(model, F.cross_entropy, (x, y))
    assert measure(model, lambda: F.cross_entropy(model(x), y)).log10.keys() == with_batch.log10.keys()
    for quantity, values in measure(model, lambda: F.cross_entropy(model(x), y)).log10.items():
        assert np.array_equal(values, with_batch.log10[quantity], equal_nan=True)


def test_closures_that_cannot_be_measured_are_refused_in_a_line():
    model, (x, y) = convolutional().eval(), batch()
    with pytest.raises(TypeError, match="loss_fn needs arguments; give a batch, or a function without any"):
        measure(model, F.cross_entropy)
    loss = F.cross_entropy(model(x), y)
    with pytest.raises(ValueError, match="the loss was computed before; compute it in the function"):
        measure(model, lambda: loss)
    loss.backward()  # its graph is still there

    def with_backward():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"must return the loss without calling backward\(\)"):
        measure(model, with_backward)


def test_complex_weights_are_measured():
    layers = [nn.Linear(4, 4, dtype=torch.cdouble) for _ in range(2)]
    model, x = nn.Sequential(*layers), torch.randn(5, 4, dtype=torch.cdouble)
    expected = torch.autograd.grad(model(x).abs().square().sum(), [layer.weight for layer in layers])
    history = measure(model, lambda y: y.abs().square().sum(), x)
    assert history.profile("weight_grad") == pytest.approx([g.norm().log10().item() for g in expected], abs=1e-12)
    assert not history.findings[0]
    with torch.no_grad():
        layers[0].weight.copy_(layers[0].weight[:1].expand(4, 4))
        layers[0].bias.fill_(1j)
        layers[1].weight.copy_(layers[1].weight[:, :1].expand(4, 4))
    kinds = [finding.kind for finding in measure(model, lambda y: y.abs().square().sum(), x).findings[0]]
    assert "equal units" in kinds


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_measured(layout):
    parts = [torch.randn(3, 4), torch.randn(5, 4)]
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))

    def loss(y):
        return sum(part.square().sum() for part in y.unbind())

    history = measure(model, loss, torch.nested.nested_tensor(parts, layout=layout))
    expected = measure(model, lambda y: y.square().sum(), torch.cat(parts))
    for quantity in ("output", "output_grad", "weight_grad"):
        assert history.profile(quantity) == pytest.approx(expected.profile(quantity), abs=1e-5)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_sparse_inputs_are_measured(layout):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Sparse()

        def forward(self, x):
            return self.layer(x)

    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return x @ self.weight

    model, x = Model(), torch.eye(4) * 2
    history = measure(model, F.mse_loss, (x.to_sparse(layout=layout), torch.zeros(4, 3)))
    expected = measure(model, F.mse_loss, (x, torch.zeros(4, 3)))
    assert history.profile("weight_grad") == pytest.approx(expected.profile("weight_grad"), abs=1e-5)


def test_a_default_device_elsewhere_changes_nothing():
    torch.manual_seed(0)
    model, (x, y) = convolutional().eval(), batch()
    expected = measure(model, F.cross_entropy, (x, y))
    with torch.device("meta"):
        history = measure(model, F.cross_entropy, (x, y))
    assert np.array_equal(history.profile("weight_grad"), expected.profile("weight_grad"))
    assert history.findings == expected.findings


def test_a_single_sample_is_refused_where_batch_norm_trains():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    one = torch.ones(1, 3)
    with pytest.raises(ValueError, match=r"^batch norm cannot train on a single sample; give .*: model\.eval\(\)$"):
        measure(model, torch.mean, one)
    assert measure(model.eval(), torch.mean, one).depth == 2


class Gated(nn.Module):
    """A branch that a zero closes, and an activation that lets nothing through."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.gate = nn.Linear(3, 3), nn.Linear(3, 3), nn.Parameter(torch.zeros(1, 1))

    def forward(self, x):
        return torch.log_softmax(self.a(x) + self.gate * self.b(x).relu(), -1)


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("kind", ["healthy", "gated", "saturated", "nan", "failing"])
def test_nothing_of_a_measurement_is_left_in_memory(kind):
    model, x = Gated(), torch.randn(4, 3)
    with torch.no_grad():
        if kind in ("healthy", "failing"):
            model.gate.fill_(1.0)
        if kind == "saturated":
            model.b.bias.fill_(-100.0)
            model.gate.fill_(1.0)
        if kind == "nan":
            model.a.weight.fill_(torch.nan)

    def loss(y):
        y = y.square().mean()
        if kind == "failing":
            y.register_hook(lambda _: 1 / 0)
        return y

    with contextlib.suppress(ZeroDivisionError):
        measure(model, loss, x)
    parameters = [weakref.ref(parameter) for parameter in model.parameters()]
    del model
    gc.collect()
    assert not any(reference() is not None for reference in parameters)
