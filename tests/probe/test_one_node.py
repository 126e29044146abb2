import copy

import numpy as np
import pytest
import torch

from gradexp import MLP, GradientProbe
from gradexp.networks.one_node import OneNode
from gradexp.probe.one_node import OneNodeProbe


def recorded(by_hooks, every=1, steps=4, lr=0.1, networks=1, scale=1.0, dtype=torch.float32):
    """Train; return the history and the parameters."""
    torch.manual_seed(1)
    model = MLP([5, 70, 70, 3], networks=networks, dtype=dtype)
    x = scale * torch.randn(networks, 6, 5, dtype=dtype)
    network = model if by_hooks else OneNode(model)
    own = list(model.parameters()) if by_hooks else [network.parameter]
    optimizer = torch.optim.SGD(own, lr=lr)
    seeds = list(range(networks))
    probe = (
        GradientProbe(model, every=every, optimizer=optimizer, seeds=seeds)
        if by_hooks
        else OneNodeProbe(network, every, optimizer, seeds)
    )
    with probe:
        for step in range(steps):
            losses = network(x).square().mean((1, 2))
            losses.sum().backward()
            probe.collect(step, losses)
            optimizer.step()
            optimizer.zero_grad()
    return probe.history, [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"networks": 3},
        {"every": 2, "steps": 5},
        {"lr": 0.0},
        {"scale": 0.0},
        {"scale": 1e-30, "lr": 1e-3},
        {"scale": 1e25},
        {"dtype": torch.float64, "scale": 1e-200},
    ],
    ids=str,
)
def test_it_records_what_a_probe_with_hooks_does(options):
    expected, trained = recorded(by_hooks=True, **copy.deepcopy(options))
    found, own = recorded(by_hooks=False, **options)
    torch.testing.assert_close(own, trained, equal_nan=True)
    for name in ("phase", "names", "steps", "seeds", "calls", "kinds", "feeds", "dtypes", "findings"):
        assert getattr(found, name) == getattr(expected, name), name
    for quantity, log10 in expected.log10.items():
        np.testing.assert_array_equal(found.status[quantity], expected.status[quantity])
        np.testing.assert_allclose(found.log10[quantity], log10, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.total_grad, expected.total_grad, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)


def test_what_was_seen_stays_when_a_step_is_interrupted():
    model = OneNode(MLP([2, 3, 1]))
    optimizer = torch.optim.SGD([model.parameter], lr=0.1)
    with OneNodeProbe(model, 1, optimizer, [0]) as probe:
        for step in range(2):
            model(torch.ones(1, 4, 2)).sum().backward()
            probe.collect(step)
            if step == 0:
                optimizer.step()
                optimizer.zero_grad()
    history = probe.history
    assert history.steps == [0, 1]
    assert np.isfinite(history.log10["weight_grad"]).all()
    assert np.isfinite(history.log10["update"][0]).all()
    assert np.isnan(history.log10["update"][1]).all()
    assert model.watcher is None
