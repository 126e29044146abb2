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


def network_name(config: Mapping[str, Any]) -> str:
    """Return what a network is, in a few words.

    Examples:
        >>> network_name({"model": {"name": "mlp"}, "depth": 150, "activation": "relu"})
        '150 relu layers'
        >>> network_name({"model": {"name": "cnn"}, "depth": 50, "activation": "tanh"})
        'tanh cnn of depth 50'
    """
    model, depth = config["model"]["name"], config["depth"]
    if model == "mlp":
        return f"{depth} {config['activation']} layer{'s' * (depth != 1)}"
    return str(model) if depth is None else f"{config['activation']} {model} of depth {depth}"


def run_title(config: Mapping[str, Any]) -> str:
    """Return what a run is of, in a few words."""
    init = config["init"]
    return network_name(config) if init["name"] == "auto" else f"{init_name(init)}: {network_name(config)}"


def training_line(training: "Training") -> str:
    """Return losses and accuracies of a training that has made a step."""
    losses, tests = training.losses, training.tests
    line = f"loss {loss_text(losses[0])} to {loss_text(losses[-1])} in {len(losses)} step{'s' * (len(losses) > 1)}"
    if training.diverged_at is not None:
        return f"{line}, not finite from step {training.diverged_at} on"
    if training.train_accuracy is not None:
        line += f"; accuracy {training.train_accuracy:.0%} in training, {tests[-1][2]:.0%} in test"
    return line
