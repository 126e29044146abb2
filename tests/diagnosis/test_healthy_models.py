"""Healthy models raise no alarm, neither at initialisation nor in training."""

import pytest
import torch
from cases import few
from healthy import MODELS, adversaries, trained

from gradexp import measure


def alarms(case):
    model, loss_fn, batches = case
    findings = measure(model, loss_fn, batches()).findings[0]
    return [str(finding) for finding in findings if finding.severity > 0]


@pytest.mark.parametrize("name", few(MODELS, 4))
@pytest.mark.parametrize("seed", few(range(2)))
def test_healthy_models_raise_no_alarm(name, seed):
    torch.manual_seed(seed)
    case = MODELS[name]()
    assert alarms(case) == []
    trained(*case, steps=30)
    assert alarms(case) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_trained_for_long_raise_no_alarm(name):
    torch.manual_seed(0)
    case = MODELS[name]()
    trained(*case, steps=200)
    assert alarms(case) == []


@pytest.mark.parametrize("steps", [0, pytest.param(300, marks=pytest.mark.slow)])
def test_adversaries_raise_no_alarm(steps):
    torch.manual_seed(0)
    for case in adversaries(steps):
        assert alarms(case) == []
