"""Event files for TensorBoard: profiles, curves, and the cards of the other files of this room."""

import math
import time
from pathlib import Path

from gradexp.history.history import training_points
from gradexp.history.scalars import Points, Values, layer_points, points, profile_points
from gradexp.runs.result import Result, Stage
from gradexp.sinks.cards import histograms, picture, text_cards
from gradexp.sinks.event_file import EventFile
from gradexp.sinks.hparams import hparams
from gradexp.sinks.pictures import PROFILE, TRAINING, profile_picture, training_picture


class TensorBoard:
    """Write event files: profiles with step = layer, training scalars with step = training step, words and pictures.

    A cell without a number is left out, never replaced by a floor. Theory goes to an event file of its own in the
    folder ``theory``: TensorBoard draws runs with the same tag into one card. So does the profile of training step
    99, if asked for, to ``step_000099``; it is of the loss, and not of a gradient of length 1 at the last layer, and
    has other tags. All is written as soon as it is known, so that the dashboard follows a training. Training never
    waits for the disk: threads of their own write the files, at least every five seconds.

    Args:
        folder: The run's own folder; its name is the run's name in TensorBoard.
        subruns: Whether to write theory.
        figures: Whether to draw pictures.
    """

    def __init__(self, folder: Path, subruns: bool = True, figures: bool = False) -> None:
        self.folder = folder
        self.subruns = subruns
        self.figures = figures
        self._writer: EventFile | None = None
        self._steps_written = self._tests_written = self._gradients_written = self._outputs_written = 0
        self._steps_drawn = 0
        self._due = -math.inf
        self._opened = time.monotonic()
        self._picture_due = self._opened + _BETWEEN_PICTURES

    @property
    def writer(self) -> EventFile:
        """The event file, opened on first use."""
        if self._writer is None:
            self._writer = EventFile(self.folder)
        return self._writer

    def write(self, stage: Stage, result: Result) -> None:
        """Add what is new."""
        if stage == "initial" and result.initial is not None:
            write_points(self.writer, profile_points(result.initial.at()))
            if self.subruns and result.initial.theory:
                # Its band would be two lines more of the same colour; the picture and report.html have it.
                lines = {key: line for key, line in result.initial.theory.items() if key.startswith("log10")}
                self._subrun("theory", layer_points(lines))
            self._outputs(result)
            if self.figures:
                self.writer.add_summary(picture(PROFILE, profile_picture(result)), 0)
        elif stage == "step" and time.monotonic() >= self._due:
            self._step(result)
            self._due = time.monotonic() + _BETWEEN
        elif stage == "end":
            self._step(result)
            self._training_picture(result)
            if result.device is not None:  # else it stopped before torch was loaded, and this is no time to load it
                for summary in [*hparams(result, self.folder.name), *text_cards(result)]:
                    self.writer.add_summary(summary)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()

    def _subrun(self, name: str, values: Points) -> None:
        writer = EventFile(self.folder / name)
        write_points(writer, values)
        writer.close()

    def _step(self, result: Result) -> None:
        training = result.training
        if training is None:
            return
        tests = training.tests[self._tests_written :]
        at, losses, accuracies = zip(*tests, strict=True) if tests else ((), (), ())
        write_points(self.writer, points(at, {"test/loss": losses, "test/accuracy": accuracies}))
        self._tests_written = len(training.tests)
        new = slice(self._steps_written, None)
        series: dict[str, Values] = {"train/loss": training.losses[new], "train/accuracy": training.accuracies[new]}
        write_points(self.writer, points(range(self._steps_written, len(training.losses)), series))
        self._steps_written = len(training.losses)
        self._gradients(result)
        self._outputs(result)

    def _gradients(self, result: Result) -> None:
        """Write what the probe has recorded since the last time."""
        history = result.gradients
        if history is None or len(history.steps) == self._gradients_written:
            return
        begin, self._gradients_written = self._gradients_written, len(history.steps)
        write_points(self.writer, training_points(history, begin))
        drawn = set(result.config.record.profile_steps)
        for index, step in enumerate(history.steps[begin:], start=begin):
            if step in drawn:
                self._subrun(f"step_{step:06}", profile_points(history.at(index), OF_LOSS))
        now = time.monotonic()
        if now >= self._picture_due:
            self._training_picture(result)
            # A long training is not watched as closely as a short one, and its pictures would fill the disk.
            self._picture_due = now + max(_BETWEEN_PICTURES, (now - self._opened) / 20)

    def _training_picture(self, result: Result) -> None:
        history = result.gradients
        if self.figures and history is not None and history.steps[self._steps_drawn :]:
            self.writer.add_summary(picture(TRAINING, training_picture(result)), history.steps[-1])
            self._steps_drawn = len(history.steps)

    def _outputs(self, result: Result) -> None:
        """Write histograms of the outputs that were kept since the last time."""
        for step, outputs in result.outputs[self._outputs_written :]:
            for histogram in histograms(outputs):
                self.writer.add_summary(histogram, step)
        self._outputs_written = len(result.outputs)


OF_LOSS = "profile_of_loss"
"""The group of a profile in training: sizes of the loss's own gradient."""

# Seconds. Steps are handed over to the writing thread a few at a time, since waking it costs more than they do.
_BETWEEN = 0.1
_BETWEEN_PICTURES = 30.0


def write_points(writer: EventFile, steps: Points) -> None:
    """Write all values of a step as one event, which is several times smaller and faster than one for each."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # loads TensorBoard

    for step, values in steps:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        writer.add_summary(summary, step)
