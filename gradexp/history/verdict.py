"""The verdict on a gradient: stable, vanishing, exploding or dead, and why."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from gradexp.history.ends import judge_ends
from gradexp.history.finding import Finding, GradientWord, Kind, worst_first
from gradexp.history.flow import flow_of
from gradexp.history.over_time import over_time
from gradexp.history.paths import calm, closed_branches, large_outputs, paths, slopes
from gradexp.history.remedies import REMEDIES
from gradexp.history.sentences import shortened
from gradexp.history.silence import no_gradient, not_finite, without_values
from gradexp.history.step import Step

TrainingWord = Literal["none", "trained", "stuck", "diverged"]
TheoryWord = Literal["agrees", "deviates", "unavailable"]

CODES: dict[GradientWord, int] = {"dead": -2, "vanishing": -1, "stable": 0, "exploding": 1}
"""The verdict on a gradient as a number, for tables and plots that take nothing else."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """The outcome of a run, in words that files, HParams and the console share.

    Args:
        gradient: ``stable``, ``vanishing``, ``exploding`` or ``dead``; of anybody's model also ``nonfinite``, and
            ``unknown`` where no gradient was seen.
        training: ``none``, ``trained``, ``stuck`` or ``diverged``.
        theory: ``agrees``, ``deviates`` or ``unavailable``.
        text: The reason, in one line.
        findings: What was found, worst first.
        remedy: The options of ``python -m gradexp.run`` that cure it, as typed; empty if there are none.
    """

    gradient: GradientWord
    training: TrainingWord = "none"
    theory: TheoryWord = "unavailable"
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

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the words, the reason and what was found."""
        from gradexp.page.cell import cell
        from gradexp.page.page import Page

        return cell(Page("", (self.gradient, self.training, self.theory), self.text, findings=self.findings))

    def __repr__(self) -> str:
        kinds = ", ".join(finding.kind for finding in self.findings)
        lines = [f"Verdict({self.words})", self.text, f"findings: {kinds}" if kinds else ""]
        return "\n".join(shortened(line) for line in lines if line)


def gradient_verdict(step: Step, decades: float = 3.0) -> Verdict:
    """Judge the gradient on its way from the loss to the inputs.

    Where autograd's graph is known, each row is compared with those that its output feeds, and the slope is that of
    like layers in a row, or of the blocks of a stack. Else, and for the profile at initialisation, the layer called
    first is compared with the one called last.

    Args:
        step: A step with output gradients, at initialisation or in training.
        decades: The threshold: below -decades the gradient vanishes, above +decades it explodes.

    Returns:
        A verdict on the gradient, with the worst finding as its text, or one calm line.

    Raises:
        ValueError: If ``decades`` is not above 0.
    """
    if not decades > 0:
        raise ValueError(f"decades must be above 0, got {decades}")
    if step.phase == "init":
        gradient, reason = judge_ends(step, decades)
        return Verdict(gradient, text=f"{gradient}: {reason}", findings=step.findings)
    flow = flow_of(step)
    seen = [*step.findings]
    seen += [] if _has(seen, "nonfinite") else not_finite(step, flow)
    seen += [] if _has(seen, "unknown") else without_values(step)
    reason = ""
    if not _has(seen, "nonfinite", "unknown"):
        seen += over_time(step, flow, decades)
        if flow is None:
            gradient, reason = judge_ends(step, decades)
            seen += [] if gradient == "stable" else [Finding(gradient, reason)]
        else:
            lines = paths(flow)
            seen += slopes(flow, lines, decades)
            seen += no_gradient(flow, seen)
            seen += large_outputs(flow)
            seen += closed_branches(flow, decades)
            zero = [finding.text for finding in seen if finding.kind == "zero by initialisation"]
            reason = zero[0] if zero and all(np.isneginf(flow.value[flow.sources])) else calm(flow, lines)
    told = [finding for finding in seen if not _is_explained(finding, seen)]
    findings = worst_first([_with_remedy(finding, step, told) for finding in told])
    alarms = [finding for finding in findings if finding.severity > 1]
    words = [_WORDS[finding.kind] for finding in alarms if finding.kind in _WORDS]
    text = f"{alarms[0].kind}: {alarms[0].text}" if alarms else f"stable: {reason}"
    return Verdict(words[0] if words else "stable", text=text, findings=findings)


_WORDS: dict[Kind, GradientWord] = {
    "nonfinite": "nonfinite",
    "unknown": "unknown",
    "dead": "dead",
    "vanishing": "vanishing",
    "exploding": "exploding",
    "vanishing over time": "vanishing",
    "exploding over time": "exploding",
    "tiny gradients": "vanishing",
    "dead layer": "dead",
}
# Findings that say no more than others do which tell the cause.
_EXPLAINED_BY = {
    "tiny gradients": {"vanishing", "vanishing over time", "rounding noise", "number format", "cut"},
    "dead": {"dead layer", "equal units", "rounding noise", "number format", "cut"},
    "vanishing": {"rounding noise", "equal units"},
    "closed branches": {"saturated"},
}


def _is_explained(finding: Finding, others: list[Finding]) -> bool:
    causes = _EXPLAINED_BY.get(finding.kind, set())
    return any(other.kind in causes and other.severity > 1 for other in others)


# Effects, for which the remedy is that of the cause.
_SAME_CAUSE = {
    "nonfinite": {"unbounded loss"},
    "exploding activations": {"exploding", "unbounded loss"},
    "initial scale": {"dropout", "exploding", "exploding over time", "input scale", "saturated"},
    "inputs collapse": {"vanishing", "saturated", "dead layer", "equal units", "cut", "number format", "nonfinite"},
    "vanishing": {"saturated", "weight decay"},
    "updates": {
        "vanishing",
        "vanishing over time",
        "exploding",
        "dead",
        "weight decay",
        "diverging",
        "unbounded loss",
    },
}


def _with_remedy(finding: Finding, step: Step, others: list[Finding]) -> Finding:
    """Return a finding with the remedy that was tried on the model, or else with one that helps others."""
    if any(other.kind in _SAME_CAUSE.get(finding.kind, ()) and other.severity > 1 for other in others):
        return replace(finding, remedy="")
    remedy = step.remedies.get(finding.kind) or finding.remedy or REMEDIES.get(finding.kind, "")
    return replace(finding, remedy=remedy)


def _has(findings: list[Finding], *kinds: str) -> bool:
    return any(finding.kind in kinds and finding.severity for finding in findings)
