"""A run on one page: report.html."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradexp.history.finding import Finding
from gradexp.history.history import History
from gradexp.history.page import course, initial_line, named, steps_table
from gradexp.page.lines import Line
from gradexp.page.page import NAMES, Page
from gradexp.runs.result import Result, Stage
from gradexp.runs.summary import summary
from gradexp.runs.wording import init_name, run_title

NAME = "report.html"


class PageFile:
    """Write report.html when the run ends, also after an interruption; without a profile there is nothing to show.

    Args:
        folder: The run's own folder.

    Raises:
        OSError: If the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, stage: Stage, result: Result) -> None:
        """Write the page at the end."""
        if stage == "end" and result.initial is not None:
            training, verdict = result.training, result.verdict
            run_page(
                summary(result),
                result.initial,
                result.gradients,
                training.losses if training is not None else (),
                result.guessing,
                verdict.findings if verdict is not None else (),
            ).write(self.folder / NAME)

    def close(self) -> None:
        """Nothing is held open."""


def run_page(
    content: Mapping[str, Any],
    initial: History,
    gradients: History | None = None,
    losses: Sequence[float] = (),
    guessing: float | None = None,
    findings: Sequence[Finding] = (),
) -> Page:
    """Return a run on one page.

    Args:
        content: Content of its summary.json.
        initial: The profile at initialisation.
        gradients: What was recorded in training.
        losses: Loss of each training step.
        guessing: Loss of a network that ignores its input.
        findings: What was found, worst first.
    """
    config, verdict = content["config"], content["verdict"]
    words = [verdict[key] for key in ("gradient", "training", "theory")]
    status = "" if content["status"] == "complete" else content["status"]
    return Page(
        run_title(config),
        words=[*words, *([status] if status else [])],
        text=verdict["text"] or content["error"] or "",
        facts=[command(content["overrides"]), settings(config), versions(content)],
        lines=[run_line(init_name(config["init"]), config, initial, gradients, losses, guessing=guessing)],
        names=named(initial.at()),
        first="at initialisation",
        decades=config["verdict"]["decades"],
        findings=findings,
        sections=[steps_table(initial.at(), "at initialisation")],
    )


def run_line(
    name: str,
    config: Mapping[str, Any],
    initial: History,
    gradients: History | None = None,
    losses: Sequence[float] = (),
    **others: Any,
) -> Line:
    """Return a run as a line of the chart: at initialisation, and in training."""
    fields: dict[str, Any] = {"losses": losses, "factor": _factor(config), **others}
    if gradients is not None and gradients.steps and gradients.has_rows_of(initial):
        shown = [quantity for quantity in NAMES if quantity in gradients.log10 and quantity in initial.log10]
        fields |= {"steps": gradients.steps, "course": course(gradients, shown)}
    return initial_line(name, initial, **fields)


def _factor(config: Mapping[str, Any]) -> float | None:
    """Return λ if the layers are λ times the identity and the inputs are ones, as in the lesson."""
    plain = config["model"]["name"] == "mlp" and config["activation"] == "linear" and not config["sigma_b2"]
    plain = plain and config["normalization"] == config["residual"] == "none"
    is_lesson = plain and config["init"]["name"] == "identity" and config["data"]["name"] == "ones"
    return float(config["init"]["gain"]) if is_lesson else None


def command(overrides: Sequence[str]) -> str:
    """Return the command of a run."""
    return shlex.join(["python", "-m", "gradexp.run", *overrides])


def settings(config: Mapping[str, Any]) -> str:
    """Return the options that matter most, in words."""
    optimizer = config["optimizer"]
    trained = f"{config['steps']} steps of {optimizer['name']}, lr {optimizer['lr']:g}"
    width = f"{config['width']} {'units' if config['model']['name'] == 'mlp' else 'wide'}"
    facts = [
        *([] if config["width"] is None else [width if not config["widths"] else "layers of different widths"]),
        *(f"{key} {config[key]}" for key in ("normalization", "residual") if config[key] not in ("none", None)),
        f"data {config['data']['name']}",
        trained if config["steps"] else "no training",
        config["dtype"],
        f"seed {config['seed']}" if config["seeds"] == 1 else f"{config['seeds']} seeds from {config['seed']}",
    ]
    return ", ".join(facts)


def versions(content: Mapping[str, Any]) -> str:
    """Return when and with what a run was made."""
    used = [f"{key} {content[key]}" for key in ("gradexp", "torch", "python") if content[key]]
    device = [f"on {content['device_name'] or content['device']}"] if content["device"] else []
    return ", ".join([*used, *device, f"begun {content['started'][:16].replace('T', ' ')} UTC"])
