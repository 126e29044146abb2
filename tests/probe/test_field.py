"""The probe in loops as their communities write them, against ``torch.autograd.grad`` of float64 copies.

Each loop is one function. It runs once with a probe, and once in float64, where outputs are kept and ``backward`` is
put off.
"""

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, autograd, nn

from gradexp import GradientProbe
from gradexp.history.step import STATUSES


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def run_probed(model, loop):
    """Run a loop in float32; return ``name -> log10`` of each output gradient, or its status if it has none."""
    with GradientProbe(model) as probe:
        loop(Tensor.backward, collect=probe.collect)
    history = probe.history
    return {
        (name, call): float(number) if STATUSES[code] == "ok" else STATUSES[code]
        for name, call, number, code in zip(
            history.names,
            history.calls,
            history.log10["output_grad"][-1, 0],
            history.status["output_grad"][-1, 0],
            strict=True,
        )
    }


class ReachedError(Exception):
    """The loop has come to the collect."""


def run_in_float64(model, loop):
    """Run a loop up to the collect; return the same as ``run_probed``, by ``autograd.grad``."""
    outputs, losses, calls = {}, [], {}

    def keep(name, _module, _args, output):
        call = calls[name] = calls.get(name, -1) + 1
        if output.requires_grad:
            outputs.setdefault((name, call), []).append(output)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(partial(keep, name))
    model.register_forward_pre_hook(lambda *_: calls.clear())

    def collect(*_):
        raise ReachedError

    with pytest.raises(ReachedError):
        loop(losses.append, collect=collect, forget=losses.clear)
    cells = {}
    for key, tensors in outputs.items():
        found = autograd.grad(sum(losses), tensors, retain_graph=True, allow_unused=True)
        norm = math.sqrt(sum(g.square().sum().item() for g in found if g is not None))
        cells[key] = math.log10(norm) if norm else "unused"
    return cells


def nothing(*_):
    pass


def compare(build, loop, watched=lambda parts: parts):
    """Run a loop both ways and compare to 1e-5."""
    parts = build()
    twins = copy.deepcopy(parts).double()
    expected = run_in_float64(watched(twins), partial(loop, twins))
    got = run_probed(watched(parts), partial(loop, parts))
    assert sum(isinstance(value, float) for value in expected.values()) > 1
    for key, value in expected.items():
        assert got[key] == (pytest.approx(value, abs=4.3e-6) if isinstance(value, float) else value), key


def points(*shape, like, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(next(like.parameters()).dtype)


# --- A physics-informed network: Burgers' equation ---


class PINN(nn.Module):
    def __init__(self, layers=(2, 10, 10, 1)):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(layers)])

    def forward(self, x, t):
        a = torch.cat([x, t], dim=1)
        for linear in self.linears[:-1]:
            a = torch.tanh(linear(a))
        return self.linears[-1](a)


def train_pinn(model, backward, collect=nothing, forget=nothing):
    x, t = (points(20, 1, like=model, seed=seed).requires_grad_() for seed in (1, 2))
    x_data, t_data = (points(6, 1, like=model, seed=seed) for seed in (3, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0)
    for step in range(2):
        optimizer.zero_grad()
        forget()
        u = model(x, t)
        u_t = autograd.grad(u, t, torch.ones_like(u), retain_graph=True, create_graph=True)[0]
        u_x = autograd.grad(u, x, torch.ones_like(u), retain_graph=True, create_graph=True)[0]
        u_xx = autograd.grad(u_x, x, torch.ones_like(u_x), retain_graph=True, create_graph=True)[0]
        residual = u_t + u * u_x - (0.01 / math.pi) * u_xx
        loss = F.mse_loss(residual, torch.zeros_like(residual))
        loss = loss + F.mse_loss(model(x_data, t_data), -torch.sin(math.pi * x_data))
        backward(loss)
        if step:
            collect(step)
        optimizer.step()


def test_a_physics_informed_network():
    compare(PINN, train_pinn)


# --- A critic with gradient penalty, and its generator ---


def mlp(*widths, activation=nn.Tanh):
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def gan():
    return nn.ModuleDict({"generator": mlp(3, 8, 4), "critic": mlp(4, 8, 8, 1)})


def gradient_penalty(critic, real, fake):
    alpha = torch.linspace(0, 1, len(real)).to(real.dtype)[:, None]
    between = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
    scores = critic(between)
    gradients = autograd.grad(
        outputs=scores,
        inputs=between,
        grad_outputs=torch.ones_like(scores),
        create_graph=True,
        retain_graph=True,
        only_inputs=True,
    )[0]
    return ((gradients.norm(2, dim=1) - 1) ** 2).mean()


def train_critic(gan, backward, collect=nothing, forget=nothing):
    generator, critic = gan["generator"], gan["critic"]
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=0, betas=(0.5, 0.9))
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=0, betas=(0.5, 0.9))
    for step in range(2):
        optimizer_d.zero_grad()
        forget()
        real, z = points(9, 4, like=gan, seed=1), points(9, 3, like=gan, seed=2)
        fake = generator(z).detach()
        d_loss = critic(fake).mean() - critic(real).mean() + 10 * gradient_penalty(critic, real, fake)
        backward(d_loss)
        if step:  # the window reaches back over the generator's pass
            collect(step)
        optimizer_d.step()

        optimizer_g.zero_grad()
        backward(-critic(generator(z)).mean())
        optimizer_g.step()


def test_a_critic_with_gradient_penalty():
    compare(gan, train_critic, lambda gan: gan["critic"])


def train_generator(gan, backward, collect=nothing, forget=nothing):
    generator, critic = gan["generator"], gan["critic"]
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=0)
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=0)
    real, z = points(9, 4, like=gan, seed=1), points(9, 3, like=gan, seed=2)
    for step in range(2):
        optimizer_d.zero_grad(set_to_none=False)
        backward(F.softplus(-critic(real)).mean() + F.softplus(critic(generator(z).detach())).mean())
        optimizer_d.step()
        optimizer_g.zero_grad(set_to_none=False)
        forget()
        backward(F.softplus(-critic(generator(z))).mean())
        if step:
            collect(step)
        optimizer_g.step()


def test_a_generator_of_the_same_loop():
    compare(gan, train_generator, lambda gan: gan["generator"])


# --- Energies and forces ---


class Potential(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(9, 32, 32, 1)

    def forward(self, positions):
        positions = positions.requires_grad_(True)
        distances = (positions[:, :, None] - positions[:, None]).square().sum(-1)
        energy = self.net(distances.flatten(1)).sum(dim=1)
        (slope,) = autograd.grad([energy], [positions], grad_outputs=[torch.ones_like(energy)], create_graph=True)
        return energy, -slope


def train_potential(model, backward, collect=nothing, forget=nothing):
    positions = points(16, 3, 3, like=model, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0)
    for step in range(2):
        optimizer.zero_grad(set_to_none=True)
        forget()
        energy, forces = model(positions.clone())
        loss = F.mse_loss(energy, torch.ones_like(energy)) + 100 * F.mse_loss(forces, torch.zeros_like(forces))
        backward(1e-3 * loss)
        if step:
            collect(step)
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()


def test_a_potential_of_energies_and_forces():
    compare(Potential, train_potential)


# --- A deep equilibrium model ---


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 5), nn.Linear(4, 5)
        with torch.no_grad():
            self.inner.weight.mul_(0.3)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.outer(x))


def forward_iteration(f, x0):
    x = x0
    for _ in range(60):
        x = f(x)
    return x


class DEQFixedPoint(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.head = Cell(), nn.Linear(5, 2)

    def forward(self, x):
        # Compute the fixed point without a tape, then re-engage the tape with one more call.
        with torch.no_grad():
            z = forward_iteration(lambda z: self.f(z, x), torch.zeros(len(x), 5, dtype=x.dtype))
        z = self.f(z, x)
        z0 = z.clone().detach().requires_grad_()
        f0 = self.f(z0, x)

        def backward_hook(grad):
            return forward_iteration(lambda y: autograd.grad(f0, z0, y, retain_graph=True)[0] + grad, grad)

        if z.requires_grad:
            z.register_hook(backward_hook)
        return self.head(z)


def train_equilibrium(model, backward, collect=nothing, forget=nothing):
    x = points(6, 4, like=model, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0)
    for step in range(2):
        optimizer.zero_grad()
        forget()
        backward(F.cross_entropy(model(x), torch.tensor([0, 1, 0, 1, 1, 0])))
        if step:
            collect(step)
        optimizer.step()


def test_a_deep_equilibrium_model():
    compare(DEQFixedPoint, train_equilibrium)


# --- Model-agnostic meta-learning, first and second order ---


def train_meta(first_order, model, backward, collect=nothing, forget=nothing):
    optimizer = torch.optim.Adam(model.parameters(), lr=0)
    for step in range(2):
        optimizer.zero_grad()
        forget()
        for task in range(2):
            x_support, x_query = (points(5, 2, like=model, seed=10 * task + i) for i in range(2))
            fast = dict(model.named_parameters())
            for _ in range(2):
                support = F.mse_loss(
                    torch.func.functional_call(model, fast, (x_support,)), x_support.prod(1)[:, None]
                )
                gradients = autograd.grad(support, list(fast.values()), create_graph=not first_order)
                fast = {name: w - 0.1 * g for (name, w), g in zip(fast.items(), gradients, strict=True)}
            query = F.mse_loss(torch.func.functional_call(model, fast, (x_query,)), x_query.prod(1)[:, None])
            backward(query)
        if step:
            collect(step)
        optimizer.step()


@pytest.mark.parametrize("first_order", [True, False])
def test_model_agnostic_meta_learning(first_order):
    compare(partial(mlp, 2, 6, 6, 1), partial(train_meta, first_order))


# --- Sharpness-aware minimisation: the second of two passes is the one that trains ---


def train_sharp(model, backward, collect=nothing, forget=nothing):
    x = points(8, 2, like=model, seed=1)
    for step in range(2):
        model.zero_grad()
        forget()
        loss = model(x).square().mean()
        slopes = autograd.grad(loss, list(model.parameters()), retain_graph=True)
        backward(loss)
        with torch.no_grad():
            for parameter, slope in zip(model.parameters(), slopes, strict=True):
                parameter.add_(0.05 * slope)
        model.zero_grad()
        forget()
        backward(model(x).square().mean())
        if step:
            collect(step)
        with torch.no_grad():
            for parameter, slope in zip(model.parameters(), slopes, strict=True):
                parameter.sub_(0.05 * slope)


def test_sharpness_aware_minimisation():
    compare(partial(mlp, 2, 6, 1), train_sharp)
