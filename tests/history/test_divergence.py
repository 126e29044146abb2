"""How a training came to inf or nan."""

import re

import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import nn
from trainings import classes, losses, mlp, recorded

from gradexp import GradientProbe


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def regression():
    x = torch.randn(64, 16)
    return x, x[:, :1] * x[:, 1:2]


def nonfinite(history, step=-1):
    return [finding for finding in history.at(step).findings if finding.kind == "nonfinite"]


@pytest.mark.parametrize(
    "options",
    [{}, {"quantities": ["output", "output_grad", "weight_grad"]}, {"quantities": ["output", "weight_grad"]}],
    ids=["all", "as the callbacks", "without output gradients"],
)
def test_a_learning_rate_that_is_too_large_is_told_from_what_grew_before(options):
    model = mlp(out=1)
    history = recorded(model, torch.optim.SGD(model.parameters(), lr=3.0), F.mse_loss, regression(), 12, **options)
    (finding,) = nonfinite(history)
    first_bad = next(step for step in range(12) if not torch.isfinite(torch.tensor(history.loss[step, 0])))
    assert int(re.search(r"diverged at step (\d+)", finding.text)[1]) in (first_bad, first_bad + 1)
    assert "the learning rate is too large" in finding.text
    assert "outputs from 10^" in finding.text
    assert history.at(0).findings == () or "nonfinite" not in {f.kind for f in history.at(0).findings}


@pytest.mark.parametrize(
    "optimizer", few([{"lr": 3.0, "momentum": 0.9}, {"lr": 3.0}, {"lr": 3.0, "weight_decay": 0.01}])
)
def test_the_learning_rate_that_the_remedy_names_trains(optimizer):
    batch, model = regression(), mlp(out=1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    (finding,) = nonfinite(recorded(model, torch.optim.SGD(model.parameters(), **optimizer), F.mse_loss, batch, 20))
    times = int(re.search(r"a learning rate (\d+) times smaller", finding.remedy)[1])
    model.load_state_dict(state)
    slower = torch.optim.SGD(model.parameters(), **{**optimizer, "lr": optimizer["lr"] / times})
    seen = losses(model, slower, F.mse_loss, batch, 60)
    assert seen[-1] < 0.9 * seen[0]
    model.load_state_dict(state)
    clipped = losses(model, torch.optim.SGD(model.parameters(), **optimizer), F.mse_loss, batch, 20, clip=1.0)
    assert torch.isfinite(torch.tensor(clipped)).all()


@pytest.mark.parametrize("lr", [0.3, 1.0])
def test_a_loss_that_rises_under_large_steps_is_told_while_it_is_finite(lr):
    model, batch = mlp(), classes()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    history = recorded(model, torch.optim.Adam(model.parameters(), lr=lr), batch=batch, steps=2)
    (finding,) = (finding for finding in history.at().findings if finding.kind == "diverging")
    assert "the loss rose from 1.1 at step 0" in finding.text
    model.load_state_dict(state)
    times = int(re.search(r"a learning rate (\d+) times smaller", finding.remedy)[1])
    seen = losses(model, torch.optim.Adam(model.parameters(), lr=lr / times), F.cross_entropy, batch, 80)
    assert max(seen) < 1.5
    assert seen[-1] < 0.5 * seen[0]


def test_a_loss_that_rises_from_the_start_in_small_steps_has_the_wrong_sign():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    finding = recorded(model, optimizer, F.cross_entropy, classes(), 60).verdict().findings[0]
    assert finding.text.endswith("the loss rose from the first steps on: is its sign wrong?")
    assert finding.remedy.startswith("-loss in place of loss")


@pytest.mark.slow
def test_a_loss_that_had_risen_a_hundredfold_is_remembered():
    model, batch = mlp(), classes()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    history = recorded(model, torch.optim.Adam(model.parameters(), lr=1.0), batch=batch, steps=120)
    peak = history.loss[:, 0].max()
    assert peak > 10 * history.loss[-1, 0]
    (finding,) = (finding for finding in history.at().findings if finding.kind == "diverging")
    assert finding.severity == 1
    assert f"to {peak:.2g} at step {history.loss[:, 0].argmax()}" in finding.text
    model.load_state_dict(state)
    times = int(re.search(r"a learning rate (\d+) times smaller", finding.remedy)[1])
    slower = recorded(model, torch.optim.Adam(model.parameters(), lr=1.0 / times), batch=batch, steps=60)
    assert all(f.kind != "diverging" for step in range(60) for f in slower.at(step).findings)
    assert slower.loss[-1, 0] < 0.5 * slower.loss[0, 0]


def test_a_single_hard_batch_is_no_divergence():
    model, (x, target) = mlp(), classes()
    batches = iter([(10000 * x, target) if step == 7 else (x, target) for step in range(20)])
    history = recorded(model, torch.optim.Adam(model.parameters(), lr=1e-3), batch=lambda: next(batches), steps=20)
    assert history.loss[7, 0] > 100 * history.loss[6, 0]
    assert all(f.kind != "diverging" for step in range(20) for f in history.at(step).findings)


def test_what_led_to_nan_comes_before_where_it_was_seen():
    model, (x, y) = mlp(out=1), regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
    with GradientProbe(model, optimizer=optimizer, alarm=lambda _: None) as probe:
        for step in range(10):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            probe.collect(step, loss)
            optimizer.step()
    assert nonfinite(probe.history)[0].text.startswith("diverged at step")
    assert probe.history.verdict().text.startswith("nonfinite: diverged at step")


def test_a_bad_batch_in_a_healthy_training_is_not_the_learning_rate():
    model = mlp()
    good, bad = classes(), classes()
    bad[0][3, 2] = torch.nan
    batches = iter([*[good] * 12, bad])
    history = recorded(model, torch.optim.Adam(model.parameters(), lr=1e-3), batch=lambda: next(batches), steps=13)
    assert all("learning rate" not in finding.text + finding.remedy for finding in nonfinite(history))


def test_float16_weights_that_adam_divides_by_zero_name_its_step():
    model, (x, target) = mlp().half(), classes()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = recorded(model, optimizer, lambda y, t: F.cross_entropy(y.float(), t), (x.half(), target), 4)
    for step in range(4):
        (finding,) = nonfinite(history, step)
        assert "in step 0 all gradients are finite, but the optimizer's step" in finding.text
        assert "eps" in finding.text
        assert "eps=1e-4" in finding.remedy
        assert finding.modules == ("0", "2", "4")
    model = mlp().half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4)
    history = recorded(model, optimizer, lambda y, t: F.cross_entropy(y.float(), t), (x.half(), target), 40)
    assert nonfinite(history) == []
    assert history.loss[-1, 0] < history.loss[0, 0]


@pytest.mark.parametrize("quantities", [None, ["output", "output_grad", "weight_grad", "weight"]])
def test_an_optimizer_whose_step_is_nan_in_float32_is_told_without_a_number_format(quantities):
    model = mlp()
    nn.init.constant_(model[0].bias, -100.0)  # gradients of exactly 0, and 0/0 without eps
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.0)
    (finding,) = nonfinite(recorded(model, optimizer, steps=3, quantities=quantities))
    assert "float16" not in finding.text
    assert "eps=1e-8" in finding.remedy


def test_a_step_that_a_scaler_skips_is_no_divergence():
    model, (x, target) = mlp(), classes()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with GradientProbe(model, optimizer=optimizer) as probe:
        for step in range(6):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), target) * (float("inf") if step == 3 else 1.0)
            loss.backward()
            probe.collect(step, loss)
            if step != 3:
                optimizer.step()
    assert nonfinite(probe.history, 3) == []  # the verdict tells what is not finite
    assert nonfinite(probe.history) == []
