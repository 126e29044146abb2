"""Whether the optimizer's steps suit the weights: by the size of a step over the size of what it changes."""

import numpy as np
from numpy.typing import NDArray

from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.history.step import STATUSES, Array, Step, mean_over_networks

# About 1e-3 of a weight per step is healthy. At a millionth it takes a million steps to get anywhere, and float32
# rounds most of it away; at a tenth weights are others after ten steps.
_TOO_SMALL, _TOO_LARGE, _FAR_TOO_LARGE = -6.0, -1.0, 0.0
_USUAL_SHARE = -3.0
_USUAL = "where about 10^-3 is usual"
# Weights that began at 0, such as those of a new branch, grow by large shares at first: they are smaller than others.
_GROWING = -1.0


def updates_findings(step: Step, first: Step | None = None) -> tuple[Finding, ...]:
    """Return what is wrong with the last optimizer step's size, layer by layer.

    Layers without an update or a weight, or with one that is 0, do not count. Layers whose update is exactly 0
    though their gradient is not have steps that their number format rounds away, or a learning rate of 0. Steps that
    became too small because the gradient did, as at a minimum, do not count either.

    Args:
        step: One recorded step, with ``update`` and ``weight``; else nothing is found.
        first: The first recorded step: weights that were 0 in it, as those of a new branch, may grow by any share,
            and steps that were large enough in it may shrink with the gradient.

    Examples:
        >>> ok = np.zeros((1, 1), dtype=np.int8)
        >>> sizes = {"update": np.array([[0.5]]), "weight": np.array([[1.0]])}
        >>> updates_findings(Step("train", ["0"], sizes, {"update": ok, "weight": ok}))[0].kind
        'updates'
    """
    if not {"update", "weight"} <= step.log10.keys() & step.status.keys():
        return ()
    share = _share(step)
    weight = mean_over_networks(step.log10["weight"])
    is_at_minimum = _is_at_minimum(step, first)
    findings = _unmoved(step, is_at_minimum)
    seen = share[np.isfinite(share)]
    if not seen.size:
        return findings
    small = np.flatnonzero((share < _TOO_SMALL) & ~is_at_minimum)
    is_settled = weight > np.nanmedian(weight) + _GROWING
    if first is not None and "weight" in first.status:
        is_settled &= ~(first.status["weight"] == STATUSES.index("zero")).any(axis=0)
    large = np.flatnonzero((share > _TOO_LARGE) & is_settled)
    if small.size:
        text = _text(step, small, share)
        remedy = f"{_other_rate(share[small])}{_for(step, small, seen)}; in a warm-up, wait for its end"
        findings += (Finding("updates", text, _modules(step, small), remedy, 2 if small.size == seen.size else 1),)
    if large.size:
        text = _text(step, large, share)
        remedy = f"{_other_rate(share[large])}{_for(step, large, seen)}"
        severity = 2 if np.median(share[large]) > _FAR_TOO_LARGE else 1
        findings += (Finding("updates", text, _modules(step, large), remedy, severity),)
    return findings


def _share(step: Step) -> Array:
    """Return log10 of ‖update‖ / ‖weight‖ of each layer."""
    return mean_over_networks(step.log10["update"] - step.log10["weight"])


def _is_at_minimum(step: Step, first: Step | None) -> NDArray[np.bool_]:
    """Return whose steps were large enough at first, and are too small by as much as the gradient has shrunk."""
    needed = {"update", "weight", "weight_grad"}
    if first is None or not needed <= step.log10.keys() & first.log10.keys():
        return np.zeros(step.depth, dtype=bool)
    shrunk = mean_over_networks(step.log10["weight_grad"]) - mean_over_networks(first.log10["weight_grad"])
    is_zero = (step.status["weight_grad"] == STATUSES.index("zero")).all(axis=0)
    before = _share(first)
    return np.asarray((before >= _TOO_SMALL) & (is_zero | (before + shrunk < _TOO_SMALL)))


def _text(step: Step, rows: NDArray[np.intp], share: Array) -> str:
    their = "its" if len(_modules(step, rows)) == 1 else "their"
    return f"a step changes {listed(_modules(step, rows))} by {_range(share[rows])} of {their} size, {_USUAL}"


def _other_rate(share: Array) -> str:
    """Return the power of ten times the learning rate with which a step has about the usual size."""
    exponent = round(_USUAL_SHARE - float(np.median(share)))
    words = {-2: "a hundredth", -3: "a thousandth"}
    many = f"{10**exponent:,} times" if 0 < exponent < 7 else f"10^{exponent} times"
    return f"a learning rate about {words.get(exponent, many)} as large"


def _for(step: Step, rows: NDArray[np.intp], seen: Array) -> str:
    """Say for which modules another learning rate is meant, if it is not for all."""
    if rows.size == seen.size:
        return ""
    return " for it" if len(_modules(step, rows)) == 1 else " for them"


def _unmoved(step: Step, is_at_minimum: NDArray[np.bool_]) -> tuple[Finding, ...]:
    zero, ok = STATUSES.index("zero"), [STATUSES.index(name) for name in ("ok", "subnormal")]
    still = (step.status["update"] == zero).all(axis=0) & ~is_at_minimum
    if "weight_grad" in step.status:
        still &= np.isin(step.status["weight_grad"], ok).any(axis=0)
    else:
        still &= False
    rows = np.flatnonzero(still)
    if not rows.size:
        return ()
    moved = np.isfinite(step.log10["update"]).any()
    dtype = step.dtypes.get("weight", "float32")
    text = f"a step does not change the weights of {listed(_modules(step, rows))}, though there is a gradient: "
    text += f"steps are below the resolution of {dtype}, or the learning rate is 0"
    remedy = "a larger learning rate"
    if dtype not in ("float32", "float64"):
        remedy = f"weights in float32, and {dtype} by torch.autocast only"
    return (Finding("updates", text, _modules(step, rows), remedy, 2 if moved else 3),)


def _modules(step: Step, rows: NDArray[np.intp]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(step.names[row] for row in rows))


def _range(log10: Array) -> str:
    low, high = log10.min(), log10.max()
    return f"10^{low:.1f}" if high - low < 0.1 else f"10^{low:.1f} to 10^{high:.1f}"
