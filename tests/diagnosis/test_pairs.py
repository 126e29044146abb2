"""Losses over pairs of outputs and targets."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
Y = X.sum(1)
LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth": nn.SmoothL1Loss(),
    "huber": nn.HuberLoss(),
    "written out": lambda output, target: ((output - target) ** 2).mean(),
    "a sum of terms": lambda output, target: 0.5 * F.mse_loss(output, target) + 0.1 * output.square().mean(),
}
pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")


def shapes(model, loss_fn, *batch):
    return [finding for finding in measure(model, loss_fn, *batch).findings[0] if finding.kind == "shapes"]


@pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("target", [Y, Y[None]])
def test_a_column_against_a_row_is_told_with_both_shapes_and_the_remedy_works(loss_fn, target):
    model = nn.Linear(8, 1)
    (found,) = shapes(model, loss_fn, (X, target))
    assert "shape (16, 1)" in found.text
    assert "256 pairs" in found.text
    assert "target.view_as(output)" in found.remedy
    assert shapes(model, lambda output, target: loss_fn(output, target.view_as(output)), (X, target)) == []
    assert shapes(model, lambda output, target: loss_fn(output.squeeze(1), target.view(-1)), (X, target)) == []


def test_the_best_output_of_a_loss_over_pairs_is_the_same_for_all_samples():
    output = torch.zeros(16, 1, dtype=torch.float64, requires_grad=True)
    F.mse_loss(output + Y.double().mean(), Y.double()).backward()
    assert output.grad.abs().max() < 1e-12


def test_pairs_are_seen_in_a_closure_too():
    model = nn.Linear(8, 1)
    (found,) = shapes(model, lambda: F.mse_loss(model(X), Y))
    assert "(16, 1)" in found.text


@pytest.mark.parametrize("target", [torch.zeros(1), torch.zeros(()), torch.zeros(3), torch.zeros(16, 1)])
def test_one_target_for_all_samples_is_no_fault(target):
    assert shapes(nn.Linear(8, 3), F.mse_loss, (X, target)) == []


def test_distances_between_all_pairs_are_no_fault():
    def spread(output, target):
        return (output - output.T).abs().mean() + F.mse_loss(output.squeeze(1), target)

    assert shapes(nn.Linear(8, 1), spread, (X, Y)) == []
