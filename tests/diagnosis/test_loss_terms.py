"""Which loss it is: its value by torch, its guessing by the best constant prediction that an optimizer finds."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp.diagnosis.examination import Examination
from gradexp.diagnosis.loss_terms import loss_terms

GENERATOR = torch.Generator().manual_seed(0)


def numbers(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def labels(*shape):
    return (numbers(*shape, 5) + torch.tensor([0.0, 0.0, 0.5, 1.0, 1.5])).argmax(-1)


def terms_of(loss_fn, output, target):
    output = output.clone().requires_grad_()
    return loss_terms(Examination(nn.Identity(), loss_fn, None, (target,), output, loss_fn(output, target)))


def least(loss_fn, shape, constant, target):
    """Return the least loss of a prediction that is the same for all samples."""
    constant = constant.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([constant], max_iter=100, tolerance_grad=1e-8, tolerance_change=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(constant.expand(shape), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    return loss_fn(constant.expand(shape), target).item()


WEIGHT = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
BINARY = (numbers(40, 3) > 1).double()
CLASSIFIERS = {
    "cross_entropy": (F.cross_entropy, (40, 5), labels(40), (5,)),
    "weighted": (nn.CrossEntropyLoss(weight=WEIGHT), (40, 5), labels(40), (5,)),
    "some ignored": (nn.CrossEntropyLoss(ignore_index=2), (40, 5), labels(40), (5,)),
    "pictures": (F.cross_entropy, (4, 5, 3, 3), labels(4, 3, 3), (5, 1, 1)),
    "tokens": (lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()), (4, 6, 5), labels(4, 6), (5,)),
    "probabilities": (F.cross_entropy, (40, 5), numbers(40, 5).softmax(-1), (5,)),
    "log": (lambda o, t: F.nll_loss(o.log_softmax(-1), t), (40, 5), labels(40), (5,)),
    "by hand": (lambda o, t: -o.log_softmax(-1).gather(1, t[:, None]).mean(), (40, 5), labels(40), (5,)),
    "one-hot": (lambda o, t: F.cross_entropy(o, F.one_hot(t, 5).double()), (40, 5), labels(40), (5,)),
    "binary by hand": (
        lambda o, t: -(t * F.logsigmoid(o) + (1 - t) * F.logsigmoid(-o)).mean(),
        (40, 3),
        BINARY,
        (3,),
    ),
    "binary": (F.binary_cross_entropy_with_logits, (40, 3), BINARY, (3,)),
    "binary weighted": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT[:3]), (40, 3), BINARY, (3,)),
    "binary of probabilities": (lambda o, t: F.binary_cross_entropy(o.sigmoid(), t), (40, 3), BINARY, (3,)),
    "squared": (F.mse_loss, (40, 3), numbers(40, 3) + 3, (3,)),
    "squared by hand": (lambda o, t: ((o - t) ** 2).mean(), (40, 3), numbers(40, 3) + 3, (3,)),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_value_and_guessing_are_right(name):
    loss_fn, shape, target, constant = CLASSIFIERS[name]
    output = numbers(*shape)
    (term,) = terms_of(loss_fn, output, target)
    assert term.value == pytest.approx(loss_fn(output, target).item(), rel=1e-9)
    assert term.guessing == pytest.approx(least(loss_fn, shape, torch.zeros(constant).double(), target), rel=1e-6)


def test_absolute_errors_are_those_of_the_median():
    target = numbers(41, 2)
    by_median = (target - target.median(0).values).abs().mean().item()
    for loss_fn in (F.l1_loss, F.smooth_l1_loss, F.huber_loss):
        (term,) = terms_of(loss_fn, numbers(41, 2), target)
        assert (term.kind, term.guessing) == ("absolute error", pytest.approx(by_median))


def test_two_percent_of_positives_cost_their_entropy_not_the_logarithm_of_two():
    target = (torch.arange(1000) % 50 == 0).long()
    (term,) = terms_of(F.cross_entropy, torch.zeros(1000, 2), target)
    assert term.guessing == pytest.approx(-0.02 * math.log(0.02) - 0.98 * math.log(0.98))
    assert term.indifferent == pytest.approx(math.log(2))


def test_sums_of_losses_have_several_terms_whatever_their_reduction():
    target = labels(40)

    def total(output, target):
        each = F.cross_entropy(output, target, reduction="none")
        penalty = 0.1 * F.mse_loss(output, torch.ones_like(output), reduction="sum")
        return 3 * each.mean() + penalty + output.abs().sum()

    output = numbers(40, 5)
    terms = terms_of(total, output, target)
    assert {term.kind for term in terms} == {"cross entropy", "squared error"}
    value = next(term.value for term in terms if term.kind == "cross entropy")
    assert value == pytest.approx(F.cross_entropy(output, target).item())


def test_losses_inside_the_model_are_seen():
    class Model(nn.Module):
        def forward(self, x):
            return {"loss": F.cross_entropy(x, torch.zeros(4, dtype=torch.long)), "logits": x}

    model, x = Model(), numbers(4, 5).requires_grad_()
    output = model(x)
    (term,) = loss_terms(Examination(model, lambda o: o["loss"], x, (), output, output["loss"]))
    assert (term.kind, term.samples) == ("cross entropy", 4)


def test_of_other_losses_nothing_is_said():
    assert terms_of(lambda o, t: (o * t).sum().tanh(), numbers(4, 5), numbers(4, 5)) == []
    assert terms_of(lambda o, t: o.logsumexp(-1).mean(), numbers(4, 5), None) == []
