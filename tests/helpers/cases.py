"""Cases of parametrised tests: a few in every run, the others when slow ones are asked for; what torch has."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

HAS_MUON = hasattr(torch.optim, "Muon")
"""Not so before torch 2.9."""

MUON = "muon" if HAS_MUON else "adam"
"""An optimizer that looks at whole matrices, if there is one."""


def few(cases: Iterable[Any], plain: int = 1) -> list[Any]:
    """Return all cases, those after the first ``plain`` ones marked slow."""
    values = list(cases)
    tuples = [value if isinstance(value, tuple) else (value,) for value in values[plain:]]
    return [*values[:plain], *(pytest.param(*case, marks=pytest.mark.slow) for case in tuples)]
