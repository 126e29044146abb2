"""A verdict and its findings as lines of text, which come before any table."""

import re
import textwrap

from gradexp.history.verdict import Verdict

_READABLE = 110  # longer lines are hard to read
_SPACE = "\N{NO-BREAK SPACE}"


def headline(verdict: Verdict, width: int) -> list[str]:
    """Return the verdict, what was found, worst first, with what to try, and last what is harmless.

    Args:
        verdict: The verdict; its text begins with its word, or is that of the worst finding.
        width: Characters of a line.
    """
    lines = []
    texts = [f"{finding.kind}: {finding.text}" for finding in verdict.findings]
    if verdict.text not in texts[:1]:
        lines += [*wrapped(verdict.text, width), ""]
    for finding, text in zip(verdict.findings, texts, strict=True):
        if finding.severity > 0:
            lines += wrapped(text, width)
            if finding.remedy:
                lines += wrapped(f"try: {finding.remedy}", width, "  ")
            lines.append("")
    harmless = [text for finding, text in zip(verdict.findings, texts, strict=True) if finding.severity <= 0]
    if harmless:
        lines += wrapped("harmless: " + "; ".join(harmless), width)
    return lines[:-1] if lines[-1] == "" else lines


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
