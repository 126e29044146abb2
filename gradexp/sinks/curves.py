"""A run in the logger that one has: options, profile at initialisation, curves, and the numbers at the end."""

import importlib
import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradexp.choices import ConfigError
from gradexp.history.curves_file import CurvesFile
from gradexp.history.finding import Finding
from gradexp.history.live import LiveCurves
from gradexp.history.loggers import Logger, WandbLogger, loggers_of, painters_among
from gradexp.history.scalars import profile_points
from gradexp.runs.result import Result, Stage
from gradexp.runs.summary import metrics, summary
from gradexp.sinks.folder import CURVES
from gradexp.sinks.hparams import options
from gradexp.sinks.pictures import training_picture

LAYER = "profile/layer"


class Target(NamedTuple):
    """Where curves go.

    Args:
        log: As in ``GradientProbe``.
        end: Is called at the end with the run's status.
    """

    log: Any
    end: Callable[[str], None] = lambda _status: None


class Curves:
    """Write a run to loggers: the profile with step = layer, then each training step with what the probe recorded.

    A step is handed on when its gradients are known, which the run looks up every few seconds. At the end the verdict
    and the numbers of ``summary.json`` follow, and a picture. What a logger raises is one warning; the run goes on.

    Args:
        log: A target of ``GradientProbe(log=…)``, or several. A CSV file has the steps alone.
        figures: Whether to draw a picture.

    Examples:
        >>> from gradexp import Config
        >>> from gradexp.runs.experiment import run
        >>> seen = []
        >>> result = run(Config(depth=5, width=8, steps=3), [Curves(lambda step, numbers: seen.append(step))])
        >>> seen[-4:]
        [1, 2, 3, 3]
    """

    def __init__(self, log: Any, figures: bool = False) -> None:
        self._open = log if isinstance(log, _Opener) else None
        self._target = Target(log)
        self._loggers = loggers_of(log) if self._open is None else []
        self._has_begun = self._open is None
        self._figures = figures
        self._curves = LiveCurves(None)
        self._written = self._tests_written = 0  # training steps
        self._has_profile = False
        self._status = "failed"

    def write(self, stage: Stage, result: Result) -> None:
        """Hand on what is new."""
        if stage in ("built", "initial") and self._open is not None and not self._has_begun:
            self._target = self._open(result)
            self._loggers = loggers_of(self._target.log)
            self._has_begun = True
        if not self._loggers:
            return
        try:
            self._write(stage, result)
        except Exception as error:
            self._loggers = []
            cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
            warnings.warn(f"what follows is not in the log: {cause}", RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """End what was begun for this run."""
        for logger in self._loggers:
            if hasattr(logger, "finish"):
                logger.finish()
        if self._has_begun:
            self._target.end(self._status)
        self._loggers, self._has_begun = [], False

    def _write(self, stage: Stage, result: Result) -> None:
        if stage == "initial":
            self._profile(result)
        elif stage == "step" and result.gradients is not None and result.gradients.steps:
            self._steps(result, result.gradients.steps[-1] + 1)
        elif stage == "end":
            self._status = result.status
            training = result.training
            if training is not None:
                self._steps(result, len(training.losses))
                for step, loss, accuracy in training.tests[self._tests_written :]:  # after the last step
                    self._hand_on(step, _tested(loss, accuracy))
            self._end(result)

    def _end(self, result: Result) -> None:
        """Write the outcome."""
        verdict, history = result.verdict, result.gradients
        numbers = {f"summary/{key}": x for key, x in metrics(summary(result)).items() if _is_number(x)}
        word: Any = "" if verdict is None else verdict.gradient  # also that all is well, which is no finding
        found = [] if verdict is None else [Finding(word, verdict.text.removeprefix(f"{word}: "))]
        for logger in _with_all(self._loggers):
            logger.write(self._written, numbers, found)
        painters = painters_among(self._loggers) if self._figures and history is not None and history.steps else []
        if painters and history is not None:
            figure = training_picture(result)
            for painter in painters:
                painter.draw(history.steps[-1], figure)

    def _profile(self, result: Result) -> None:
        """Write sizes over layers."""
        if self._has_profile or result.initial is None:
            return
        self._has_profile = True
        # Charts over layers are only in wandb a matter of their own.
        is_wandb = any(isinstance(logger, WandbLogger) for logger in self._loggers)
        loggers = loggers_of(self._target.log, axis=LAYER) if is_wandb else self._loggers
        for layer, numbers in profile_points(result.initial.at()):
            for logger in _with_all(loggers):
                logger.write(layer, numbers, [])

    def _steps(self, result: Result, end: int) -> None:
        """Write training steps up to one."""
        training, history = result.training, result.gradients
        if training is None:
            return
        recorded = {} if history is None else {step: index for index, step in enumerate(history.steps)}
        tests = {step: (loss, accuracy) for step, loss, accuracy in training.tests[self._tests_written :]}
        for step in range(self._written, min(end, len(training.losses))):
            numbers = {"train/loss": training.losses[step]}
            if training.accuracies:
                numbers["train/accuracy"] = training.accuracies[step]
            if step in tests:
                numbers |= _tested(*tests.pop(step))
                self._tests_written += 1
            if history is not None and step in recorded:
                own = self._curves.numbers(history.of_step(recorded[step]))
                numbers |= {tag: x for tag, x in own.items() if tag != "gradient/loss"}
            self._hand_on(step, numbers)
            self._written = step + 1

    def _hand_on(self, step: int, numbers: dict[str, float]) -> None:
        for logger in self._loggers:
            logger.write(step, numbers, [])


def _with_all(loggers: Sequence[Logger]) -> list[Logger]:
    """Return those that take more than steps; ``layers.csv`` and ``summary.json`` are beside a CSV file of a run."""
    return [logger for logger in loggers if not isinstance(logger, CurvesFile)]


def _tested(loss: float, accuracy: float | None) -> dict[str, float]:
    return {"test/loss": loss} | ({} if accuracy is None else {"test/accuracy": accuracy})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class _Opener:
    """Opens a run of a library for a run of this one.

    Args:
        name: ``wandb``, ``mlflow`` or ``csv``.
        folder: The run's own folder.
        sweep: The name of the sweep that it is of; empty: none.

    Raises:
        ConfigError: If the library is missing.
    """

    def __init__(self, name: str, folder: Path, sweep: str) -> None:
        self._name = name
        self._folder = folder
        self._sweep = sweep
        if name in _PACKAGES and importlib.util.find_spec(name) is None:
            raise ConfigError(f"log={name} needs a package that is not installed: pip install {name}")

    def __call__(self, result: Result) -> Target:
        """Open it.

        Raises:
            ConfigError: If the library cannot.
        """
        if self._name == "csv":
            return Target(self._folder / CURVES)
        try:
            return _PACKAGES[self._name](self._folder, self._sweep, options(result.config))
        except Exception as error:
            raise ConfigError(f"log={self._name}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def curves_for(name: str, folder: Path, sweep: str = "", figures: bool = False) -> Curves:
    """Return the sink for what a command line asks for as ``log=NAME``.

    Args:
        name: ``wandb``, ``mlflow`` or ``csv``.
        folder: The run's own folder, whose name the run has there too.
        sweep: The name of the sweep that it is of; empty: none.
        figures: Whether to draw a picture.

    Raises:
        ConfigError: If the library is missing.
    """
    return Curves(_Opener(name, folder, sweep), figures)


def _wandb(folder: Path, sweep: str, config: dict[str, Any]) -> Target:
    wandb = importlib.import_module("wandb")
    settings = {"console": "off", "silent": True}
    if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:
        settings["x_transaction_log_flush_interval"] = 0.001  # seconds: each row is on disk at once
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "gradexp"),
        group=sweep or None,
        name=folder.name,
        dir=str(folder),
        config=config,
        settings=wandb.Settings(**settings),
    )
    return Target(run, lambda status: run.finish(exit_code=int(status != "complete")))


def _mlflow(folder: Path, sweep: str, config: dict[str, Any]) -> Target:
    mlflow = importlib.import_module("mlflow")
    for library in ("mlflow", "alembic"):  # which tell how they make a new store
        logging.getLogger(library).setLevel(logging.WARNING)
    if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
        mlflow.set_experiment("gradexp")
    mlflow.start_run(run_name=folder.name, tags={"sweep": sweep} if sweep else None)
    mlflow.log_params({key: value for key, value in config.items() if value is not None})
    ends = {"complete": "FINISHED", "interrupted": "KILLED"}
    return Target(mlflow, lambda status: mlflow.end_run(ends.get(status, "FAILED")))


_PACKAGES: dict[str, Callable[[Path, str, dict[str, Any]], Target]] = {"wandb": _wandb, "mlflow": _mlflow}
