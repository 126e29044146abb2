"""The profile of a convolutional network, and ``measure`` on the same module."""

import math

import pytest
import torch

from gradexp import GradientProbe
from gradexp.config import Config
from gradexp.exact.samples import unit_cotangents
from gradexp.runs.models import build
from gradexp.runs.profiles import profile


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_the_probe_sees_what_the_exact_profile_has(name):
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = build(Config(model=name, depth=6, width=3, dtype="float64"), x, 3, seed=0)
    exact = profile(model, x, seed=0)
    with GradientProbe(model, quantities=("output_grad",), per_sample=True) as probe:
        (model(x) * unit_cotangents(0, 4, 3)).sum().backward()
        probe.collect(0)
    seen = dict(zip(probe.history.names, probe.history.samples[0, 0].mean(axis=1), strict=True))
    for row, value in zip(exact.names, exact.profile("output_grad"), strict=True):
        if row.startswith("blocks"):  # whose branch of factor 1 / sqrt(2) ends in its last convolution
            assert seen[f"{row}.last"] == pytest.approx(value - math.log10(2) / 2, abs=1e-10)
        else:
            assert seen[row] == pytest.approx(value, abs=1e-10)
