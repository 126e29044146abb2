"""A finding: one thing that is wrong with a model, where, and what helps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal[
    "unbounded loss",
    "nonfinite",
    "number format",
    "cut",
    "cut over time",
    "frozen",
    "zero by initialisation",
    "equal units",
    "rounding noise",
    "gradients pile up",
    "weight decay",
    "diverging",
    "dead layer",
    "saturated",
    "dropout",
    "shapes",
    "softmax over samples",
    "missing log softmax",
    "activation on the output",
    "softmax twice",
    "sigmoid twice",
    "input scale",
    "target scale",
    "vanishing over time",
    "exploding over time",
    "vanishing",
    "exploding",
    "dead",
    "tiny gradients",
    "dead units",
    "exploding activations",
    "initial scale",
    "inputs collapse",
    "updates",
    "no progress",
    "clipped",
    "inputs alike",
    "guessing not beaten",
    "one class",
    "closed branches",
    "tied weights",
    "idle experts",
    "unseen",
    "unknown",
]
"""Of a finding: causes before their effects."""

GradientWord = Literal["stable", "vanishing", "exploding", "dead", "nonfinite", "unknown"]
"""What becomes of the gradient on its way to the inputs."""


@dataclass(frozen=True)
class Finding:
    """One thing that a measurement found.

    Args:
        kind: The kind in one or two words, such as ``vanishing`` or ``dead units``.
        text: Where and how much, in one line: the modules by name, and the numbers.
        modules: Names of the modules concerned, the first one first.
        remedy: What to do, in one line; empty if there is nothing to do.
        severity: How much it matters, for the order: 3 stops training, 2 slows it down, 1 is worth knowing, 0 is
            harmless and explains what the numbers show.

    Examples:
        >>> print(Finding("vanishing", "10^-8.0 from layers.9 to layers.0", ("layers.0",), "initialize(model, 'he')"))
        vanishing: 10^-8.0 from layers.9 to layers.0
          try: initialize(model, 'he')
    """

    kind: Kind
    text: str
    modules: tuple[str, ...] = ()
    remedy: str = ""
    severity: int = 2

    def __str__(self) -> str:
        """Return kind and text, and the remedy below."""
        return f"{self.kind}: {self.text}" + (f"\n  try: {self.remedy}" if self.remedy else "")


def one_line(finding: Finding) -> str:
    """Return a finding and its remedy in one line, for loggers and files."""
    text = f"{finding.kind}: {finding.text}" + (f" (try: {finding.remedy})" if finding.remedy else "")
    return " ".join(text.split())


def finding_of(fields: Mapping[str, Any]) -> Finding:
    """Return the finding whose fields were read from a file."""
    return Finding(**{**fields, "modules": tuple(fields["modules"])})


def worst_first(findings: "list[Finding]") -> tuple[Finding, ...]:
    """Return findings by severity, and those of one severity causes before effects."""
    return tuple(sorted(findings, key=lambda finding: (-finding.severity, _RANKS.get(finding.kind, len(_RANKS)))))


_RANKS: dict[str, int] = {kind: rank for rank, kind in enumerate(get_args(Kind))}
