"""What a run is called, and how its training went, in a few words."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradexp.choices import INIT_OPTIONS
from gradexp.history.sentences import loss_text

if TYPE_CHECKING:  # importing it would load torch
    from gradexp.runs.training import Training


def init_name(init: Mapping[str, Any]) -> str:
    """Return an initialisation with those of its options that are not as usual.

    Examples:
        >>> init_name({"name": "normal", "gain": 1.0, "std": 0.06})
        'normal, std 0.06'
    """
    usual = INIT_OPTIONS.get(init["name"], {})
    special = [f", {key} {value}" for key, value in init.items() if key != "name" and value != usual.get(key)]
    return "".join([str(init["name"]), *special])


def run_title(config: Mapping[str, Any]) -> str:
    """Return what a run is of, in a few words."""
    layers = "layers" if config["depth"] > 1 else "layer"
    return f"{init_name(config['init'])}: {config['depth']} {config['activation']} {layers}"


def training_line(training: "Training") -> str:
    """Return losses and accuracies of a training that has made a step."""
    losses, tests = training.losses, training.tests
    line = f"loss {loss_text(losses[0])} to {loss_text(losses[-1])} in {len(losses)} step{'s' * (len(losses) > 1)}"
    if training.diverged_at is not None:
        return f"{line}, not finite from step {training.diverged_at} on"
    if training.train_accuracy is not None:
        line += f"; accuracy {training.train_accuracy:.0%} in training, {tests[-1][2]:.0%} in test"
    return line
