"""Weight decay that outweighs the gradient."""

import pytest
import torch
from cases import few
from trainings import classes, kinds, mlp, recorded


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("make", "options", "taken"),
    few(
        [
            (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 100.0}, 0.1),
            (torch.optim.SGD, {"lr": 0.05, "weight_decay": 3.0}, 0.15),
            (torch.optim.SGD, {"lr": 0.1, "weight_decay": 5.0}, 0.5),
        ],
        2,
    ),
    ids=["AdamW", "slower", "SGD"],
)
@pytest.mark.parametrize("every", few([4, 1]))
def test_weights_that_decay_by_a_constant_factor_name_weight_decay(make, options, taken, every):
    model = mlp()
    history = recorded(model, make(model.parameters(), **options), steps=61, every=every)
    (finding,) = (finding for finding in history.at().findings if finding.kind == "weight decay")
    assert finding.modules == ("0", "2", "4")
    # At most lr * weight_decay, and less where the gradient makes up for some.
    assert float(finding.text.split("takes ")[1].split()[0]) == pytest.approx(taken, abs=0.03)
    assert (finding.severity, finding.remedy) == (3, "weight_decay=1e-4 to 1e-2")


def test_weights_of_which_nothing_is_left_are_told_too():
    model = mlp()
    history = recorded(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=9.9), steps=40)
    (finding,) = (finding for finding in history.at().findings if finding.kind == "weight decay")
    assert "and nothing of them is left since step 0" in finding.text


@pytest.mark.parametrize("make", few([torch.optim.AdamW, torch.optim.SGD]))
@pytest.mark.parametrize("weight_decay", few([0.1, 0.0, 0.01]))
def test_ordinary_weight_decay_raises_no_alarm(make, weight_decay):
    model = mlp()
    lr = 0.1 if make is torch.optim.SGD else 2e-3
    assert kinds(recorded(model, make(model.parameters(), lr=lr, weight_decay=weight_decay), steps=60)) == []


def test_weights_that_are_clamped_or_scaled_by_hand_raise_no_alarm():
    def clamp(model):
        for layer in model[::2]:
            layer.weight.data.clamp_(-0.01, 0.01)  # as Wasserstein critics are

    def halve(model):
        for layer in model[::2]:
            layer.weight.data.mul_(0.8)

    for by_hand in (clamp, halve):
        model = mlp()
        optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-4)
        history = recorded(model, optimizer, steps=12, after_step=lambda f=by_hand, m=model: f(m))
        assert "weight decay" not in kinds(history)


def test_weights_that_learning_makes_smaller_raise_no_alarm():
    model = mlp()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(4)
    x, _ = classes()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    history = recorded(model, optimizer, lambda y, t: (y**2).mean(), (x, x), steps=60)
    assert history.log10["weight"][-1].mean() < history.log10["weight"][0].mean()
    assert "weight decay" not in kinds(history)
