"""Numbers that follow from others."""

import numpy as np
import pytest

from gradexp.history.derived import sample_spread, update_ratio


def test_the_relative_update_is_a_difference_of_logarithms():
    log10 = {"weight": np.array([1.0, 0.0]), "update": np.array([-2.0, np.nan])}
    np.testing.assert_array_equal(update_ratio(log10), [-3.0, np.nan])
    assert update_ratio({"weight": log10["weight"]}) is None


def test_the_spread_is_the_standard_deviation_over_the_samples_that_have_a_number():
    samples = np.random.default_rng(0).normal(size=(2, 3, 5))
    np.testing.assert_allclose(sample_spread(samples), samples.std(axis=-1, ddof=1))
    samples[0, 0, 3:] = np.nan
    assert sample_spread(samples)[0, 0] == pytest.approx(samples[0, 0, :3].std(ddof=1))
    samples[1, 1, 1:] = np.nan
    assert np.isnan(sample_spread(samples)[1, 1])
    assert sample_spread(samples[..., :1]) is None
    assert sample_spread(None) is None
