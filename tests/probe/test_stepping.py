"""What an optimizer's step was given: gradients of earlier steps, none at all, or 16 bits to change."""

import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import nn

from gradexp import GradientProbe

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)
CLEARS = ["none", "zero", "data"]


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def mlp(inputs=16, out=3):
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, out))


def clear(optimizer, how="none"):
    if how != "data":
        return optimizer.zero_grad(set_to_none=how == "none")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.data.zero_()
    return None


def sgd(model, lr=0.05):
    return torch.optim.SGD(model.parameters(), lr=lr)


def alarms(history, least=2):
    """Return what was found at any step."""
    return [f for step in range(len(history.steps)) for f in history.at(step).findings if f.severity >= least]


def train(model, optimizer, order, steps=12, every=1, x=X):
    with GradientProbe(model, every=every, optimizer=optimizer) as probe:
        for step in range(steps):
            order(lambda: F.cross_entropy(model(x).float(), Y), probe, step)
    return probe.history


@pytest.mark.parametrize("every", few([3, 1]))
@pytest.mark.parametrize("change", ["", "clip", "clip before"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_gradients_that_are_never_set_to_zero_are_told(every, change, kind):
    model = mlp()
    optimizer = kind(model.parameters(), lr=1e-3)
    optimizer.zero_grad()

    def order(loss, probe, step):
        value = loss()
        value.backward()
        if change == "clip before":
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        probe.collect(step, value)
        if change == "clip":
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()

    history = train(model, optimizer, order, every=every)
    assert "gradients pile up" not in {f.kind for f in history.at(0).findings}
    for step in range(1, len(history.steps)):
        (finding,) = (f for f in history.at(step).findings if f.kind == "gradients pile up")
        assert (finding.modules, finding.severity) == (("0", "2", "4"), 2)


@pytest.mark.parametrize("every", few([1, 3]))
@pytest.mark.parametrize("how", CLEARS)
@pytest.mark.parametrize("first", [True, False])
def test_gradients_that_are_set_to_zero_are_calm(every, how, first):
    model = mlp()
    optimizer = sgd(model)

    def order(loss, probe, step):
        if first:
            clear(optimizer, how)
        value = loss()
        value.backward()
        probe.collect(step)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        if not first:
            clear(optimizer, how)

    assert alarms(train(model, optimizer, order, every=every), least=1) == []


@pytest.mark.parametrize("every", few([1, 2]))
@pytest.mark.parametrize("how", few(CLEARS))
@pytest.mark.parametrize("is_first", [True, False], ids=["zero before", "zero after"])
def test_gradients_of_several_passes_to_a_step_are_calm(every, how, is_first):
    model = mlp()
    optimizer = sgd(model)

    def order(loss, probe, step):
        if is_first:
            clear(optimizer, how)
        for _ in range(4):
            (loss() / 4).backward()
        probe.collect(step)
        optimizer.step()
        if not is_first:
            clear(optimizer, how)

    assert alarms(train(model, optimizer, order, every=every), least=1) == []


def test_a_collect_after_each_of_several_passes_is_calm():
    model = mlp()
    optimizer = sgd(model)

    def order(loss, probe, step):
        loss().backward()
        probe.collect(step)
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()

    assert alarms(train(model, optimizer, order), least=1) == []


def test_a_collect_now_and_then_is_calm_and_sees_what_piles_up():
    for is_cleared in (True, False):
        model = mlp()
        optimizer = sgd(model, 1e-3)

        def order(loss, probe, step, optimizer=optimizer, is_cleared=is_cleared):
            loss().backward()
            if step % 5 == 4:
                probe.collect(step)
            optimizer.step()
            if is_cleared:
                optimizer.zero_grad(set_to_none=False)

        found = alarms(train(model, optimizer, order, steps=20))
        assert {f.kind for f in found} == (set() if is_cleared else {"gradients pile up"})


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.G, self.D = mlp(8, 2), mlp(2, 1)


@pytest.mark.parametrize("every", few([1, 3]))
@pytest.mark.parametrize("how", few(["zero", "none", "data"]))
@pytest.mark.parametrize("known", ["both", "D"])
@pytest.mark.parametrize("place", ["D", "G"])
def test_adversaries_each_of_which_is_set_to_zero_before_its_own_pass_are_calm(every, how, known, place):
    model = Pair()
    g, d = (torch.optim.Adam(part.parameters(), lr=1e-3) for part in (model.G, model.D))
    one = torch.ones(32, 1)
    with GradientProbe(model, every=every, optimizer=[g, d] if known == "both" else d) as probe:
        for step in range(10):
            clear(d, how)
            fake = model.G(torch.randn(32, 8))
            real = model.D(torch.randn(32, 2))
            loss = F.binary_cross_entropy_with_logits(real, one)
            loss = loss + F.binary_cross_entropy_with_logits(model.D(fake.detach()), 0 * one)
            loss.backward()
            if place == "D":
                probe.collect(step)
            d.step()
            clear(g, how)
            F.binary_cross_entropy_with_logits(model.D(fake), one).backward()  # adds to .grad of D, too
            if place == "G":
                probe.collect(step)
            g.step()
    assert [f for f in alarms(probe.history) if f.kind in ("gradients pile up", "updates")] == []


def test_a_closure_that_sets_gradients_to_zero_is_calm():
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def order(loss, probe, step):
        calls = []

        def closure():
            optimizer.zero_grad()
            value = loss()
            value.backward()
            if not calls:
                probe.collect(step)
            calls.append(1)
            return value

        optimizer.step(closure)

    found = alarms(train(model, optimizer, order, steps=4))
    assert [f for f in found if f.kind == "gradients pile up" or "set to zero" in f.text] == []


@pytest.mark.parametrize("how", CLEARS)
@pytest.mark.parametrize("every", [1, 2])
def test_gradients_set_to_zero_before_the_step_are_the_cause_of_a_step_that_does_nothing(how, every):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def order(loss, probe, step):
        loss().backward()
        probe.collect(step)
        clear(optimizer, how)
        optimizer.step()

    history = train(model, optimizer, order, steps=4, every=every)
    for step in range(len(history.steps)):
        (finding,) = (f for f in history.at(step).findings if f.severity > 1)
        assert (finding.kind, finding.severity, finding.modules) == ("updates", 3, ("0", "2", "4"))
        assert "set to zero between loss.backward() and optimizer.step()" in finding.text


@pytest.mark.parametrize("rate", [0.0, 0, torch.tensor(0.0)], ids=["float", "int", "tensor"])
def test_a_learning_rate_of_zero_is_told_as_such(rate):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)

    def order(loss, probe, step):
        loss().backward()
        probe.collect(step)
        optimizer.step()
        optimizer.zero_grad()

    (finding,) = (f for f in train(model, optimizer, order, steps=1).at().findings if f.severity > 1)
    assert finding.text.endswith("the learning rate of SGD is 0")
    assert "warm-up" in finding.remedy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_that_are_mostly_rounded_away_are_told_with_the_share_that_is_left(dtype):
    model, x = mlp().to(dtype), X.to(dtype)
    optimizer = sgd(model, 3e-3)
    shares = []

    def order(loss, probe, step):
        optimizer.zero_grad()
        loss().backward()
        probe.collect(step)
        before = [layer.weight.clone() for layer in model[::2]]
        optimizer.step()
        for layer, weight in zip(model[::2], before, strict=True):
            due = layer.weight.grad != 0
            shares.append((100 * ((layer.weight != weight) & due).sum() / due.sum()).item())

    history = train(model, optimizer, order, steps=1, x=x)
    (finding,) = (f for f in history.at().findings if f.kind == "updates")
    name = str(dtype).removeprefix("torch.")
    assert f"rounded away in {name}: it changes only {min(shares):.1f}% to {max(shares):.1f}% of" in finding.text
    assert finding.remedy == f"weights in float32, and {name} by torch.autocast only"


def test_a_step_of_which_hardly_anything_is_left_names_a_limit():
    model = mlp().bfloat16()
    optimizer = sgd(model, 5e-5)

    def order(loss, probe, step):
        optimizer.zero_grad()
        loss().backward()
        probe.collect(step)
        optimizer.step()

    found = alarms(train(model, optimizer, order, steps=1, x=X.bfloat16()))
    assert any("it changes fewer than 0.1% of the numbers of" in f.text for f in found)


def test_weights_in_float32_and_large_steps_in_bfloat16_are_calm():
    def order(loss, probe, step):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_auto):
            value = loss()
        value.backward()
        probe.collect(step)
        optimizer.step()

    for is_auto, rate in ((True, 1e-4), (False, 3e-3)):
        model = mlp() if is_auto else mlp().bfloat16()
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        history = train(model, optimizer, order, x=X if is_auto else X.bfloat16())
        assert not any("rounded away" in f.text for f in alarms(history, least=1))


def test_rows_of_an_embedding_that_no_token_chose_are_not_rounded_away():
    model = nn.Sequential(nn.Embedding(1000, 16), nn.Flatten(), nn.Linear(64, 3)).bfloat16()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def order(loss, probe, step):
        optimizer.zero_grad()
        loss().backward()
        probe.collect(step)
        optimizer.step()

    history = train(model, optimizer, order, x=torch.randint(1000, (64, 4)), steps=4)
    assert not any("rounded away" in f.text for f in alarms(history, least=1))
