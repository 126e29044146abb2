"""The verdict on a gradient: stable, vanishing, exploding or dead, and why."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gradexp.history.finding import Finding
from gradexp.history.step import STATUSES, Step

CODES = {"dead": -2, "vanishing": -1, "stable": 0, "exploding": 1}
"""The verdict on a gradient as a number, for tables and plots that take nothing else."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run, in words that files, HParams and the console share.

    Args:
        gradient: ``stable``, ``vanishing``, ``exploding`` or ``dead``.
        training: ``none``, ``trained``, ``stuck`` or ``diverged``.
        theory: ``agrees``, ``deviates`` or ``unavailable``.
        text: The reason, in one line.
        findings: What was found, worst first.
        remedy: The options of ``python -m gradexp.run`` that cure it, as typed; empty if there are none.
    """

    gradient: str
    training: str = "none"
    theory: str = "unavailable"
    text: str = ""
    findings: tuple[Finding, ...] = ()
    remedy: str = field(default="", compare=False)  # the text has it too

    @property
    def words(self) -> str:
        """The three words, each after its subject."""
        return f"gradient: {self.gradient}, training: {self.training}, theory: {self.theory}"

    @property
    def is_calm(self) -> bool:
        """Whether nothing is wrong: the gradient is stable, and no finding slows training down or stops it."""
        return self.gradient == "stable" and all(finding.severity < 2 for finding in self.findings)


def gradient_verdict(step: Step, decades: float = 3.0) -> Verdict:
    """Judge a profile by log10 of ‖output_grad‖ at the first layer over the last.

    Args:
        step: A step with output gradients, at initialisation or in training.
        decades: The threshold: below -decades the gradient vanishes, above +decades it explodes.

    Returns:
        A verdict on the gradient, with the reason as its text.

    Raises:
        ValueError: If ``decades`` is not above 0.
    """
    if not decades > 0:
        raise ValueError(f"decades must be above 0, got {decades}")
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
        only = "there is one layer only" if step.depth == 1 else f"only layer {ends[0]} has an output gradient"
        return Verdict("stable", text=f"stable: {only}{_unusual(step, decades)}")
    outcome = "vanishing" if ratio < -decades else "exploding" if ratio > decades else "stable"
    return Verdict(outcome, text=f"{outcome}: {_slope(ratio, *ends)}{_unusual(step, decades)}")


def _slope(ratio: float, first: int, last: int) -> str:
    rounded = round(ratio, 1) + 0.0  # no -0.0
    change = f"{'shrinks' if ratio < 0 else 'grows'} x{_factor(ratio / (last - first))} per layer"
    return (
        f"towards the input the output gradient {change if rounded else 'keeps its size'}, "
        f"10^{rounded:+.1f} from layer {last} to layer {first}"
    )


def _factor(log10: float) -> str:
    return f"{10**log10:.3g}" if abs(log10) < 4 else f"10^{log10:.1f}"


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


def _no_number(step: Step) -> Verdict:
    """Judge a profile whose ends have no number: dead, or not finite."""
    for quantity, verb in (("output", "outputs"), ("output_grad", "receives a gradient of")):
        if quantity not in step.status:
            continue
        status = step.status[quantity]
        for name, size, gradient in (("nonfinite", "inf or nan", "exploding"), ("zero", "exactly 0", "dead")):
            layers = 1 + np.flatnonzero((status == STATUSES.index(name)).all(axis=0))
            if layers.size:
                # Gradients travel down from the output, so the uppermost layer is where it happened.
                layer = layers.min() if quantity == "output" else layers.max()
                size_text = "0" if quantity == "output" and name == "zero" else size
                # One sample is enough for inf or nan.
                every = "" if name == "nonfinite" else " for every sample"
                look = "; look at the inputs" if layer == 1 and quantity == "output" and not every else ""
                return Verdict(gradient, text=f"{gradient}: layer {layer} {verb} {size_text}{every}{look}")
    for layer in (1, step.depth):
        missing = STATUSES[step.status["output_grad"][0, layer - 1]]
        if missing in ("unused", "frozen", "not_called", "hook_missed"):
            return Verdict("dead", text=f"dead: no output gradient is seen at layer {layer} ({missing})")
    return Verdict("dead", text="dead: no sample has a gradient at both the first and the last layer")
