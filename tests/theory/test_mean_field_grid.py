"""Mean field at many points at once has the numbers that each point has alone."""

import numpy as np
import pytest
import torch
from cases import few

from gradexp.choices import ACTIVATIONS
from gradexp.networks.activations import activation
from gradexp.theory import MeanField
from gradexp.theory.gaussian import pair_average
from gradexp.theory.hermite import HermiteSeries
from gradexp.theory.mean_field import Moments
from gradexp.theory.mean_field_grid import QUANTITIES, mean_fields

# Ordered, critical, chaotic; lengths that go to 0, to infinity, and that stay; biases alone; saturated units.
POINTS = [
    (0.5, 0.0),
    (1.0, 0.0),
    (2.0, 0.0),
    (1.0, 0.2),
    (1.76, 0.05),
    (1.77, 0.05),
    (5.0, 0.5),
    (0.0, 0.3),
    (40.0, 2.0),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", few(["tanh", *(name for name in ACTIVATIONS if name != "tanh")]))
def test_each_point_has_the_numbers_of_mean_field(name: str) -> None:
    phi = activation(name)
    found = mean_fields(phi, *np.array(POINTS).T)
    for index, point in enumerate(POINTS):
        alone = MeanField(phi, *point)
        for quantity in QUANTITIES:
            expected = getattr(alone, quantity)
            # A scale is 1 over a difference from 1 that may have lost half its digits.
            rtol = 1e-11 * max(1.0, abs(expected)) if quantity.startswith("xi") and np.isfinite(expected) else 1e-11
            assert np.isclose(found[quantity][index], expected, rtol=rtol, atol=1e-12), (point, quantity)


@pytest.mark.parametrize("name", ["tanh", "erf", "sigmoid"])
def test_the_series_is_the_average_over_two_inputs(name: str) -> None:
    phi, lengths = activation(name), torch.tensor([0.01, 0.7, 3.0], dtype=torch.float64)
    series = HermiteSeries(phi, lengths, Moments.at(phi, lengths).slope2)
    assert series.is_whole.all()
    for distance in (1e-9, 1e-3, 0.3, 1.0):
        at = torch.full_like(lengths, distance)
        for own, q in zip(series.apart(at).tolist(), lengths.tolist(), strict=True):
            expected = pair_average(lambda a, b: (phi(a) - phi(b)).square() / 2, q, q, distance)
            assert own == pytest.approx(expected, rel=1e-11)


def test_a_series_that_ends_too_early_says_so() -> None:
    phi, lengths = activation("hard_tanh"), torch.tensor([1.0, 1e4], dtype=torch.float64)
    assert not HermiteSeries(phi, lengths, Moments.at(phi, lengths).slope2).is_whole.any()
