"""A verdict and its findings as lines of text, which come before any table."""

import re
import textwrap

from gradexp.history.finding import Finding, worst_first
from gradexp.history.step import Step
from gradexp.history.verdict import Verdict

_READABLE = 110  # longer lines are hard to read
_SPACE = "\N{NO-BREAK SPACE}"


def headline(verdict: Verdict, findings: tuple[Finding, ...], width: int) -> list[str]:
    """Return the verdict, what was found, worst first, with what to try, and last what is harmless.

    Args:
        verdict: The verdict; its text begins with its word.
        findings: What was found beside it.
        width: Characters of a line.
    """
    lines = wrapped(verdict.text, width)
    harmless = [finding for finding in findings if finding.severity <= 0]
    for finding in findings:
        if finding.severity > 0:
            lines += ["", *wrapped(f"{finding.kind}: {finding.text}", width)]
            if finding.remedy:
                lines += wrapped(f"try: {finding.remedy}", width, "  ")
    if harmless:
        lines += ["", *wrapped("harmless: " + "; ".join(f"{f.kind}: {f.text}" for f in harmless), width)]
    return lines


def all_findings(verdict: Verdict, step: Step) -> tuple[Finding, ...]:
    """Return what the verdict and the step hold, worst first and each once."""
    return worst_first(list(dict.fromkeys((*verdict.findings, *step.findings))))


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Wrap a text between words, and never inside the brackets of a call that is there to be copied."""
    kept = re.sub(r"\w\([^()]*\)", lambda call: call[0].replace(" ", _SPACE), text)
    lines = textwrap.wrap(
        kept,
        min(width, _READABLE),
        initial_indent=indent,
        subsequent_indent=indent + "  " * bool(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_SPACE, " ") for line in lines]
