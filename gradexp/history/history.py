"""What was measured: one number and one status per quantity, step, network and layer."""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from gradexp.history.course import Course
from gradexp.history.derived import extras
from gradexp.history.encoding import printable
from gradexp.history.finding import Finding, worst_first
from gradexp.history.npz import read_fields, write_fields
from gradexp.history.plot import draw_step, values_of
from gradexp.history.record_file import is_record, read_record
from gradexp.history.role_figure import draw_figure
from gradexp.history.roles import places
from gradexp.history.scalars import Points, or_none, points
from gradexp.history.sentences import counted, shortened
from gradexp.history.step import (
    QUANTITIES,
    STATUSES,
    Array,
    Phase,
    Quantity,
    Step,
    is_seen,
    mean_over_networks,
)
from gradexp.history.table import table
from gradexp.history.tensorboard import course_series, write_history
from gradexp.history.training import training_findings
from gradexp.history.unoptimized import unoptimized
from gradexp.history.updates import updates_findings
from gradexp.history.verdict import Verdict, gradient_verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


COLUMNS = (
    "phase",
    "step",
    "seed",
    "layer",
    "call",
    "name",
    "log10_output",
    "log10_output_grad",
    "log10_weight_grad",
    "log10_weight",
    "log10_update",
    "status_output",
    "status_output_grad",
    "status_weight_grad",
    "theory_log10_output",
    "theory_log10_output_grad",
    "theory_log10_weight_grad",
    "theory_sd_output_grad",
)


@dataclass(repr=False)
class History:
    """Log10 of sizes over steps, networks and layers.

    ``output`` is an rms over units, all others are L2 norms (see README, "What is measured").

    Args:
        phase: ``"init"`` (``exact_profile``) or ``"train"`` (``GradientProbe``).
        names: Module name of each layer.
        steps: Label of each recorded step.
        seeds: Seed of each network.
        log10: Quantity -> array of shape ``(step, network, layer)``, float64, nan where there is no number.
        status: Quantity -> int8 array of the same shape, an index into ``STATUSES``.
        largest_log10: Quantity -> log10 of the largest element's magnitude over all samples, same shape
            (initial profile only).
        dead_fraction: Share of each network's samples that are exactly 0 at some layer, shape ``(network,)``
            (initial profile only).
        output_cosine: Mean cosine between the outputs of two samples, shape ``(network,)``; near 1 the
            network cannot tell its inputs apart (initial profile only).
        calls: Which call of its module in a forward pass each layer is, from 0.
        dtypes: Quantity -> number format of its tensors, such as ``"float32"`` (probe only).
        stats: ``"quantity.name"`` -> further statistics, shape ``(step, network, layer)``.
        samples: log10 of the norm of each sample's output gradient, shape ``(step, network, layer, sample)``,
            nan where there is none. The probe records all samples, with ``per_sample=True`` only; the initial
            profile only the first, which is nan at every layer if it is exactly 0 at one.
        theory: What theory predicts of each layer, shape ``(layer,)``: ``log10_output``, ``log10_output_grad``,
            ``log10_weight_grad``, and the standard deviation ``sd_output_grad`` of one sample of one network; empty
            if it was not asked.
        total_grad: log10 of the norm of all parameters' gradients together, which is what clipping sees, shape
            ``(step, network)``, nan where it is not known; None if it was not recorded.
        loss: The loss's value, same shape, nan where it is not known; None if it was not given.
        time_log10: ``"quantity/name"`` -> sizes at each time step of a recurrent layer, shape ``(step, network,
            time)`` (probe with ``time=True`` only; ``over_time`` reads them).
        time_status: The same for indices into ``STATUSES``.
        feeds: Pairs of layers, of which the first one feeds the second one, as in ``Step`` (probe only).
        remedies: Kind of finding -> what cures it, tried on a copy of the model (``measure`` only).
        kinds: Class and shape of weights of each layer's module, such as ``"Linear(256x128)"``; empty if not known.
        findings: What was found in each step beside the sizes, worst first; empty if nobody looked.
    """

    phase: Phase
    names: list[str]
    steps: list[int]
    seeds: list[int]
    log10: dict[Quantity, Array]
    status: dict[Quantity, NDArray[np.int8]]
    largest_log10: dict[Quantity, Array] = field(default_factory=dict)
    dead_fraction: Array | None = None
    output_cosine: Array | None = None
    calls: list[int] = field(default_factory=list)
    dtypes: dict[str, str] = field(default_factory=dict)
    stats: dict[str, Array] = field(default_factory=dict)
    samples: Array | None = None
    theory: dict[str, Array] = field(default_factory=dict)
    total_grad: Array | None = None
    loss: Array | None = None
    time_log10: dict[str, Array] = field(default_factory=dict)
    time_status: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    feeds: list[tuple[int, int]] = field(default_factory=list)
    remedies: dict[str, str] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    findings: list[tuple[Finding, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.calls = self.calls or [0] * len(self.names)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.names)

    def at(self, step: int = -1) -> Step:
        """Return one recorded step.

        Args:
            step: Index (not label) of the recorded step.

        Raises:
            ValueError: If nothing is recorded, or not that step.
        """
        recorded = len(self.steps)
        if not recorded:
            raise ValueError("nothing is recorded yet")
        if not -recorded <= step < recorded:
            raise ValueError(f"step is an index from 0 to {recorded - 1}, or -1 for the last, got {step}")
        recorded_step = self._step(step)
        # Why a step is lost is known where the probe has seen the gradients that the optimizer was given.
        lost = {name for finding in recorded_step.findings if finding.kind == "updates" for name in finding.modules}
        sizes = [f for f in updates_findings(recorded_step, self._step(0)) if not lost or not lost >= set(f.modules)]
        findings = [
            # What led to a bad step comes before what is bad in it.
            *(training_findings(self._course(step % recorded + 1)) if self.phase == "train" else ()),
            *recorded_step.findings,
            *unoptimized(self.names, recorded_step.status),
            *sizes,
        ]
        return replace(recorded_step, findings=worst_first(findings))

    def _course(self, end: int) -> Course:
        """Return the recorded steps before an index."""
        return Course(
            self.names,
            self.steps[:end],
            {quantity: values[:end] for quantity, values in self.log10.items()},
            {quantity: codes[:end] for quantity, codes in self.status.items()},
            None if self.loss is None else self.loss[:end],
            self.dtypes,
            self.kinds,
            self.feeds,
            self.findings[end - 1] if self.findings else (),
        )

    def _step(self, step: int) -> Step:
        """Return a recorded step with what was found when it was."""
        return Step(
            self.phase,
            self.names,
            {quantity: values[step] for quantity, values in self.log10.items()},
            {quantity: codes[step] for quantity, codes in self.status.items()},
            {quantity: values[step] for quantity, values in self.largest_log10.items()},
            self.dead_fraction,
            self.calls,
            self.dtypes,
            self.theory,
            self.feeds,
            self.findings[step] if self.findings else (),
            {name: values[step] for name, values in self.stats.items()},
            None if self.samples is None else self.samples[step],
            None if self.total_grad is None else self.total_grad[step],
            None if self.loss is None else self.loss[step],
            remedies=self.remedies,
            kinds=self.kinds,
            time_log10={key: values[step] for key, values in self.time_log10.items()},
            time_status={key: codes[step] for key, codes in self.time_status.items()},
        )

    def over_time(self, name: str, step: int = -1) -> Step:
        """Return what a recurrent layer does at each time step, as a ``Step`` whose layers are the time steps.

        Its sizes are those of the layer's output at that time and of the whole gradient with respect to it, through
        all later time steps too. So ``history.over_time("lstm.l0").first_over_last("output_grad")`` says how much
        of the gradient at the last time step is left at the first. For a module that is called once per time step,
        such as ``nn.LSTMCell``, these are its calls.

        Args:
            name: Of a row: a recurrent module, or one of its layers.
            step: Index (not label) of the recorded step.

        Raises:
            ValueError: If nothing is recorded over time under that name.
        """
        recorded = self.at(step)
        calls = [row for row, own in enumerate(self.names) if own == name]
        of_time = [quantity for quantity in QUANTITIES[:2] if f"{quantity}/{name}" in self.time_log10]
        log10 = {quantity: self.time_log10[f"{quantity}/{name}"][step] for quantity in of_time}
        status = {quantity: self.time_status[f"{quantity}/{name}"][step] for quantity in of_time}
        if not log10 and len(calls) > 1:
            of_calls = [quantity for quantity in QUANTITIES[:2] if quantity in recorded.log10]
            log10 = {quantity: recorded.log10[quantity][:, calls] for quantity in of_calls}
            status = {quantity: recorded.status[quantity][:, calls] for quantity in of_calls}
        if not log10:
            known = sorted({key.partition("/")[2] for key in self.time_log10})
            choice = f"choose one of {', '.join(known)}" if known else "record with time=True"
            raise ValueError(f"nothing is recorded over time for '{name}'; {choice}")
        times = next(iter(log10.values())).shape[-1]
        return Step(self.phase, [f"{name}[{time}]" for time in range(times)], log10, status, dtypes=dict(self.dtypes))

    def profile(self, quantity: Quantity, step: int = -1) -> Array:
        """Return ``Step.profile``: log10 of a quantity per layer, averaged over networks."""
        return self.at(step).profile(quantity)

    def log_chi(self, first: int | None = None, last: int | None = None, step: int = -1) -> float | None:
        """Return ``Step.log_chi``: the slope of log‖output_grad‖² per layer towards the input."""
        return self.at(step).log_chi(first, last)

    def log_chi_se(self, first: int | None = None, last: int | None = None, step: int = -1) -> float | None:
        """Return ``Step.log_chi_se``: the standard error of ``log_chi`` over networks."""
        return self.at(step).log_chi_se(first, last)

    def depth_scale(self, first: int | None = None, last: int | None = None, step: int = -1) -> float | None:
        """Return ``Step.depth_scale``: 1 / |log_chi|, in layers."""
        return self.at(step).depth_scale(first, last)

    def first_over_last(self, quantity: Quantity, step: int = -1) -> float | None:
        """Return ``Step.first_over_last``: log10 of the first layer's size over the last one's."""
        return self.at(step).first_over_last(quantity)

    def failing_layer(self, quantity: Quantity, dtype: str, overflow: bool) -> int | None:
        """Return ``Step.failing_layer``: the layer from which on a quantity would leave a number format."""
        return self.at().failing_layer(quantity, dtype, overflow)

    def ratio_over_steps(self, quantity: Quantity, begin: int = 0) -> Array:
        """Return ``first_over_last`` of every recorded step, shape ``(step,)``, with nan for None.

        Args:
            quantity: A recorded one of ``QUANTITIES``.
            begin: Index of the first step.

        Raises:
            ValueError: If that quantity was not recorded.
        """
        if not self.steps[begin:]:
            return np.empty(0)
        self._step(-1).profile(quantity)  # raises if it was not recorded
        has_size = np.asarray(is_seen(self.status[quantity][begin:]).any(axis=1))
        has_size[~has_size.any(axis=1)] = True  # then the ends of the network
        steps, first = np.arange(len(has_size)), has_size.argmax(axis=1)
        last = self.depth - 1 - has_size[:, ::-1].argmax(axis=1)
        log10 = self.log10[quantity][begin:]
        if self.dead_fraction is not None:
            log10 = np.where(self.dead_fraction[:, None] < 1, log10, np.nan)
        return mean_over_networks((log10[steps, :, first] - log10[steps, :, last]).T)

    def verdict(self, decades: float = 3.0, step: int = -1) -> Verdict:
        """Judge whether the gradient is stable, vanishing, exploding or dead, and why, in one line."""
        return gradient_verdict(self.at(step), decades)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one dict per step, network and layer, with the keys ``COLUMNS``; None where there is none."""
        for row in self._rows():
            yield dict(zip(COLUMNS, row, strict=True))

    def to_dataframe(self) -> "pd.DataFrame":
        """Return ``rows()`` as a pandas DataFrame, with further columns.

        They are sizes that ``rows()`` has not, such as ``log10_vector_grad``; ``log10_update_ratio``, the part of a
        weight that a step changes; ``samples_sd``, the spread over samples in decades; statistics of one's own, such
        as ``output.dead``; and what names show: ``stack``, ``block`` (missing where there is none) and ``role``.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas; install it with pip install pandas") from error
        frame = pd.DataFrame(self._rows(), columns=list(COLUMNS))
        for quantity, values in self.log10.items():
            if f"log10_{quantity}" not in COLUMNS:
                frame[f"log10_{quantity}"] = values.ravel()
        for name, values in extras(self.log10, self.stats, self.samples).items():
            frame[name] = values.ravel()
        found, times = places(self.names, self.calls), len(self.steps) * len(self.seeds)
        frame["stack"] = [place.stack for place in found] * times
        frame["block"] = pd.array([place.block for place in found] * times, dtype="Int64")
        frame["role"] = [place.role for place in found] * times
        return frame

    @overload
    def plot(
        self, quantity: str = "output_grad", step: int = -1, *, ax: None = None, label: str = ""
    ) -> "Figure": ...
    @overload
    def plot(self, quantity: str = "output_grad", step: int = -1, *, ax: "Axes", label: str = "") -> "Axes": ...
    def plot(
        self, quantity: str = "output_grad", step: int = -1, *, ax: "Axes | None" = None, label: str = ""
    ) -> "Figure | Axes":
        """Draw one profile, log10 size over layers: as a new figure, or into axes of one's own.

        Of more than 30 layers whose names show blocks, such as ``encoder.layer.3.attention.query``, a new figure has
        a line for each role over the blocks. What is exactly 0 has a mark at the lower edge, what is not finite at
        the upper one.

        A notebook shows the figure that a cell ends with. Where the program has imported ``matplotlib.pyplot``, it is
        pyplot's figure, to be shown by ``plt.show()`` and freed by ``plt.close()``.

        Args:
            quantity: A recorded size; a statistic such as ``"output.dead"``; ``"log10_update_ratio"``, the part of a
                weight that a step changes; or ``"samples_sd"``, the spread over samples, in decades.
            step: Index (not label) of the recorded step.
            ax: Axes to draw into, beside what is there, such as another model's profile; None: a new figure.
            label: The line's entry in the legend; empty: none.

        Returns:
            The new figure, or ``ax``.

        Raises:
            ValueError: If it was not recorded.

        Examples:
            >>> figure, axes = plt.subplots()  # doctest: +SKIP
            >>> for name in ("he", "xavier"):  # doctest: +SKIP
            ...     measure(initialize(model, name), loss_fn, batch).plot(ax=axes, label=name)
        """
        recorded = self.at(step)
        values_of(recorded, quantity)  # raises before there is a figure
        if ax is not None:
            draw_step(ax, recorded, quantity, label)
            return ax
        from gradexp.history.shown_figure import shown_figure  # matplotlib is slow to load

        figure = shown_figure()
        draw_figure(figure, recorded, quantity, label)
        return figure

    def to_html(self, path: str | Path, title: str = "", decades: float = 3.0) -> Path:
        """Write a page that opens in any browser, without a network: verdict, picture, findings and table.

        Of several steps the picture shows each, with a slider.

        Args:
            path: The file. An old one is replaced.
            title: The headline, such as the model's name.
            decades: The threshold of the verdict, as in ``verdict``.

        Returns:
            The file.

        Raises:
            ValueError: If nothing is recorded yet.
            OSError: If it cannot be written.

        Examples:
            >>> history = measure(model, loss_fn, batch)  # doctest: +SKIP
            >>> history.to_html("report.html", "my model")  # doctest: +SKIP
        """
        from gradexp.history.page import history_page  # scripts, styles and HTML, which most histories do without

        return history_page(self, title, decades).write(Path(path))

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows: verdict, picture, findings and folded table; None before the first step."""
        from gradexp.history.page import history_page
        from gradexp.page.cell import cell

        return cell(history_page(self)) if self.steps else None

    def __repr__(self) -> str:
        counts = [counted(len(self.steps), "step"), counted(len(self.seeds), "network"), counted(self.depth, "layer")]
        is_judged = self.steps and "output_grad" in self.log10
        verdict = f"\n{shortened(self.verdict().text)}" if is_judged else ""
        return f"History({', '.join(counts)}: {', '.join(self.log10)}){verdict}"

    def __str__(self) -> str:
        """Return a table of the last step, layer by layer, and the verdict."""
        text = table(self.at()) if self.steps else f"nothing is recorded yet of {self.depth} layers"
        return printable(text, getattr(sys.stdout, "encoding", None))

    def to_tensorboard(
        self, writer: "SummaryWriter", step: int = -1, *, layers: str | Iterable[str] | None = None, prefix: str = ""
    ) -> None:
        """Append to TensorBoard what a writer does not have yet; call it after every step, now and then, or once.

        Over training steps: ``gradient/log10_first_over_last``, ``gradient/nonfinite_layers``,
        ``gradient/zero_layers``, ``gradient/log10_total``, and curves of the layers, such as
        ``log10_output_grad/encoder.layer.attention.query``: one for each layer of up to 30, for more one for each
        role, the mean over its blocks. They are of output gradients, weight gradients, the relative update, and
        statistics of one's own. Cells without a number are left out.

        Over layers, with step = layer: ``profile/log10_…`` of the first call; later ones, of the last step whenever
        there are ten times as many, or of any that is asked for, are ``profile/log10_…/step_000100``.

        Args:
            writer: A ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar``.
            step: Index of the recorded step whose profile is written.
            layers: Patterns of names, as in the probe's ``select``: each row that one matches has a curve of its own.
            prefix: What all tags begin with, to tell models apart that share a writer.

        Raises:
            TypeError: If that is no writer.
            ValueError: If a pattern matches no row, or the writer has other numbers of the same step.
        """
        if not hasattr(writer, "add_scalar"):
            raise TypeError(f"writer must be a torch.utils.tensorboard.SummaryWriter, got a {type(writer).__name__}")
        if self.steps:
            write_history(self, writer, step, layers, prefix)

    def save(self, path: str | Path) -> None:
        """Write everything to one ``.npz`` file, without pickle; ``History.load`` reads it back.

        Args:
            path: The file. An old one is replaced once the new one is whole.

        Raises:
            OSError: If it cannot be written.
        """
        write_fields(Path(path), vars(self))

    @classmethod
    def load(cls, path: str | Path, every: int = 1) -> "History":
        """Read what ``save`` wrote, or the record of ``GradientProbe(…, save=path)``, which may still be growing.

        Args:
            path: The file.
            every: Of a record: the interval N; its steps number 0, N, 2N, ... are read, and the last one.

        Raises:
            ValueError: If the file is not a saved History, or a damaged one, or ``every`` is below 1.
            OSError: If it cannot be read.
        """
        path = Path(path)
        is_a_record = is_record(path)
        if every < 1 or (every > 1 and not is_a_record):
            raise ValueError(f"every must be at least 1, and is for the record of a probe, got {every}")
        try:
            history = cls(**(read_record(path, every) if is_a_record else read_fields(path)))
            history._check_shapes()
        except OSError:
            raise
        except Exception as error:  # numpy, zipfile, zlib and json each raise their own
            raise ValueError(f"{path} is not a saved History") from error
        return history

    def _check_shapes(self) -> None:
        """Check that every quantity is there for all steps, networks and layers.

        Raises:
            ValueError: If one is not.
        """
        shape = (len(self.steps), len(self.seeds), len(self.names))
        arrays: list[NDArray[Any]] = [
            *self.log10.values(),
            *self.status.values(),
            *self.largest_log10.values(),
            *self.stats.values(),
        ]
        if not self.log10 or self.log10.keys() != self.status.keys():
            raise ValueError("quantities are missing")
        if any(values.shape != shape for values in arrays) or len(self.calls) != self.depth:
            raise ValueError(f"arrays must have shape {shape}")

    def has_rows_of(self, other: "History") -> bool:
        """Return whether it has the layers of another history, so that they can be compared one by one."""
        return (self.names, self.calls) == (other.names, other.calls)

    def of_networks(self, which: slice, last_step: int | None = None) -> "History":
        """Return some networks alone, with the steps up to ``last_step``; the inverse of ``join``."""
        steps = [step for step in self.steps if last_step is None or step <= last_step]
        end = len(steps)

        def selected(key: str, axis: int) -> Any:
            index = (slice(end), which) if axis else which
            value = getattr(self, key)
            return {name: array[index] for name, array in value.items()} if isinstance(value, dict) else value[index]

        changes = {key: selected(key, axis) for key, axis in _NETWORK_AXES.items() if getattr(self, key) is not None}
        return replace(self, steps=steps, seeds=self.seeds[which], findings=self.findings[:end], **changes)

    def of_step(self, index: int) -> "History":
        """Return one of the recorded steps alone."""
        here = slice(index, index + 1)

        def selected(key: str) -> Any:
            value = getattr(self, key)
            return {name: array[here] for name, array in value.items()} if isinstance(value, dict) else value[here]

        changes = {
            key: selected(key) for key, axis in _NETWORK_AXES.items() if axis and getattr(self, key) is not None
        }
        return replace(self, steps=self.steps[here], findings=self.findings[here], **changes)

    @staticmethod
    def join(histories: Sequence["History"]) -> "History":
        """Return the networks of some histories as one, with the theory of the first.

        Args:
            histories: Histories of the same layers and steps, such as profiles of different seeds.

        Raises:
            ValueError: If there is none, or they differ in phase, layers or steps.
        """
        if not histories:
            raise ValueError("histories must hold at least one")
        first = histories[0]
        for other in histories[1:]:
            if (other.phase, other.names, other.steps) != (first.phase, first.names, first.steps):
                raise ValueError("histories must have the same phase, layers and steps")

        def joined(key: str, axis: int) -> Any:
            """Return an array, or a dict of arrays, over the networks of all, or None where one has none."""
            values = [getattr(history, key) for history in histories]
            if any(value is None for value in values):
                return None
            if isinstance(values[0], dict):
                shared = [name for name in values[0] if all(name in value for value in values)]
                return {name: np.concatenate([value[name] for value in values], axis) for name in shared}
            return np.concatenate(values, axis)

        changes = {key: joined(key, axis) for key, axis in _NETWORK_AXES.items()}
        return replace(first, seeds=[seed for history in histories for seed in history.seeds], **changes)

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield one tuple per step, network and layer, with the values of ``COLUMNS``.

        A step is turned into columns as a whole: cell by cell, a long run would take seconds.
        """
        statuses, networks = np.array(STATUSES, dtype=object), len(self.seeds)
        columns: dict[str, Any] = {
            **{column: repeat(None) for column in COLUMNS},
            "phase": repeat(self.phase),
            "seed": np.repeat(self.seeds, self.depth).tolist(),
            "layer": [*range(1, self.depth + 1)] * networks,
            "call": self.calls * networks,
            "name": self.names * networks,
            **{f"theory_{key}": or_none(np.tile(values, networks)) for key, values in self.theory.items()},
        }
        for index, step in enumerate(self.steps):
            columns["step"] = repeat(step)
            for quantity, values in self.log10.items():
                if f"log10_{quantity}" in columns:
                    columns[f"log10_{quantity}"] = or_none(values[index])
                if f"status_{quantity}" in columns:
                    columns[f"status_{quantity}"] = statuses[self.status[quantity][index].ravel()].tolist()
            yield from zip(*columns.values(), strict=False)  # the constant ones have no end


# Which dimension of an array, or of the arrays in a dict, is that of the networks.
_NETWORK_AXES = {
    **dict.fromkeys(("log10", "status", "largest_log10", "stats", "time_log10", "time_status"), 1),
    "dead_fraction": 0,
    "output_cosine": 0,
    "samples": 1,
    "total_grad": 1,
    "loss": 1,
}


def training_points(history: History, begin: int = 0) -> Points:
    """Yield the scalars ``gradient/…`` of recorded steps from an index on; none without output gradients."""
    return points(history.steps[begin:], course_series(history, begin))


def write_csv(path: Path, histories: Sequence[History]) -> None:
    """Write the rows of some histories, numbers with all their digits; an empty cell means none."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for history in histories:
            writer.writerows(history._rows())
