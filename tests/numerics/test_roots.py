"""Roots between two bounds, against mpmath and against roots that are known."""

import mpmath
import numpy as np
import pytest

from gradexp.numerics.roots import bracketed_roots


def test_roots_are_right_to_the_last_digits():
    scale = np.array([1e-3, 0.5, 2.0, 700.0])
    found = bracketed_roots(lambda x: np.exp(x) - scale, np.full(4, -30.0), np.full(4, 30.0))
    for one, root in zip(scale, found, strict=True):
        assert abs(root - mpmath.log(mpmath.mpf(one))) <= 1e-15 + 4e-16 * abs(root)


@pytest.mark.parametrize(
    ("f", "low", "high", "root"),
    [
        (lambda x: x**3 - x - 5, 0.0, 3.0, 1.9041608591349206),  # as mpmath.findroot gives it
        (lambda x: np.sign(x - 0.3), 0.0, 1.0, 0.3),  # a jump
        (lambda x: np.where(x < 0.7, -1e-300, x - 0.7), 0.0, 1.0, 0.7),
        (lambda x: (x - 0.1) ** 9, -5.0, 7.0, 0.1),  # so flat that all is 0 near the root
        (lambda x: x - 2, 2.0, 5.0, 2.0),  # at a bound
        (lambda x: 1 - x, 0.0, 1.0, 1.0),
        (lambda x: x, -1.0, 2.0, 0.0),
    ],
)
def test_roots_that_mislead_interpolation(f, low, high, root):
    assert abs(float(bracketed_roots(f, low, high)) - root) < (1e-15 if root != 0.1 else 1e-6)


def test_a_smooth_function_takes_few_calls():
    calls = []
    bracketed_roots(lambda x: (calls.append(x), np.tanh(x - 1.2345))[1], -2.0, 3.0)
    assert len(calls) <= 14


def test_bounds_of_one_sign_are_refused():
    with pytest.raises(ValueError, match="different signs"):
        bracketed_roots(lambda x: x * x + 1, -1.0, 1.0)
