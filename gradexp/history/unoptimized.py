"""Weights that are trained and that no optimizer steps, as a finding."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.history.step import STATUSES, Quantity


def unoptimized(names: Sequence[str], status: Mapping[Quantity, NDArray[np.int8]]) -> tuple[Finding, ...]:
    """Return a finding if a probe saw weights that none of its optimizers holds.

    Args:
        names: Name of each row.
        status: Quantity -> codes of shape ``(network, row)``.
    """
    if "update" not in status:
        return ()
    outside = (status["update"] == STATUSES.index("not_optimized")).all(axis=0)
    if "weight_grad" in status:  # no loss reaches a target network, so that none needs to be trained
        outside &= ~(status["weight_grad"] == STATUSES.index("unused")).all(axis=0)
    rows = np.flatnonzero(outside)
    missing = list(dict.fromkeys(names[row] for row in rows.tolist()))
    if not missing:
        return ()
    is_one = len(missing) == 1
    text = f"{listed(missing)} {'is' if is_one else 'are'} not in the optimizer and never "
    text += "changes" if is_one else "change"
    cure = "optimizer.add_param_group({'params': …}), or create the optimizer after all layers"
    return (Finding("cut", text, tuple(missing), cure, 3),)
