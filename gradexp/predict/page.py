"""A forecast as a notebook shows it: verdict, the predicted gradient beside that of each cure, what to change."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from gradexp.history.verdict import Verdict
from gradexp.page.page import Page
from gradexp.runs.remedies import Remedy
from gradexp.runs.wording import init_name, run_title
from gradexp.theory import Prediction
from gradexp.theory.page import FIRST, prediction_lines, prediction_tables, slope


class _Cure(NamedTuple):
    """A cure, as a page shows it."""

    kind: str
    text: str
    remedy: str
    modules: tuple[str, ...] = ()
    severity: int = 1


def forecast_page(
    config: Mapping[str, Any],
    inputs: str,
    prediction: Prediction,
    verdict: Verdict,
    problem: str,
    remedies: Sequence[Remedy],
    training: str = "",
) -> Page:
    """Return all that is known of a run without running it.

    Args:
        config: The options, as ``gradexp.config.as_dict`` gives them.
        inputs: Description of the inputs.
        prediction: Prediction of the profile at initialisation.
        verdict: The verdict on it.
        problem: What theory finds wanting; empty if nothing is.
        remedies: What cures it, the least change first.
        training: Which layer the number format gives out at, if that is known.
    """
    cures = [f"cure {number}" if len(remedies) > 1 else "cure" for number in range(1, len(remedies) + 1)]
    lines = prediction_lines(init_name(config["init"]), prediction)
    for name, remedy in zip(cures, remedies, strict=True):
        lines += prediction_lines(name, remedy.prediction)
    facts = [f"inputs: {inputs}", slope(prediction), f"theory: {prediction.reason}"]
    facts += [f"training {training}"] if training else []
    facts += [problem] if verdict.gradient == "stable" else []  # else the verdict says it
    return Page(
        run_title(config),
        words=[verdict.gradient],
        text=verdict.text,
        facts=facts,
        lines=[replace(line, colour=index) for index, line in enumerate(lines)],
        first=FIRST,
        decades=config["verdict"]["decades"],
        findings=[_Cure(name, remedy.reason, remedy.text) for name, remedy in zip(cures, remedies, strict=True)],
        sections=prediction_tables(prediction),
    )
