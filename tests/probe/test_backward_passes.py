"""Which backward passes count, each number checked against ``torch.autograd.grad`` of a float64 copy of the model."""

import copy
import gc
import math
import threading
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import grad
from torch.nn.parameter import Parameter
from torch.utils.checkpoint import checkpoint

from gradexp import GradientProbe
from gradexp.history.step import STATUSES


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


X = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))


def doubled(model):
    return copy.deepcopy(model).double()


def expected(model, step, *data):
    """Return ``(name, call) -> log10`` of the gradient of all that is accumulated, None where there is none.

    Args:
        model: Any module; a float64 copy is run.
        step: A function of the model, of what stands for ``loss.backward()``, and of the data.
        data: Tensors.
    """
    model = doubled(model)
    outputs, losses, calls = {}, [], {}

    def begin(*_):
        calls.clear()

    def keep(name, _module, _args, output):
        if output.requires_grad:
            call = calls[name] = calls.get(name, -1) + 1
            outputs.setdefault((name, call), []).append(output)

    model.register_forward_pre_hook(begin)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.register_forward_hook(partial(keep, name))

    def backward(loss, counts=True, **_):
        if counts:
            losses.append(loss)

    step(model, backward, *(tensor.double() for tensor in data))
    cells = {}
    for key, tensors in outputs.items():
        gradients = [g for g in grad(sum(losses), tensors, retain_graph=True, allow_unused=True) if g is not None]
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        cells[key] = (math.log10(norm) if norm else "zero") if gradients else None
    return cells


def backward(loss, counts=True, **options):
    loss.backward(**options)


def recorded(history, quantity="output_grad"):
    """Return ``(name, call) -> log10`` of the first recorded step, or the status where there is no number."""
    columns = zip(history.names, history.calls, history.status[quantity][0, 0], strict=True)
    numbers = history.log10[quantity][0, 0]
    return {
        (name, call): float(number) if STATUSES[code] == "ok" else STATUSES[code]
        for (name, call, code), number in zip(columns, numbers, strict=True)
    }


def observed(model, step, *data, select=None, **options):
    with GradientProbe(model, select, **options) as probe:
        step(model, backward, *data)
        probe.collect(0)
    return probe.history


def assert_right(got, wanted):
    """Compare numbers to 1e-5 of their size, which is 4.3e-6 of log10."""
    assert set(wanted) <= set(got)
    for key, value in wanted.items():
        value = "unused" if value is None else value
        assert got[key] == (pytest.approx(value, abs=4.3e-6) if isinstance(value, float) else value), key


def check(step, *data, model=None):
    model = net() if model is None else model
    wanted = expected(model, step, *data)
    assert_right(recorded(observed(model, step, *data)), wanted)
    return wanted


# --- Passes inside the loss ---


def penalty(model, backward, x):
    x = x.clone().requires_grad_()
    (slope,) = grad(model(x).sum(), x, create_graph=True)
    backward(1e-3 * (slope.norm(dim=1) - 1).square().mean())


def value_and_second_derivative(model, backward, x):
    x = x.clone().requires_grad_()
    u = model(x)
    (slope,) = grad(u.sum(), x, create_graph=True)
    (curvature,) = grad(slope.sum(), x, create_graph=True)
    backward((curvature.sum(1, keepdim=True) + u.sin()).square().mean())


def jacobian(vectorize, model, backward, x):
    rows = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), x, create_graph=True, vectorize=vectorize)
    backward(rows.square().sum() + model(x).mean())


def hessian(model, backward, x):
    curvature = torch.autograd.functional.hessian(lambda x: model(x).sum(), x[:2], create_graph=True)
    backward(curvature.square().sum())


def curvature_along_the_gradient(model, backward, x):
    loss = model(x).square().mean()
    slopes = grad(loss, list(model.parameters()), create_graph=True)
    products = grad(sum(s.square().sum() for s in slopes), list(model.parameters()), create_graph=True)
    backward(loss + sum(p.square().sum() for p in products))


def slope_without_a_graph(model, backward, x):
    x = x.clone().requires_grad_()
    loss = model(x).square().mean()
    (slope,) = grad(loss, x, retain_graph=True)
    backward(loss * slope.norm())


def attack_before_training(model, backward, x):
    start = x.clone().requires_grad_()
    (slope,) = grad(model(start).square().mean(), start)
    backward(model(x + 0.1 * slope.sign()).square().mean())


def slope_of_a_checkpoint(model, backward, x):
    x = x.clone().requires_grad_()
    (slope,) = grad(checkpoint(model, x, use_reentrant=False).sum(), x, create_graph=True)
    backward(slope.square().sum())


def slope_of_an_output(model, backward, x):
    hidden = model[2](model[0](x).tanh())
    (slope,) = grad(model[4](hidden.tanh()).sum(), hidden, create_graph=True)
    backward(slope.square().sum() + hidden.mean())


INSIDE = {
    "penalty": penalty,
    "second derivative": value_and_second_derivative,
    "jacobian": partial(jacobian, False),
    "vectorised jacobian": partial(jacobian, True),
    "hessian": hessian,
    "products with the hessian": curvature_along_the_gradient,
    "slope without a graph": slope_without_a_graph,
    "attack before training": attack_before_training,
    "slope of a checkpoint": slope_of_a_checkpoint,
    "slope with respect to an output": slope_of_an_output,
}


@pytest.mark.parametrize("kind", INSIDE)
def test_a_backward_pass_inside_the_loss_does_not_count(kind):
    wanted = check(INSIDE[kind], X)
    assert any(isinstance(value, float) for value in wanted.values())


def test_the_second_derivative_of_one_neuron_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    x = torch.ones(1, 1, requires_grad=True)

    def step(model, backward, x):
        backward(1e-6 * grad((model(x) ** 2).sum(), x, create_graph=True)[0].square().sum())

    # The slope is 2 u w, so that dL/du = 1e-6 * 2 * 2 u w * 2 w.
    assert 10 ** recorded(observed(model, step, x))["", 0] == pytest.approx(8e-6, rel=1e-6)


def test_a_penalty_that_is_exactly_0_is_exactly_0():
    def step(model, backward, x):
        x = x.clone().requires_grad_()
        backward(0 * grad(model(x).sum(), x, create_graph=True)[0].square().sum())

    got = recorded(observed(net(), step, X))
    # The last layer's own output has no part in its slope.
    assert got == {("0", 0): "zero", ("2", 0): "zero", ("4", 0): "unused"}


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*:UserWarning")
def test_a_reentrant_checkpoint_beside_an_inner_pass_changes_nothing():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope, self.value = net(), net()

        def forward(self, x, part=lambda module, x: module(x)):
            (slope,) = grad(self.slope(x).sum(), x, create_graph=True)
            return self.slope[0](slope).square().sum() + part(self.value, x).square().sum()

    def step(model, backward, x, **options):
        backward(model(x.clone().requires_grad_(), **options))

    model = Two()
    got = recorded(observed(model, partial(step, part=partial(checkpoint, use_reentrant=True)), X))
    assert_right(got, expected(model, step, X))


def test_gradients_that_are_put_there_by_hand_are_no_number():
    def step(model, _backward, x):
        parameters = list(model.parameters())
        for parameter, gradient in zip(parameters, grad(model(x).sum(), parameters), strict=True):
            parameter.grad = gradient

    history = observed(net(), step, X)
    assert set(recorded(history).values()) == {"hook_missed"}
    assert all(isinstance(value, float) for value in recorded(history, "weight_grad").values())


# --- Several passes over one graph ---


def two_losses(model, backward, x):
    z = model(x)
    backward(z.square().mean(), retain_graph=True)
    backward(-z.sin().mean())


def three_losses(model, backward, x):
    z = model(x)
    backward(z.square().mean(), retain_graph=True)
    backward(-z.sin().mean(), retain_graph=True)
    backward(z.exp().mean())


def another_pass_in_between(model, backward, x):
    first = model(x)
    backward(first.square().mean(), retain_graph=True)
    backward(model(2 * x).square().mean())
    backward(first.sin().mean())


def two_heads(model, backward, x):
    hidden = model[2](model[0](x).tanh())
    backward(hidden.square().mean(), retain_graph=True)
    backward(model[4](hidden.tanh()).mean())


def losses_that_cancel_out(model, backward, x):
    z = model(x)
    backward(z.square().mean(), retain_graph=True)
    backward(-z.square().mean(), retain_graph=True)
    backward(1e-3 * z.mean())


def graph_kept_for_nothing(model, backward, x):
    for factor in (1, 2):
        backward(model(factor * x).square().mean(), retain_graph=True)


def create_graph(model, backward, x):
    z = model(x)
    backward(z.square().mean(), create_graph=True)
    backward(z.sin().mean())


SEVERAL = {
    function.__name__: function
    for function in (
        two_losses,
        three_losses,
        another_pass_in_between,
        two_heads,
        losses_that_cancel_out,
        graph_kept_for_nothing,
        create_graph,
    )
}


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
@pytest.mark.parametrize("kind", SEVERAL)
def test_passes_over_one_graph_add_up_and_over_several_are_one_batch(kind):
    model = net()
    check(SEVERAL[kind], X, model=model)
    for parameter in model.parameters():
        parameter.grad = None  # with create_graph it is part of a cycle


def test_samples_and_statistics_are_those_of_the_sum():
    model = net()
    first = {"first": lambda t: t.flatten()[0]}
    history = observed(model, two_losses, X, per_sample=True, stats=first)
    z = (twin := doubled(model))[0](X.double())
    gradient = grad((out := twin[1:](z)).square().mean() - out.sin().mean(), z)[0]
    assert 10 ** history.samples[0, 0, 0] == pytest.approx(gradient.norm(dim=1).numpy(), rel=1e-5)
    assert history.stats["output_grad.first"][0, 0, 0] == pytest.approx(gradient[0, 0].item(), rel=1e-5)


def test_a_second_pass_that_nobody_expected_is_no_number():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, 4))

        def forward(self, x):
            return x + self.weight  # whose graph needs no tensor, so that it is never used up

    def step(model, backward, x):
        z = model(x)
        backward(z.sum())
        backward((2 * z).sum())

    assert recorded(observed(Shift(), step, X)) == {("", 0): "hook_missed"}


def test_two_passes_over_a_reentrant_checkpoint_are_no_number():
    def step(model, backward, x):
        z = checkpoint(model[2], model[0](x).tanh(), use_reentrant=True)
        backward(z.square().mean(), retain_graph=True)
        backward(z.sin().mean())

    got = recorded(observed(net(), step, X))
    assert got["2", 0] == "hook_missed"


def test_a_kept_gradient_goes_with_its_graph():
    freed = []
    model = net()
    with GradientProbe(model) as probe:
        z = model(X)
        z.register_hook(lambda g: freed.append(weakref.ref(g)))
        z.square().mean().backward(retain_graph=True)
        kept = sum(t.shape == (7, 6) for t in gc.get_objects() if type(t) is torch.Tensor)
        del z
        assert sum(t.shape == (7, 6) for t in gc.get_objects() if type(t) is torch.Tensor) < kept
        probe.collect()


# --- Only some leaves ---


def test_backward_to_some_weights_counts_where_it_goes():
    def step(model, backward, x):
        backward(model(x).square().mean(), inputs=[model[2].weight])

    model = net()
    wanted = expected(model, step, X)
    got = recorded(observed(model, step, X))
    assert got["4", 0] == pytest.approx(wanted["4", 0], abs=4.3e-6)
    assert got["2", 0] == pytest.approx(wanted["2", 0], abs=4.3e-6)
    assert got["0", 0] == "unused"  # the pass does not come there


def test_a_loss_counts_for_the_weights_that_it_trains():
    # As in a VAE-GAN: both losses come through the last layer, one of them trains it.
    def step(model, backward, x, first=True, second=True):
        z = model[4](model[2](model[0](x).tanh()).tanh())
        backward(z.square().mean(), inputs=[*model[0].parameters()], retain_graph=True, counts=first)
        backward(z.exp().mean(), inputs=[*model[4].parameters()], counts=second)

    model = net()
    got = recorded(observed(model, step, X))
    assert got["0", 0] == pytest.approx(expected(model, partial(step, second=False), X)["0", 0], abs=4.3e-6)
    assert got["4", 0] == pytest.approx(expected(model, partial(step, first=False), X)["4", 0], abs=4.3e-6)


def test_an_attack_on_the_input_does_not_count():
    def step(model, backward, x):
        start = x.clone().requires_grad_()
        backward(model(start).square().mean(), inputs=[start], counts=False)
        if start.grad is not None:
            start = start + 0.1 * start.grad.sign()
        backward(model(start.detach()).square().mean())

    model = net()
    got = recorded(observed(model, step, X))
    x = X.clone().requires_grad_()
    moved = X + 0.1 * grad(model(x).square().mean(), x)[0].sign()
    assert_right(got, expected(model, lambda model, back, x: back(model(x).square().mean()), moved))


def test_torch_autograd_backward_of_several_losses():
    def step(model, backward, x):
        first, second = model(x).square().mean(), model(2 * x).mean()
        if backward is globals()["backward"]:
            torch.autograd.backward([first, second], inputs=list(model.parameters()))
        else:
            backward(first + second)

    check(step, X)


def test_frozen_parts_have_the_gradient_that_they_pass_on():
    model = net()
    model[2].requires_grad_(False)
    check(lambda model, back, x: back(model(x).square().mean()), X, model=model)


def test_a_frozen_model_whose_input_is_trained():
    model = net().requires_grad_(False)
    check(lambda model, back, x: back(model(x.clone().requires_grad_()).square().mean()), X, model=model)


def test_a_saliency_map_of_a_frozen_model_is_no_number():
    def step(model, _backward, x):
        x = x.clone().requires_grad_()
        grad(model(x).sum(), x)

    assert set(recorded(observed(net().requires_grad_(False), step, X)).values()) == {"hook_missed"}


def test_weights_that_another_network_makes():
    hyper = nn.Linear(3, 24)
    code = torch.ones(3)

    def step(model, backward, x):
        net, hyper = model
        weights = {"weight": hyper(code.to(x.dtype)).reshape(6, 4), "bias": torch.zeros(6, dtype=x.dtype)}
        backward(torch.func.functional_call(net, weights, (x,)).square().mean())

    both = nn.ModuleList([nn.Linear(4, 6), hyper])
    wanted = expected(both, step, X)
    assert_right(recorded(observed(both, step, X)), wanted)
    with GradientProbe(both[0]) as probe:  # of which no parameter of its own is in the graph
        step(both, backward, X)
        probe.collect()
    assert recorded(probe.history)["", 0] == pytest.approx(wanted["0", 0], abs=4.3e-6)


# --- Gradients that are thrown away ---


def zero_in_place(model):
    model.zero_grad(set_to_none=False)


def set_to_none(model):
    model.zero_grad()


def thrown_away(reset, model, backward, x):
    backward(model(3 * x).square().mean(), counts=False)
    reset(model)
    backward(model(x).square().mean())


def accumulated(_reset, model, backward, x):
    for scale in (1, 2):
        backward(model(scale * x).square().mean())


def clipped_in_between(_reset, model, backward, x):
    backward(model(x).square().mean())
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.5)
    backward(model(2 * x).square().mean())


def thrown_away_over_one_graph(reset, model, backward, x):
    z = model(x)
    backward(z.square().mean(), retain_graph=True, counts=False)
    reset(model)
    backward(z.sin().mean(), retain_graph=True)
    backward(z.exp().mean())


def thrown_away_twice(reset, model, backward, x):
    for scale in (5, 4):
        backward(model(scale * x).square().mean(), counts=False)
        reset(model)
    backward(model(x).square().mean())
    backward(model(2 * x).square().mean())


@pytest.mark.parametrize("reset", [set_to_none, zero_in_place])
@pytest.mark.parametrize(
    "kind", [thrown_away, accumulated, clipped_in_between, thrown_away_over_one_graph, thrown_away_twice]
)
def test_a_pass_counts_if_its_gradients_are_still_there(kind, reset):
    check(partial(kind, reset), X)


def test_a_pass_that_an_optimizer_has_used_before_its_gradients_are_thrown_away_does_not_count():
    def step(model, backward, x, lr=0.0):
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        backward(model(3 * x).square().mean(), counts=False)
        optimizer.step()
        optimizer.zero_grad()
        backward(model(x).square().mean())

    check(step, X)


def test_outputs_of_passes_that_were_thrown_away_are_left_out():
    history = observed(net(), partial(thrown_away, set_to_none), X)
    torch.manual_seed(0)
    assert 10 ** recorded(history, "output")["0", 0] == pytest.approx(net()[0](X).square().mean().sqrt().item())


@pytest.mark.parametrize("reset", [set_to_none, zero_in_place])
def test_a_collect_after_everything_was_thrown_away_is_refused(reset):
    model = net()
    with GradientProbe(model) as probe:
        model(X).mean().backward()
        reset(model)
        with pytest.raises(RuntimeError, match=r"call collect after loss.backward\(\) and before zero_grad\(\)"):
            probe.collect()


def test_gradients_that_were_thrown_away_in_a_part_do_not_count_there():
    def step(model, backward, x, counts=True):
        backward(model(3 * x).square().mean(), counts=counts)
        model[4].zero_grad()
        backward(model(x).square().mean())

    model = net()
    got = recorded(observed(model, step, X))
    both, last = expected(model, step, X), expected(model, partial(step, counts=False), X)
    assert [got["0", 0], got["2", 0]] == pytest.approx([both["0", 0], both["2", 0]], abs=4.3e-6)
    assert got["4", 0] == pytest.approx(last["4", 0], abs=4.3e-6)


def test_a_module_without_weights_is_no_number_where_its_neighbours_differ():
    def step(model, backward, x):
        backward(model(3 * x).square().mean())
        model[4].zero_grad()
        backward(model(x).square().mean())

    assert recorded(observed(net(), step, X, select="1"))["1", 0] == "hook_missed"


def test_gradients_that_are_combined_by_hand_are_no_number():
    # As where those of several tasks are made not to contradict each other.
    def step(model, backward, x):
        z, gradients = model(x), []
        for loss in (z.square().mean(), z.sin().mean()):
            model.zero_grad()
            backward(loss, retain_graph=True)
            gradients.append([parameter.grad for parameter in model.parameters()])
        for parameter, *pair in zip(model.parameters(), *gradients, strict=True):
            parameter.grad = pair[0] + pair[1].clamp(min=0)

    history = observed(net(), step, X)
    assert set(recorded(history).values()) == {"hook_missed"}
    assert all(isinstance(value, float) for value in recorded(history, "weight_grad").values())


def test_averaging_gradients_by_hand_leaves_them_as_they_came():
    def step(model, backward, x):
        for scale in (1, 2):
            backward(model(scale * x).square().mean())
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad / 2

    check(step, X)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_part_that_is_passed_through_for_another_part_keeps_to_its_own_loss(frozen):
    def step(model, backward, x, generator=True, critic=True):
        model.critic.requires_grad_(not frozen)
        fake = model.generator(x)
        inputs = None if frozen else [*model.generator.parameters()]
        backward(-model.critic(fake).mean(), counts=generator, inputs=inputs)
        model.critic.requires_grad_(True)
        backward(F.softplus(model.critic(fake.detach())).mean(), counts=critic)

    model = Both()
    got = recorded(observed(model, step, X))
    own = expected(model, partial(step, generator=False), X)
    for name in ("critic.0", "critic.2"):
        value = own[name, 0] if own.get((name, 0)) is not None else own[name, 1]
        key = (name, 0) if isinstance(got[name, 0], float) else (name, 1)
        assert got[key] == pytest.approx(value, abs=4.3e-6)
    other = expected(model, partial(step, critic=False), X)
    assert got["generator", 0] == pytest.approx(other["generator", 0], abs=4.3e-6)


# --- Where passes are run from ---


def test_a_pass_inside_no_grad_counts():
    def step(model, backward, x):
        loss = model(x).square().mean()
        if backward is globals()["backward"]:
            with torch.no_grad():
                backward(loss)
        else:
            backward(loss)

    check(step, X)


def test_a_pass_in_another_thread_counts():
    def step(model, backward, x):
        loss = model(x).square().mean()
        thread = threading.Thread(target=backward, args=(loss,))
        thread.start()
        thread.join()

    check(step, X)


def test_passes_in_several_threads_at_once_add_up():
    # Each thread has a loss of its own on one graph.
    def step(model, backward, x):
        z = model(x)
        threads = [
            threading.Thread(target=backward, args=(loss,), kwargs={"retain_graph": True})
            for loss in (z.square().mean(), z.sin().mean(), z.exp().mean())
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    model = net()
    wanted = expected(model, step, X)
    got = recorded(observed(model, step, X))
    for key, value in wanted.items():  # a pass that began while another ran knows nothing of it
        assert got[key] == "hook_missed" or got[key] == pytest.approx(value, abs=4.3e-6)


def test_a_pass_inside_a_hook_of_another_does_not_count_twice():
    # The implicit function theorem as deep equilibrium models use it.
    def step(model, backward, x):
        z = model[2](model[0](x).tanh())
        start = z.detach().clone().requires_grad_()
        inner = model[4](start.tanh()).sum()
        z.register_hook(lambda g: g + 0.5 * grad(inner, start, retain_graph=True)[0])
        backward(z.square().mean())

    check(step, X)


def test_a_hook_that_replaces_the_gradient_is_seen_whenever_it_was_registered():
    def step(model, backward, x):
        z = model[0](x)
        z.register_hook(lambda g: 3 * g)
        backward(model[1:](z).square().mean())

    check(step, X)


# --- Outputs that depend on each other ---


class Pair(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.function = function

    def forward(self, x):
        return self.function(x @ self.weight)


PAIRS = {
    "second used": (lambda u: (u, 100 * u), lambda u, v: v.sum()),
    "both used": (lambda u: (u, u.sigmoid()), lambda u, v: (u.square() + v).sum()),
    "first used": (lambda u: (u, u.exp()), lambda u, _: u.sin().sum()),
    "chain of three": (lambda u: (u, v := u.tanh(), v.exp()), lambda u, v, w: (u * v).sum() + w.sin().sum()),
    "a router": (
        lambda u: {"logits": u, "weights": u.softmax(-1).topk(2).values},
        lambda u, v: u.logsumexp(-1).square().mean() + v.square().sum(),
    ),
    "a part of it": (lambda u: (u, u[:, 0]), lambda u, v: u.sin().sum() + v.square().sum()),
    "used in place inside": (lambda u: (u, u.clone().mul_(2).add_(1)), lambda u, v: (u.sin() * v).sum()),
    "two ways": (lambda u: (u, u.tanh() + u[:, :1]), lambda u, v: u.sin().sum() + v.square().sum()),
    "the loss and what it is of": (lambda u: (u.square().mean(), u), lambda loss, _: loss),
    "independent": (lambda u: (u.sin(), u.cos()), lambda u, v: (u * v.exp()).sum()),
}


def values_of(output):
    return output.values() if isinstance(output, dict) else output


@pytest.mark.parametrize("kind", PAIRS)
def test_outputs_that_depend_on_each_other_have_the_gradients_of_full_backward_hooks(kind):
    function, loss = PAIRS[kind]
    model = Pair(function)
    twin = doubled(model)
    seen = []
    if isinstance(function(torch.ones(1, 4)), dict):  # which full backward hooks do not see
        twin.function = lambda u: tuple(function(u).values())
    twin.register_full_backward_hook(lambda _module, _inputs, outputs: seen.extend(outputs))
    loss(*twin(X.double().requires_grad_())).backward()
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in seen if gradient is not None))
    got = recorded(observed(model, lambda model, back, x: back(loss(*values_of(model(x)))), X))
    assert got["", 0] == pytest.approx(math.log10(norm), abs=4.3e-6)


def test_an_lstm_cell_has_the_gradients_of_full_backward_hooks():
    cell = nn.LSTMCell(4, 3)
    twin = doubled(cell)
    seen = []
    twin.register_full_backward_hook(lambda _module, _inputs, outputs: seen.extend(outputs))

    def loss(cell, x):
        hidden, memory = cell(x)
        return (hidden + 2 * memory).square().sum()

    loss(twin, X.double().requires_grad_()).backward()
    got = recorded(observed(cell, lambda model, back, x: back(loss(model, x)), X))
    assert got["", 0] == pytest.approx(math.log10(math.hypot(*(g.norm().item() for g in seen))), abs=4.3e-6)


def test_a_gradient_whose_digits_another_output_drowns_is_no_number():
    model = Pair(lambda u: (u, 1e6 * u))
    got = recorded(observed(model, lambda model, back, x: back(sum(t.sum() for t in model(x))), X))
    assert got["", 0] == "hook_missed"


# --- The tensor that a module returned ---


def test_samples_and_statistics_are_of_the_tensor_that_the_module_returned():
    x = torch.randn(2, 5, 4)
    first_token = {"first token": lambda t: t[:, 0].norm()}
    for bias in (True, False):
        model = nn.Sequential(nn.Linear(4, 8, bias=bias), nn.Tanh(), nn.Linear(8, 3, bias=bias))
        history = observed(
            model, lambda model, back, x: back(model(x).square().sum()), x, per_sample=True, stats=first_token
        )
        z = (twin := doubled(model))[0](x.double())
        (gradient,) = grad(twin[1:](z).square().sum(), z)
        assert history.samples.shape == (1, 1, 2, 2)
        assert 10 ** history.samples[0, 0, 0] == pytest.approx(gradient.flatten(1).norm(dim=1).numpy(), rel=1e-5)
        assert history.stats["output_grad.first token"][0, 0, 0] == pytest.approx(gradient[:, 0].norm().item())
        assert history.stats["output.first token"][0, 0, 0] == pytest.approx(z[:, 0].norm().item())


# --- Gradients that leave .grad ---


def move_away(model, buffers):
    """Add gradients to buffers by hooks on the nodes that accumulate them, as large training frameworks do."""
    nodes = []
    for name, parameter in model.named_parameters():
        buffers[name] = torch.zeros_like(parameter)

        def hook(*_, name=name, parameter=parameter):
            buffers[name] += parameter.grad
            parameter.grad = None

        nodes.append(parameter.view_as(parameter).grad_fn.next_functions[0][0])
        nodes[-1].register_hook(hook)
    return nodes


def test_gradients_that_a_hook_moves_away_are_missed_and_not_unused():
    model = nn.ModuleDict({"used": net(), "unused": nn.Linear(2, 2)})
    buffers = {}
    nodes = move_away(model, buffers)
    with GradientProbe(model) as probe:
        for step in range(2):
            for _ in range(2):
                model["used"](X).square().mean().backward()
            probe.collect(step)
    assert len(nodes) == 8
    weights = recorded(probe.history, "weight_grad")
    assert weights.pop(("unused", 0)) == "unused"
    assert set(weights.values()) == {"hook_missed"}
    wanted = expected(model, lambda model, back, x: back(model["used"](x).square().mean()), X)
    for key in [key for key in wanted if wanted[key] is not None]:  # of each of two passes
        assert recorded(probe.history)[key] == pytest.approx(wanted[key] + math.log10(2) / 2, abs=4.3e-6)


def test_a_parameter_is_no_weak_reference_away_from_being_swapped():
    model = net()
    with GradientProbe(model) as probe:
        model(X).mean().backward()
        probe.collect()
        assert all(isinstance(parameter, Parameter) for parameter in model.parameters())
        assert not any(weakref.getweakrefcount(parameter) for parameter in model.parameters())
