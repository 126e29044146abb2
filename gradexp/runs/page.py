"""A run as a notebook shows it: verdict, training, the profile at initialisation, the loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradexp.history.history import History
from gradexp.history.page import initial_line, named, steps_table
from gradexp.history.verdict import Verdict
from gradexp.page.page import Page
from gradexp.runs.wording import init_name, run_title, training_line

if TYPE_CHECKING:  # importing it would load torch
    from gradexp.runs.training import Training


def result_page(
    config: Mapping[str, Any],
    status: str,
    error: str | None,
    initial: History | None,
    training: "Training | None",
    guessing: float | None,
    verdict: Verdict | None,
) -> Page:
    """Return what is known of a run.

    Args:
        config: The options, as ``gradexp.config.as_dict`` gives them.
        status: That of the run.
        error: One line, if it has failed.
        initial: The profile at initialisation.
        training: Losses and accuracies.
        guessing: Loss of a network that ignores its input.
        verdict: The outcome.
    """
    words = [] if verdict is None else [verdict.gradient, verdict.training, verdict.theory]
    losses = [] if training is None else training.losses
    name = init_name(config["init"])
    return Page(
        run_title(config),
        words=[*words, status],
        text=error or ("" if verdict is None else verdict.text),
        facts=[training_line(training)] if training is not None and losses else [],
        lines=[] if initial is None else [initial_line(name, initial, losses=losses, guessing=guessing)],
        names=[] if initial is None else named(initial.at()),
        decades=config["verdict"]["decades"],
        findings=() if verdict is None else verdict.findings,
        sections=[] if initial is None else [steps_table(initial.at(), "at initialisation")],
    )
