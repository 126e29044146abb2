"""The networks that are trained for the lesson: one architecture, some first weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from gradexp.config import Config, InitConfig, OptimizerConfig
from gradexp.page.document import escape
from gradexp.page.lines import Line
from gradexp.runs.experiment import run_stack
from gradexp.runs.result import Result, Sink
from gradexp.runs.summary import summary
from gradexp.sinks.page import run_line

NETWORK = Config(
    depth=30,
    width=64,
    activation="relu",
    steps=200,
    optimizer=OptimizerConfig("momentum", lr=0.003),
)
"""What is trained: deep enough that the first weights decide, small enough for some seconds."""

INITS = {
    "He": InitConfig("he"),
    "Xavier": InitConfig("xavier"),
    "PyTorch’s default": InitConfig("torch_default"),
    "He × 1.5": InitConfig("he", gain=1.5),
}
"""The name of each line, and its first weights."""


@dataclass(frozen=True)
class Training:
    """A trained network, with its name on the page."""

    name: str
    result: Result


def train(network: Config = NETWORK, sinks: Sequence[Sink] = ()) -> list[Training]:
    """Train a network from each of the initialisations, all at once.

    Args:
        network: The network and its training.
        sinks: Who follows the progress.
    """
    results = run_stack([replace(network, init=init) for init in INITS.values()], sinks)
    return [Training(name, result) for name, result in zip(INITS, results, strict=True)]


def line(training: Training) -> Line:
    """Return a training as a line of the chart, of the back-propagated gradient only."""
    result = training.result
    assert result.initial is not None
    assert result.training is not None
    assert result.verdict is not None
    made = run_line(
        training.name,
        summary(result)["config"],
        result.initial,
        result.gradients,
        result.training.losses,
        guessing=result.guessing,
        words=(result.verdict.gradient, result.verdict.training),
    )
    only = {
        key: {"output_grad": sizes["output_grad"]}
        for key in ("initial", "theory", "course")
        if "output_grad" in (sizes := getattr(made, key))
    }
    return replace(made, **cast(dict[str, Any], only))


def outcome(training: Training) -> str:
    """Return what became of a training, as an item of a list in HTML."""
    result = training.result
    verdict, trained, initial = result.verdict, result.training, result.initial
    assert verdict is not None
    assert trained is not None
    assert initial is not None
    left = initial.first_over_last("output_grad")
    size = ""
    if left is not None:
        power = f"10<sup>{left:.1f}</sup>".replace("-", "−")
        size = f": {power} of it arrives at layer 1" if left < 0 else f": at layer 1 it is {power} times as large"
    first, last = (f"{float(f'{loss:.3g}'):,.10g}" for loss in (trained.losses[0], trained.losses[-1]))
    end = {
        "trained": f"The network learns: its loss goes from {first} to {last}.",
        "stuck": "The network does not learn: its loss stays near that of guessing.",
        "diverged": f"The training breaks: its loss begins at {first}, and from step {trained.diverged_at} on "
        "the loss or a weight is inf or nan (“not a number”).",
    }.get(verdict.training, "")
    return f"<li><strong>{escape(training.name)}</strong>: the gradient is {verdict.gradient}{size}. {end}</li>"
