"""The output gradient at the layer called first over that at the one called last."""

from collections.abc import Sequence

import numpy as np

from gradexp.history.finding import GradientWord
from gradexp.history.slope import factor, is_kept, times
from gradexp.history.step import STATUSES, Quantity, Step

_VERBS: dict[Quantity, str] = {"output": "outputs", "output_grad": "receives a gradient of"}


def judge_ends(step: Step, decades: float) -> tuple[GradientWord, str]:
    """Judge a profile by log10 of ‖output_grad‖ at the first layer over the last.

    Args:
        step: A step with output gradients, at initialisation or in training.
        decades: The threshold: below -decades the gradient vanishes, above +decades it explodes.

    Returns:
        ``stable``, ``vanishing``, ``exploding`` or ``dead``, and the reason.
    """
    ends = step.ends("output_grad")
    ratio = step.first_over_last("output_grad")
    if ratio is None or ends is None:
        numbered = _shrunk_to_zero(step)
        if numbered is None:
            return _no_number(step)
        ends, ratio = numbered
        if ratio >= -decades:
            return _no_number(step)
    if ends[0] == ends[1]:
        only = "there is one layer only" if step.depth == 1 else f"only layer {ends[0]} has a gradient"
        return "stable", f"{only}{_unusual(step, decades)}"
    outcome: GradientWord = "vanishing" if ratio < -decades else "exploding" if ratio > decades else "stable"
    return outcome, f"{_slope(ratio, *ends)}{_unusual(step, decades)}"


def _in_all(ratio: float) -> str:
    return factor(ratio) if abs(ratio) < _MUCH else f"10^{ratio:.1f}"


_LITTLE, _MUCH = 0.5, 2.0  # powers of ten over all layers: that do not matter, and that are written as such


def _slope(ratio: float, first: int, last: int) -> str:
    rate = ratio / (last - first)
    if is_kept(rate) and abs(ratio) < _LITTLE:
        return f"the gradient keeps its size ({times(ratio)} over {last - first + 1} layers)"
    if ratio < 0:
        left = f"{100 * 10**rate:.3g} %" if rate > -4 else factor(rate)
        return f"from layer to layer {left} of the gradient is left: {_in_all(ratio)} of it reaches layer {first}"
    grown = f"it is {_in_all(ratio)} times as large at layer {first}"
    return f"from layer to layer the gradient grows {times(rate)}: {grown}"


def _shrunk_to_zero(step: Step) -> tuple[tuple[int, int], float] | None:
    """Return ends and ratio of the layers whose gradient has a number, if below them it has become 0.

    A number format has a smallest number; the profile at initialisation has none, so that its 0 is a true one.
    """
    profile = step.profile("output_grad")
    layers = 1 + np.flatnonzero(np.isfinite(profile))
    if step.phase == "init" or len(layers) < 2:
        return None
    below = step.status["output_grad"][:, : layers[0] - 1]
    if not (below == STATUSES.index("zero")).any():
        return None
    first, last = int(layers[0]), int(layers[-1])
    return (first, last), float(profile[first - 1] - profile[last - 1])


def _unusual(step: Step, decades: float) -> str:
    """Return in which layers the sizes of a training step reach or leave the range of their number format."""
    if step.phase == "init":
        return ""
    remarks = []
    for quantity, name in _NAMES.items():
        if quantity not in step.status:
            continue
        for status, template in (("subnormal", "below {dtype}'s smallest normal number"), *_EXTREMES):
            layers = 1 + np.flatnonzero((step.status[quantity] == STATUSES.index(status)).all(axis=0))
            if layers.size:
                size = template.format(dtype=step.dtypes.get(quantity, "float32"))
                verb = "is" if name.startswith("it") else "are"
                remarks.append(f"{name} {verb} {size} in {_spans(layers.tolist())}")
    profile = step.profile("output_grad")
    finite = profile[np.isfinite(profile)]
    if finite.size:
        layers = 1 + np.flatnonzero(profile < min(finite[0], finite[-1]) - decades)
        if layers.size:
            remarks.append(f"in {_spans(layers.tolist())} it is more than {decades:g} powers of ten below both ends")
    return "".join(f"{'; ' if index == 0 else ', and '}{remark}" for index, remark in enumerate(remarks))


_NAMES = {"output_grad": "it", "weight_grad": "the weight gradients", "output": "the outputs"}
_EXTREMES = (("zero", "exactly 0"), ("nonfinite", "inf or nan"))


def _spans(layers: Sequence[int]) -> str:
    """Write layer numbers as ``layers 1-3, 7``, at most four runs."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    spans = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:4]] + (["..."] if len(runs) > 4 else [])
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(spans)}"


def _no_number(step: Step) -> tuple[GradientWord, str]:
    """Judge a profile whose ends have no number: dead, or not finite."""
    for quantity, verb in _VERBS.items():
        if quantity not in step.status:
            continue
        status = step.status[quantity]
        for name, size in (("nonfinite", "inf or nan"), ("zero", "exactly 0")):
            layers = 1 + np.flatnonzero((status == STATUSES.index(name)).all(axis=0))
            if layers.size:
                # Gradients travel down from the output, so the uppermost layer is where it happened.
                layer = layers.min() if quantity == "output" else layers.max()
                size_text = "0" if quantity == "output" and name == "zero" else size
                # One sample is enough for inf or nan.
                every = "" if name == "nonfinite" else " for every sample"
                look = "; look at the inputs" if layer == 1 and quantity == "output" and not every else ""
                return "dead" if name == "zero" else "exploding", f"layer {layer} {verb} {size_text}{every}{look}"
    for layer in (1, step.depth):
        missing = STATUSES[step.status["output_grad"][0, layer - 1]]
        if missing in ("unused", "frozen", "not_called", "hook_missed"):
            return "dead", f"no gradient is seen at layer {layer} ({missing})"
    return "dead", "no sample has a gradient at both the first and the last layer"
