"""Tensors without elements have no size: neither 0 nor a number."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import GradientProbe, measure
from gradexp.history.step import STATUSES


def status(history, quantity):
    return [STATUSES[code] for code in history.status[quantity][-1, 0]]


def test_an_empty_batch_is_refused():
    model, x, y = nn.Linear(3, 2), torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"the batch holds no sample: its inputs have shape \(0, 3\)"):
        measure(model, F.cross_entropy, (x[:0], y[:0]))


class Experts(nn.Module):
    """Sends positive inputs to one expert and negative ones to another."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        positive = x[:, 0] > 0
        return torch.cat([self.first(x[positive]), self.second(x[~positive])])


def test_a_module_that_ran_on_no_sample_counts_as_not_called():
    model = Experts()
    history = measure(model, torch.sum, torch.ones(4, 3))
    assert status(history, "output") == status(history, "output_grad") == ["ok", "not_called"]
    assert np.isnan(history.profile("output")[1])
    assert history.verdict().gradient == "stable"


def test_samples_of_a_later_pass_count():
    model = Experts()
    with GradientProbe(model, stats={"largest": torch.amax}) as probe:  # which an empty tensor does not have
        model(torch.ones(4, 3)).sum().backward()
        model(-torch.ones(4, 3)).sum().backward()
        probe.collect(0)
    history = probe.history
    assert status(history, "output") == status(history, "output_grad") == ["ok", "ok"]
    assert np.isfinite(history.stats["output.largest"]).all()


@pytest.mark.parametrize(("freed", "quantity"), [("weight", "weight"), ("grad", "weight_grad")])
def test_weights_whose_memory_is_given_back_are_missed(freed, quantity):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with GradientProbe(model, quantities=("output", "output_grad", "weight_grad", "weight")) as probe:
        model(torch.ones(4, 8)).sum().backward()
        tensor = model[0].weight if freed == "weight" else model[0].weight.grad
        tensor.untyped_storage().resize_(0)  # as FSDP does between uses
        probe.collect(0)
    assert status(probe.history, quantity) == ["hook_missed", "ok"]
