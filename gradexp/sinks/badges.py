"""Verdicts as badges in the terminal, told apart by colour and, without colours, by their words alone."""

from rich.text import Text

from gradexp.history.verdict import Verdict

_GOOD, _BAD, _LOST, _CAREFUL = "green", "red", "blue", "yellow"
COLOURS = {
    "stable": _GOOD,
    "vanishing": _LOST,
    "dead": _LOST,
    "exploding": _BAD,
    "nonfinite": _BAD,
    "trained": _GOOD,
    "stuck": _CAREFUL,
    "diverged": _BAD,
    "agrees": _GOOD,
    "deviates": _CAREFUL,
}


def badges(verdict: Verdict, is_terminal: bool = True) -> Text:
    """Return the three words of a verdict, on a terminal in reverse, which a terminal without colours shows too.

    Args:
        verdict: The verdict.
        is_terminal: Whether it is for a terminal; in a file it is plain text.
    """
    if not is_terminal:
        return Text(verdict.words)
    text = Text()
    for subject in ("gradient", "training", "theory"):
        word = getattr(verdict, subject)
        text.append("  " * bool(text) + f"{subject} ")
        text.append(f" {word} ", f"bold reverse {COLOURS[word]}" if word in COLOURS else "dim")
    return text


def coloured(word: str, width: int = 0) -> Text:
    """Return a word of a verdict in its colour, filled up with spaces."""
    return Text(f"{word:<{width}}", COLOURS.get(word, ""))
