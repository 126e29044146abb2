"""Two histories compared, number by number."""

from dataclasses import fields

import numpy as np

from gradexp.history.history import History


def assert_same(history, expected):
    """Check that every field is the same, bit for bit and in the same order."""
    for field in fields(History):
        own, other = getattr(history, field.name), getattr(expected, field.name)
        if isinstance(other, dict):
            assert list(own) == list(other), field.name
        pairs = [(own[key], other[key]) for key in other] if isinstance(other, dict) else [(own, other)]
        for one, two in pairs:
            if isinstance(two, np.ndarray):
                assert one.dtype == two.dtype
                np.testing.assert_array_equal(one, two, field.name)
            else:
                assert one == two, field.name
