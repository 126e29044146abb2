"""The loggers that a step can be handed to: each knows how its library wants numbers and texts.

A target is recognised by its methods, and made by who uses it, so that no library is imported here.
"""

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gradexp.choices import asked_for
from gradexp.history.curves_file import CurvesFile
from gradexp.history.finding import Finding, one_line
from gradexp.history.mlflow_process import MlflowProcess
from gradexp.history.step import Array
from gradexp.history.tensorboard import note_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAG = "gradient/findings"
PICTURE = "gradient/layers_by_step"


class Logger(Protocol):
    """Takes one step after the other.

    Some take pictures too, and some have work of their own to end: see ``Painter`` and ``Worker``.
    """

    def write(self, step: int, numbers: Mapping[str, float], findings: Sequence[Finding]) -> None:
        """Hand a step on at once.

        Args:
            step: Its label.
            numbers: By tag, nan where there is none.
            findings: Those that the step is the first to show.
        """
        ...


class Painter(Protocol):
    """A logger that takes pictures."""

    def draw(self, step: int, figure: "Figure") -> None:
        """Hand a picture on, drawn at a step."""
        ...


class Worker(Protocol):
    """A logger that works on while the training does."""

    def finish(self) -> None:
        """Wait until all is where it belongs."""
        ...


def painters_among(loggers: Sequence[Logger]) -> list[Any]:
    """Return those that take pictures, as far as one can tell before there is one."""
    return [logger for logger in loggers if getattr(logger, "takes_pictures", hasattr(logger, "draw"))]


def loggers_of(log: Any, axis: str = "gradient/step") -> list[Logger]:
    """Return the loggers that somebody has asked for.

    Args:
        log: A target, or several.
        axis: What the horizontal axis is called, where a library does not call all of them step.

    Raises:
        TypeError: If it is no target.
        ValueError: If it is a path that does not end in .csv, or a file of something else.
        OSError: If the file cannot be opened.
    """
    if isinstance(log, (list, tuple)):
        return [logger for target in log for logger in loggers_of(target, axis)]
    if callable(getattr(log, "write", None)) and callable(getattr(log, "draw", None)):
        return [log]  # one already
    # A method such as ``run.log`` says no more than what it belongs to.
    owner = log.__self__ if inspect.ismethod(log) and log in _own_methods(log.__self__) else log
    if isinstance(log, (str, Path)):
        return [CurvesFile(_csv_path(log))]
    if isinstance(owner, ModuleType) and owner.__name__ == "wandb":
        if getattr(owner, "run", None) is None:
            raise ValueError("log is the module wandb, which has no run yet; give log=wandb.init(...)")
        owner = owner.run
    if not isinstance(owner, type):
        if (known := _known(owner, axis)) is not None:
            return [known]
        if callable(log):
            return [FunctionLogger(log)]
    given = f"the class {log.__name__}, of which an instance is wanted" if isinstance(log, type) else repr(log)
    raise TypeError(f"log must be one of {_ALLOWED}, got {given}")


def _known(owner: Any, axis: str) -> Logger | None:
    """Return the logger for an object that is told by its methods."""
    for kind, methods in _KINDS.items():
        if all(callable(getattr(owner, method, None)) for method in methods):
            return WandbLogger(owner, axis) if kind is WandbLogger else kind(owner)
    return None


def _own_methods(owner: Any) -> list[Any]:
    return [getattr(owner, name, None) for name in ("log", "log_metrics")]


_ALLOWED = (
    "a function of step and numbers, a path that ends in .csv, a SummaryWriter, a wandb run, the module mlflow, "
    "a logger of Lightning"
)


def _csv_path(log: str | Path) -> Path:
    if Path(log).suffix.lower() != ".csv":
        raise ValueError(f"log must be one of {_ALLOWED}, got {str(log)!r}")
    return Path(log)


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers that a chart can show."""
    return {tag: value for tag, value in numbers.items() if math.isfinite(value)}


def lines(findings: Sequence[Finding]) -> str:
    """Return findings as text, one a line."""
    return "\n".join(map(one_line, findings))


def dots_of(figure: "Figure") -> Array:
    """Return a figure as colours from 0 to 255, shape ``(height, width, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class TensorBoardLogger:
    """A ``SummaryWriter``: scalars, texts, pictures, and a flush after each."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, step: int, numbers: Mapping[str, float], findings: Sequence[Finding]) -> None:
        """Hand a step on at once."""
        write_scalars(self._writer, step, finite(numbers))
        write_text(self._writer, step, findings)
        self._writer.flush()
        note_curves(self._writer, step)

    @property
    def takes_pictures(self) -> bool:
        """Whether it is a writer that does."""
        return callable(getattr(self._writer, "add_image", None))

    def draw(self, step: int, figure: "Figure") -> None:
        """Hand a picture on."""
        self._writer.add_image(PICTURE, dots_of(figure), step, dataformats="HWC")
        self._writer.flush()


class WandbLogger:
    """A run of Weights & Biases, whose charts have a column of their own as their axis.

    A run takes no step below its last one. So a row is written at the step's label, or at the run's own step where
    that is further on, and joins what else is logged there; but no two rows are written at one step.
    """

    def __init__(self, run: Any, axis: str = "gradient/step") -> None:
        self._run = run
        self._axis = axis
        self._prefixes: set[str] = set()
        self._last: tuple[int, int] | None = None  # label of a row, and the run's step that has it

    def write(self, step: int, numbers: Mapping[str, float], findings: Sequence[Finding]) -> None:
        """Hand a step on at once."""
        row: dict[str, Any] = finite(numbers)
        for prefix in {tag.partition("/")[0] for tag in row} - self._prefixes:
            self._run.define_metric(f"{prefix}/*", step_metric=self._axis)
            self._prefixes.add(prefix)
        if findings:
            row[TAG] = lines(findings)
        self._run.log(row | {self._axis: step}, step=self._place(step))

    def draw(self, step: int, figure: "Figure") -> None:
        """Hand a picture on."""
        image = sys.modules["wandb"].Image(dots_of(figure))
        self._run.log({PICTURE: image, self._axis: step}, step=self._place(step))

    def _place(self, label: int) -> int:
        """Return the run's step at which a row belongs."""
        place: int = max(label, self._run.step)
        if self._last is not None and label != self._last[0] and place <= self._last[1]:
            place = self._last[1] + 1
        self._last = label, place
        return place


class MlflowLogger:
    """The module ``mlflow``, which logs to its active run; each finding is a tag, and a picture an artifact.

    A store takes several times as long for a step as the probe, so that a process of its own writes to it.
    """

    def __init__(self, mlflow: Any) -> None:
        self._mlflow = mlflow
        self._process: MlflowProcess | None = None

    def write(self, step: int, numbers: Mapping[str, float], findings: Sequence[Finding]) -> None:
        """Hand a step on at once."""
        if self._process is None:
            self._process = MlflowProcess(self._mlflow.get_tracking_uri())
        run = self._mlflow.active_run() or self._mlflow.start_run()
        metrics = {mlflow_key(tag): value for tag, value in finite(numbers).items()}
        self._process.send(run.info.run_id, step, metrics, mlflow_tags(step, findings))

    def draw(self, step: int, figure: "Figure") -> None:
        """Hand a picture on."""
        self._mlflow.log_figure(figure, f"{PICTURE}/{step:08}.png")

    def finish(self) -> None:
        """Wait until all is in the store."""
        if self._process is not None:
            self._process.wait()


class LightningLogger:
    """A logger of Lightning: its ``log_metrics``, and for texts what is behind it."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def write(self, step: int, numbers: Mapping[str, float], findings: Sequence[Finding]) -> None:
        """Hand a step on at once."""
        experiment: Any = getattr(self._logger, "experiment", None)
        metrics: dict[str, Any] = finite(numbers)
        if hasattr(experiment, "metrics_file_path"):  # CSVLogger's columns are those of the first row it writes
            metrics = {**numbers, TAG: lines(findings).replace("\n", "; ")}
        self._logger.log_metrics(metrics, step=step)
        if callable(getattr(experiment, "add_text", None)):
            write_text(experiment, step, findings)
            note_curves(experiment, step)
        elif findings and callable(getattr(experiment, "define_metric", None)):
            self._logger.log_metrics({TAG: lines(findings)}, step=step)
        elif findings and getattr(self._logger, "run_id", None) and hasattr(experiment, "set_tag"):
            for key, text in mlflow_tags(step, findings).items():
                experiment.set_tag(self._logger.run_id, key, text)
        self._logger.save()
        if callable(getattr(experiment, "flush", None)):
            experiment.flush()

    @property
    def takes_pictures(self) -> bool:
        """Whether what is behind it does."""
        return self._painter() is not None

    def draw(self, step: int, figure: "Figure") -> None:
        """Hand a picture on."""
        if (painter := self._painter()) is not None:
            painter(step, figure)

    def _painter(self) -> Callable[[int, "Figure"], None] | None:
        experiment: Any = getattr(self._logger, "experiment", None)
        if callable(getattr(experiment, "add_image", None)):
            return TensorBoardLogger(experiment).draw
        if callable(getattr(self._logger, "log_image", None)):
            return lambda step, figure: self._logger.log_image(PICTURE, [dots_of(figure)], step=step)
        if getattr(self._logger, "run_id", None) and callable(getattr(experiment, "log_figure", None)):
            run = self._logger.run_id
            return lambda step, figure: experiment.log_figure(run, figure, f"{PICTURE}/{step:08}.png")
        return None


class TrainerLogger:
    """The Trainer of transformers: its ``log``, at the step that it has reached."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def write(self, step: int, numbers: Mapping[str, float], findings: Sequence[Finding]) -> None:  # noqa: ARG002
        """Hand a step on at once."""
        self._trainer.log(finite(numbers) | ({TAG: lines(findings)} if findings else {}))


class AccelerateLogger:
    """An ``Accelerator``, whose trackers tell numbers and texts apart."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def write(self, step: int, numbers: Mapping[str, float], findings: Sequence[Finding]) -> None:
        """Hand a step on at once."""
        self._accelerator.log(finite(numbers) | ({TAG: lines(findings)} if findings else {}), step=step)
        if findings and any(getattr(tracker, "name", "") == "mlflow" for tracker in self._accelerator.trackers):
            sys.modules["mlflow"].set_tags(mlflow_tags(step, findings))  # its tracker takes no texts

    @property
    def takes_pictures(self) -> bool:
        """Whether one of the trackers does."""
        return bool(self._painters())

    def draw(self, step: int, figure: "Figure") -> None:
        """Hand a picture on."""
        for painter in self._painters():
            painter.draw(step, figure)

    def _painters(self) -> list[Any]:
        found: list[Logger] = []
        for tracker in self._accelerator.trackers:
            behind = _known(getattr(tracker, "tracker", None), "gradient/step")
            if callable(getattr(tracker, "log_figure", None)):  # MLflow's does it itself
                found.append(MlflowLogger(tracker))
            elif behind is not None:
                found.append(behind)
        return painters_among(found)


class FunctionLogger:
    """Any function of step and numbers, or of numbers and ``step``, as many libraries have it.

    If it has a parameter ``findings`` behind the ``*`` it is given their texts too.

    Raises:
        TypeError: If it does not take both.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        try:
            signature = inspect.signature(function)
        except ValueError:  # written in C without a signature
            self._has_step_second = self._wants_findings = False
            return
        names = list(signature.parameters)
        self._wants_findings = bool(asked_for(function, findings=[]))
        self._has_step_second = "step" in names[1:]
        try:
            arguments, named = self._arguments(0, {}, [])
            signature.bind(*arguments, **named)
        except TypeError as error:
            raise TypeError(f"log must be a function of step and numbers: {_name(function)}: {error}") from None

    def write(self, step: int, numbers: Mapping[str, float], findings: Sequence[Finding]) -> None:
        """Hand a step on at once."""
        arguments, named = self._arguments(step, finite(numbers), [*map(one_line, findings)])
        self._function(*arguments, **named)

    def _arguments(
        self, step: int, numbers: dict[str, float], findings: list[str]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named: dict[str, Any] = {"findings": findings} if self._wants_findings else {}
        return ((numbers,), {"step": step, **named}) if self._has_step_second else ((step, numbers), named)


_KINDS: dict[Callable[[Any], Logger], tuple[str, ...]] = {
    TensorBoardLogger: ("add_scalar", "add_text", "flush"),
    MlflowLogger: ("log_metrics", "set_tags", "active_run"),
    LightningLogger: ("log_metrics", "log_hyperparams", "save"),
    WandbLogger: ("log", "define_metric"),
    TrainerLogger: ("log", "add_callback"),
    AccelerateLogger: ("log", "init_trackers"),
}
"""Each kind of logger and the methods that tell it."""


def write_scalars(writer: Any, step: int, numbers: Mapping[str, float]) -> None:
    """Write the numbers of a step: to a writer of torch as one event, which costs a tenth of one for each."""
    if type(writer).__module__ == "torch.utils.tensorboard.writer" and writer.file_writer is not None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        writer.file_writer.add_summary(Summary(value=values), step)
    else:
        for tag, value in numbers.items():
            writer.add_scalar(tag, value, step)


def write_text(writer: Any, step: int, findings: Sequence[Finding]) -> None:
    """Write findings as a text of TensorBoard, which is Markdown."""
    if findings:
        writer.add_text(TAG, lines(findings).replace("\n", "\n\n"), step)


def mlflow_key(tag: str) -> str:
    """Return a tag without what MLflow forbids in the names of metrics."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in tag)


def mlflow_tags(step: int, findings: Sequence[Finding]) -> dict[str, str]:
    """Return a tag for each finding, with the step that is the first to show it."""
    return {f"gradexp.{f.kind.replace(' ', '_')}": f"step {step}: {one_line(f)}" for f in findings}


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
