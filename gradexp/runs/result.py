"""Everything known about one run, from its start to its end; ``summary`` is what summary.json holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from gradexp.config import Config, as_dict
from gradexp.history.history import History
from gradexp.history.sentences import shortened
from gradexp.history.step import Array
from gradexp.history.verdict import Verdict
from gradexp.runs.number_format import FormatCheck
from gradexp.runs.wording import run_title, training_line

if TYPE_CHECKING:  # importing them would load torch, and a run's first files are written before that
    from gradexp.runs.training import Training
    from gradexp.theory import Agreement, Prediction


class Distribution(NamedTuple):
    """Histogram of the finite values, with their sum and sum of squares.

    Args:
        counts: Shape ``(bins,)``.
        edges: Edges of the bins from the smallest to the largest value, shape ``(bins + 1,)``.
        total: Sum of the values.
        squares: Sum of their squares.
    """

    counts: Array
    edges: Array
    total: float
    squares: float


RunStatus = Literal["running", "complete", "interrupted", "failed"]


@dataclass(repr=False)
class Result:
    """One run. Fields that are not known yet, or do not apply, are None.

    Args:
        config: The resolved options.
        overrides: The options of the command line.
        status: ``running``, ``complete``, ``interrupted`` or ``failed``; divergence is complete.
        error: One line, if failed.
        device: Device it runs on, for example ``"cuda:0"``.
        device_name: The device's own name.
        threads: CPU threads.
        building: What is built, in four lines.
        initial: The profile at initialisation, of all networks, with theory's beside it.
        prediction: What theory says of the network.
        comparison: How far the measurement is from that.
        training: Losses and accuracies.
        guessing: Training loss of a network that ignores its input.
        guessing_accuracy: Its training accuracy; None without classes.
        gradients: What the probe has recorded in training; brought up to date now and then while it goes on.
        outputs: (training steps so far, layer -> histogram of its outputs z of one batch).
        format_check: What a number format of 16 bits does to the network; None in any other.
        verdict: The outcome.
        weights: The final parameters, if they are to be saved.
        progress: (activity, done, total) of what is going on.
        seconds: Wall time of the whole run.
        seconds_by_part: Wall time of each part.
    """

    config: Config
    overrides: list[str] = field(default_factory=list)
    status: RunStatus = "running"
    error: str | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    device: str | None = None
    device_name: str | None = None
    threads: int | None = None
    building: str | None = None
    initial: History | None = None
    prediction: "Prediction | None" = None
    comparison: "Agreement | None" = None
    training: "Training | None" = None
    guessing: float | None = None
    guessing_accuracy: float | None = None
    gradients: History | None = None
    outputs: "list[tuple[int, dict[int, Distribution]]]" = field(default_factory=list)
    format_check: FormatCheck | None = None
    verdict: Verdict | None = None
    weights: dict[str, Any] | None = None
    progress: tuple[str, int, int] = ("", 0, 0)
    seconds: float | None = None
    seconds_by_part: dict[str, float] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the networks measured at initialisation; training is of the first."""
        return [self.config.seed + index for index in range(self.config.seeds)]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: verdict, training, pictures and folded table."""
        from gradexp.page.cell import cell
        from gradexp.runs.page import result_page

        config, initial, training = as_dict(self.config), self.initial, self.training
        return cell(result_page(config, self.status, self.error, initial, training, self.guessing, self.verdict))

    def __repr__(self) -> str:
        lines = [f"Result({run_title(as_dict(self.config))}, {self.status})"]
        lines += [] if self.error is None else [self.error]
        lines += [] if self.verdict is None else [self.verdict.words, self.verdict.text]
        lines += [training_line(self.training)] if self.training is not None and self.training.losses else []
        return "\n".join(map(shortened, lines))


Stage = Literal["start", "built", "initial", "progress", "step", "end"]
"""What has become known of a run: its options, network, profile at initialisation, steps of training, end."""


class Sink(Protocol):
    """Where results go: ``write`` is called again and again as a run becomes known."""

    def write(self, stage: Stage, result: Result) -> None:
        """Handle what is known at a stage; ``progress`` comes in between."""

    def close(self) -> None:
        """Release files and terminal."""


def tell(sinks: Sequence[Sink], stage: Stage, result: Result) -> None:
    """Hand a result to every sink at one stage."""
    for sink in sinks:
        sink.write(stage, result)
