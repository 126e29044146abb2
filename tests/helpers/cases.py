"""Cases of parametrised tests: a few in every run, the others when slow ones are asked for."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], plain: int = 1) -> list[Any]:
    """Return all cases, those after the first ``plain`` ones marked slow."""
    values = list(cases)
    tuples = [value if isinstance(value, tuple) else (value,) for value in values[plain:]]
    return [*values[:plain], *(pytest.param(*case, marks=pytest.mark.slow) for case in tuples)]
