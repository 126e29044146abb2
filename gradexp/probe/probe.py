"""GradientProbe: record per-layer sizes and gradients of any model while it trains."""

import operator
import sys
import warnings
import weakref
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradexp.history.finding import Finding, worst_first
from gradexp.history.history import History
from gradexp.history.step import QUANTITIES, STATUSES, VECTOR_QUANTITIES, Array
from gradexp.networks.mlp import MLP
from gradexp.numerics.torch_internals import all_parameters_of, backward_number, is_dynamo_loaded
from gradexp.probe.alarm import Alarm, Bell
from gradexp.probe.calls import ProbeSpec, Statistic
from gradexp.probe.graph import numbered
from gradexp.probe.hooks import Hooks
from gradexp.probe.optimizers import Optimizers, held_by, unwrapped
from gradexp.probe.order import merged
from gradexp.probe.processes import await_other_probes
from gradexp.probe.readings import PendingStep, ProbeStep, TensorSize, loss_value, stacked_over_time
from gradexp.probe.selection import Select, module_kind, select_rows, unwrap
from gradexp.probe.trace import Trace
from gradexp.probe.updates import Updates
from gradexp.probe.watch import Watch
from gradexp.probe.weights import Weights, is_unscaled, scale_of_loss

_Row = tuple[str, int]  # name of a module, and which of its calls in a pass

_OF_WEIGHTS = ("weight_grad", "weight", "update", *VECTOR_QUANTITIES)


class GradientProbe:
    """Record what autograd produces in each layer: outputs, their gradients, and the weights' gradients.

    Observing changes nothing: in eager mode the probe adds no graph node, draws no random number, keeps no tensor
    of the model alive and replaces no gradient. A compiled model runs eagerly while a step is recorded, since
    compiled code calls no hooks; it is the same up to rounding, but dropout draws other masks there.

    Recorded per row, which is one call of one module in a forward pass, and per step are log10 of the rms of
    ``output`` (all floating tensors that a module returned) and of the L2 norms of ``output_grad`` (the gradient
    of those tensors), ``weight_grad`` (what ``.grad`` holds at ``collect``), ``weight`` and ``update`` (the
    optimizer's change). A module's weights are its own parameters of two or more dimensions, taken as one; those of
    a parametrized layer are the tensors that are trained, and its ``weight`` is what it computes with. Biases and
    other parameters of fewer dimensions are left out, unless ``vector_grad`` and ``vector`` are asked for. The norm
    of all gradients together, of parameters of any shape, is the history's ``total_grad``.

    ``output_grad`` is the gradient of what is accumulated into ``.grad``: passes of ``torch.autograd.grad``,
    and those whose gradients ``zero_grad`` threw away, do not count.

    ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` of several layers or directions have a row for each, such as ``lstm.l0``
    and ``lstm.l0_reverse``, with the numbers that it would have as a module of its own. Those of lower layers are
    computed anew from the module's inputs, weights and output gradients, which takes about as long as the module
    itself, and are ``hook_missed`` where that cannot be: with dropout between the layers, or under autocast.

    Several backward passes over one forward pass add up; several forward passes before one ``collect`` count as one
    batch, concatenated. Passes under ``torch.no_grad()``, and those that no backward pass went through while others
    had one, are not recorded. Under DistributedDataParallel ``output_grad`` is that of this process.

    Args:
        model: Any module.
        select: The modules to record: a function of name and module, or patterns of names such as
            ``"blocks.*.mlp"``, in which ``*`` stays between two dots and ``**`` crosses them. Names are
            without those of wrappers. Weights of a module that a pattern selects are all that are in it; of one that
            a function selects its own, or all that are in it if it owns none; and its vectors if there are none.
            None: modules that directly own a parameter of two or more dimensions.
        quantities: Some of ``output``, ``output_grad``, ``weight_grad``, ``weight``, ``update``, ``vector_grad``,
            ``vector``. None: the first three, and the next two if an optimizer is given. The last two are of
            parameters with fewer dimensions than a weight has, and give modules that have only such a row.
        stats: Name -> function from a tensor to a 0-d tensor, taken of outputs, output gradients and weight
            gradients, where those are recorded; averaged over the tensors that make up a cell.
        every: The interval N: collects number 0, N, 2N, ... are recorded. At other steps no hook is attached.
        optimizer: The optimizer, or several, whose steps are watched for ``update``, complete at the next collect.
            Wrappers, such as accelerate's, are taken off. Weights that none of them holds are ``not_optimized``.
        scaler: The ``torch.amp.GradScaler`` in use; gradients are recorded as if there were none.
        per_sample: Whether to record each sample's norm of output gradients too (samples along the first dimension of
            the output; for modules with one output tensor). A mean loss makes each 1/batch as large.
        networks: The number of independent networks along the first dimension of outputs and weights; None: those of
            an ``MLP``, and one in any other model.
        seeds: The networks' seeds, for the History; None: 0, 1, ...
        time: Whether to record each time step of recurrent modules too, which are run once more for it, step by step
            and in float64: ``history.over_time(name)``.
        alarm: What happens at the first bad step, before the optimizer makes it: ``"warn"``, ``"raise"`` (an
            ``AlarmError``), or a function that is called with that error. Its ``step`` and ``finding`` say where nan
            or inf is born: the first module, and the pass. Every step is watched, whatever ``every`` is, by one
            number, which on a CUDA device is read without waiting and may come a step late. What a scaler skips
            raises none, unless it persists. The batches of a step are kept until its collect.
        alarm_on: What the alarm is about: ``nonfinite``, which is watched in every step, and ``vanishing``,
            ``exploding`` and ``dead``, the verdict on recorded steps. It goes off once for as long as that lasts.

    Raises:
        ValueError: If nothing is selected, a quantity or an alarm is unknown, ``update`` is asked for without an
            optimizer, the optimizer has none of the model's parameters, or ``every`` is below 1.
        TypeError: If an argument is of the wrong kind.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 1))
        >>> with GradientProbe(model) as probe:
        ...     model(torch.ones(2, 3)).sum().backward()
        ...     probe.collect(0)
        >>> probe.history.names
        ['0', '2']
    """

    def __init__(
        self,
        model: nn.Module,
        select: Select | None = None,
        every: int = 1,
        optimizer: Optimizers | None = None,
        networks: int | None = None,
        seeds: list[int] | None = None,
        *,
        quantities: Iterable[str] | None = None,
        stats: Mapping[str, Statistic] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        per_sample: bool = False,
        time: bool = False,
        alarm: Alarm | None = None,
        alarm_on: Iterable[str] = ("nonfinite",),
    ) -> None:
        _check_kinds(model, stats)
        optimizers = unwrapped(optimizer)
        networks = _networks_of(model) if networks is None else networks
        for option, value in (("every", every), ("networks", networks)):
            if _whole(option, value) < 1:
                raise ValueError(f"{option} must be at least 1, got {value}")
        self._quantities = _quantities(quantities, bool(optimizers), per_sample)
        if stats and scaler is not None and scaler.is_enabled():
            raise ValueError("stats would be of scaled gradients; give either stats= or an enabled scaler=")
        model = unwrap(model)
        if optimizers:
            stepped = set().union(*map(held_by, optimizers))
            if not any(id(parameter) in stepped for parameter in model.parameters()):
                raise ValueError(
                    "the optimizer has none of this model's parameters; create it from model.parameters() once all "
                    "layers are in place"
                )
        self._of_vectors = not set(VECTOR_QUANTITIES).isdisjoint(self._quantities)
        selection = select_rows(model, select, self._of_vectors)
        self._model = weakref.ref(model)
        self._by_default = select is None
        self._every = every
        self._optimizers = optimizers
        self._scaler = scaler
        self._networks = networks
        self._seeds = list(range(networks)) if seeds is None else list(seeds)
        self._plan = ProbeSpec(
            "output" in self._quantities,
            "output_grad" in self._quantities,
            per_sample,
            dict(stats or {}),
            networks,
            networks > 1 or isinstance(model, MLP),
            time,
        )
        self._recorder = Hooks(model, selection.modules, self._plan)
        self._weights = Weights(selection.rows, self._plan, "weight" in self._quantities)
        self._updates: Updates | None = None
        self._names = list(selection.rows)
        self._modules_of = selection.modules_of
        self._rows: dict[_Row, int] = {}
        self._order: dict[_Row, None] = {}  # of those that were called, as in the forward pass
        self._feeds: set[tuple[_Row, _Row]] = set()
        self._paths: set[frozenset[_Row]] = set()  # sets of rows whose graph is known
        self._is_path_new = True  # what was called last has no known graph
        self._kinds: dict[str, str] = {}
        self._steps: list[int] = []
        self._readings: list[ProbeStep] = []
        self._findings: list[tuple[Finding, ...]] = []
        self._bell = None if alarm is None else Bell(alarm, alarm_on)
        if self._bell is not None and self._bell.is_about_profiles and "output_grad" not in self._quantities:
            raise ValueError("an alarm on anything but nonfinite needs the quantity 'output_grad'")
        self._watch: Watch | None = None
        if self._bell is not None and "nonfinite" in self._bell.kinds:
            self._watch = Watch(model, optimizers, scaler, self._see_before_step)
        self._collects = 0
        self._attached = False
        self._has_met_others = False  # the probes of other processes

    def __enter__(self) -> Self:
        """Attach the hooks."""
        return self.attach()

    def __exit__(self, *_: object) -> None:
        """Remove every hook."""
        self.remove()

    def __del__(self) -> None:
        """Remove every hook of a probe that nobody holds, as after running a notebook's cell again."""
        # At the interpreter's end torch is half gone, and the hooks are going with it.
        if getattr(self, "_attached", False) and not sys.is_finalizing():
            self.remove()

    def __reduce__(self) -> Any:
        """Raise on copying or pickling: hooks belong to one probe."""
        raise TypeError("a probe cannot be copied or pickled; its history can")

    def __repr__(self) -> str:
        state = "attached" if self._attached else "not attached"
        return f"GradientProbe({len(self._names)} modules, {len(self._steps)} steps recorded, {state})"

    def attach(self) -> Self:
        """Start recording; returns the probe.

        Raises:
            RuntimeError: If it is attached already, the model is gone, or its weights are sharded over several
                processes and some of those attach none within a minute.
        """
        if self._attached:
            raise RuntimeError("the probe is attached already")
        model = self._model()
        if model is not None and not self._has_met_others:
            await_other_probes(model)
            self._has_met_others = True
        self._open()
        if self._optimizers and "update" in self._quantities:
            self._updates = Updates(self._optimizers, self._weights, self._networks, self._recorder)
        if self._watch is not None:
            self._watch.attach()
        self._attached = True
        return self

    def remove(self) -> None:
        """Stop recording and remove every hook; the history stays."""
        self._attached = False
        self._close()
        self._recorder.detach()
        if self._watch is not None:
            self._watch.remove()
        if self._updates is not None:
            self._updates.remove()
            self._fetch_updates()
            self._updates = None

    def collect(self, step: int | None = None, loss: Tensor | float | None = None) -> None:
        """Record what the hooks saw since the last collect, and the weights' gradients.

        Call it after ``backward()`` and before the optimizer's step; before gradients are clipped to record them
        as they came.

        Args:
            step: The label of the recorded step; None: the number of this collect, counted from 0.
            loss: The loss's value, for the history: a number, or a tensor with one element, or one for each network.

        Raises:
            RuntimeError: If the probe is not attached, no backward pass has been run, or the optimizer that the
                probe knows has already made its step. An ``AlarmError`` with ``alarm="raise"``.
            TypeError: If ``step`` is no whole number, or ``loss`` no number.
            ValueError: If ``loss`` is a tensor of another shape.
        """
        if not self._attached:
            raise RuntimeError("the probe is not attached; use it in a with statement or call attach()")
        label = self._collects if step is None else _whole("step", step)
        value = None if loss is None else loss_value(loss, self._networks)
        is_recorded = self._recorder.trace is not None
        if self._recorder.trace is not None:
            self._record(label, self._recorder.trace, value, loss)
        found = [] if self._bell is None else self._look(self._bell, label, value, is_recorded)
        self._collects += 1
        self._close()
        if self._collects % self._every or not self._needs_hooks():
            self._recorder.detach()
        self._open()
        if found:
            self._ring(label, found)

    def add_finding(self, finding: Finding) -> None:
        """Add to the last recorded step what is known of it beside what the hooks saw.

        Raises:
            RuntimeError: If no step is recorded yet.
        """
        if not self._findings:
            raise RuntimeError("no step is recorded yet")
        self._findings[-1] = worst_first([*self._findings[-1], finding])

    def has_news(self) -> bool:
        """Return whether a backward pass came by since the last collect, as far as that can be seen."""
        trace = self._recorder.trace
        return trace is not None and (len(trace.passes) > 0 or not self._needs_hooks())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other probes from seeing anything that this thread runs."""
        before, Hooks.alone.recorder = Hooks.alone.recorder, self._recorder
        try:
            yield
        finally:
            Hooks.alone.recorder = before

    def count(self, loss: Tensor) -> Any:
        """Count the next pass from a loss as if it added to ``.grad``; return the handle of the hook that does it."""

        def begin(_: Tensor) -> None:
            if self._recorder.trace is not None:
                self._recorder.trace.passes.counting = backward_number()

        return loss.register_hook(begin)

    def discard(self) -> None:
        """Forget what was seen since the last collect, such as a pass whose gradients were set to zero again."""
        if self._attached and self._recorder.trace is not None:
            self._close()
            self._open()

    @property
    def history(self) -> History:
        """The steps recorded so far."""
        self._fetch_updates()
        return self._history_of(slice(None))

    def _history_of(self, chosen: slice) -> History:
        """Return some of the steps."""
        readings, steps = self._readings[chosen], self._steps[chosen]
        # A lazy module shows only when it is first called whether it has a weight of two dimensions.
        all_rows = [(n, 0) for n in self._names if not self._steps or (n, 0) in self._rows]
        rows = [*self._order, *(row for row in all_rows if row not in self._order)]
        columns = [self._rows.get(row, -1) for row in rows]
        # A module's weights are the same in all its calls.
        of_weights = [self._rows.get((name, 0), -1) for name, _ in rows]
        log10, status = {}, {}
        for quantity in self._quantities:
            indices = of_weights if quantity in _OF_WEIGHTS else columns
            log10[quantity] = self._stacked([r.log10.get(quantity) for r in readings], indices, np.nan)
            recorded = [r.status.get(quantity) for r in readings]
            codes = self._stacked(recorded, indices, STATUSES.index("not_called"))
            status[quantity] = codes.astype(np.int8)
        history = History("train", [name for name, _ in rows], list(steps), list(self._seeds), log10, status)
        history.calls = [call for _, call in rows]
        history.feeds = numbered(self._feeds, {row: number for number, row in enumerate(rows)})
        history.kinds = [self._kinds.get(name, "") for name, _ in rows]
        for reading in readings:
            history.dtypes = reading.dtypes | history.dtypes
        for name in {name: None for reading in readings for name in reading.stats}:
            indices = of_weights if name.startswith("weight_grad.") else columns
            history.stats[name] = self._stacked([r.stats.get(name) for r in readings], indices, np.nan)
        if self._plan.per_sample:
            history.samples = self._stacked_samples(readings, columns)
        for name in ("total_grad", "loss"):
            values = [getattr(reading, name) for reading in readings]
            if any(value is not None for value in values):
                unknown = np.full(self._networks, np.nan)
                setattr(history, name, np.stack([unknown if value is None else value for value in values]))
        if self._plan.time:
            history.time_log10, history.time_status = stacked_over_time(readings)
        if any(self._findings[chosen]):
            history.findings = self._findings[chosen]
        return history

    def _open(self) -> None:
        if self._collects % self._every == 0:
            self._recorder.open(self._needs_hooks(), self._plan.gradients and self._is_path_new)
            self._weights.watch()

    def _close(self) -> None:
        self._recorder.close()
        self._weights.unwatch()

    def _needs_hooks(self) -> bool:
        # Where only weights are recorded, the first step shows the order of the modules.
        return self._plan.outputs or self._plan.gradients or not self._steps

    def _row_of(self, name: str, call: int = 0) -> int:
        return self._rows.setdefault((name, call), len(self._rows))

    def _keep_order(self, calls: list[_Row]) -> None:
        if not self._order.keys() >= set(calls):
            places = {name: place for place, name in enumerate(self._names)}
            rows = merged([*self._order], [*dict.fromkeys(calls)], lambda row: (places[row[0]], row[1]))
            self._order = dict.fromkeys(rows)

    def _keep_graph(
        self, trace: Trace, calls: list[_Row], weights: Mapping[str, list[nn.Parameter]], loss: Tensor | float | None
    ) -> None:
        """Keep which rows feed which; look again in the next step if this one took a way that is not known."""
        path = frozenset(calls)
        feeds = trace.feeds(weights, loss)
        if feeds is not None:
            self._feeds |= feeds
            self._paths.add(path)
        self._is_path_new = path not in self._paths
        if not self._kinds.keys() >= weights.keys():
            classes = self._recorder.kinds()
            for name, own in weights.items():
                shapes = ", ".join("x".join(map(str, weight.shape)) for weight in own)
                self._kinds[name] = f"{classes.get(self._modules_of.get(name, name), '')}({shapes})"

    def _record(self, label: int, trace: Trace, value: Tensor | float | None, loss: Tensor | float | None) -> None:
        held = trace.passes.notice()  # until all are read
        self._check_backward(trace)
        vectors = self._weights.vectors() if self._of_vectors else {}
        weights = {name: w for name, w in self._weights.items() if w or vectors.get(name) or not self._by_default}
        pending = PendingStep(self._networks)
        pending.loss = value
        calls = trace.add(pending, self._row_of, weights)
        self._keep_order(calls)
        self._keep_graph(trace, calls, weights, loss)
        modules = [self._modules_of.get(name, name) for name in weights]
        unseen = {*trace.hidden(modules), *trace.bypassed(modules)}
        for name in weights if unseen else ():
            if self._modules_of.get(name, name) in unseen:
                for quantity in ("output", "output_grad"):
                    pending.mark(quantity, self._row_of(name), "hook_missed")
        of_rows = {name: vectors[name] for name in weights} if vectors else {}
        self._add_parameters(pending, weights, of_rows, trace.passes.moved)
        del held
        self._undo_scale(pending)
        reading = self._read(pending)
        self._steps.append(label)
        self._readings.append(reading)
        self._findings.append(())
        if self._updates is not None:
            self._updates.expect(trace.passes.piled())

    def _add_parameters(
        self,
        pending: PendingStep,
        weights: Mapping[str, list[nn.Parameter]],
        vectors: Mapping[str, list[nn.Parameter]],
        moved: Container[int],
    ) -> None:
        """Add what the parameters and their gradients hold."""
        rows = {name: self._row_of(name) for name in weights}
        model = self._model()
        measured: dict[int, TensorSize] = {}
        if "vector_grad" in self._quantities:
            measured |= self._weights.add_gradients(pending, "vector_grad", vectors, rows, moved)
        if "vector" in self._quantities:
            self._weights.add_vectors(pending, vectors, rows)
        if "weight_grad" in self._quantities:
            measured |= self._weights.add_gradients(pending, "weight_grad", weights, rows, moved)
            if model is not None:
                self._weights.add_total(pending, all_parameters_of(model), measured, moved)
        if "weight" in self._quantities:
            self._weights.add_norms(pending, weights, rows)

    def _read(self, pending: PendingStep) -> ProbeStep:
        """Read a pending step, together with updates that were measured since the last one and belong to that."""
        if self._updates is not None:
            self._updates.add(pending, self._row_of)
        reading = pending.read(len(self._rows))
        if "update" in reading.log10:
            self._readings[-1].take_over("update", reading)
            if self._updates is not None and (found := self._updates.findings(self._is_unmoved)):
                self._findings[-1] = worst_first([*self._findings[-1], *found])
        return reading

    def _is_unmoved(self, names: Sequence[str]) -> bool:
        """Return whether the last step has left weights of some rows as they were, though they have a gradient."""
        status, rows = self._readings[-1].status, [self._row_of(name) for name in names]
        if not rows or not {"update", "weight_grad"} <= status.keys():
            return False
        update, gradient = status["update"][:, rows], status["weight_grad"][:, rows]
        has_number = np.isin(gradient, [STATUSES.index(word) for word in ("ok", "subnormal")])
        return bool((update == STATUSES.index("zero")).all() and has_number.any())

    def _look(self, bell: Bell, label: int, loss: Tensor | float | None, is_recorded: bool) -> list[Finding]:
        """Return what is newly found in the step, and keep all that is found for the history."""
        findings, kinds = [], []
        if self._watch is not None:
            is_known = not isinstance(loss, Tensor) or loss.is_cpu  # without waiting for a device
            finding = self._watch.look(
                label, None if loss is None or not is_known else float(torch.as_tensor(loss).max())
            )
            findings += [] if finding is None else [finding]
            kinds.append("nonfinite")
        if bell.is_about_profiles and is_recorded:
            findings += bell.judged(self._history_of(slice(-1, None)).at())
            kinds += bell.kinds
        return self._keep(bell, label, findings, kinds, loss)

    def _see_before_step(self, parameters: Iterable[Tensor] | None) -> None:
        """Look at what an optimizer is about to step with, for which nobody has called ``collect``."""
        if self._bell is not None and self._watch is not None:
            finding = self._watch.look(self._collects, parameters=parameters)
            findings = [] if finding is None else [finding]
            found = self._keep(self._bell, self._collects, findings, ["nonfinite"], None)
            if found:
                self._ring(self._collects, found)

    def _keep(
        self, bell: Bell, label: int, findings: list[Finding], kinds: list[str], loss: Tensor | float | None
    ) -> list[Finding]:
        new = bell.new(findings, kinds)
        if findings and (new or (self._steps and self._steps[-1] == label)):
            if not self._steps or self._steps[-1] != label:
                self._record_gradients(label, loss)
            self._findings[-1] = worst_first([*self._findings[-1], *findings])
        return new

    def _ring(self, label: int, findings: list[Finding]) -> None:
        if self._bell is not None:
            self._bell.ring(label, findings, [] if self._watch is None else self._watch.recent)

    def _record_gradients(self, label: int, loss: Tensor | float | None) -> None:
        """Record a step in which no module was hooked."""
        vectors = self._weights.vectors() if self._of_vectors else {}
        weights = {name: w for name, w in self._weights.items() if w or vectors.get(name) or not self._by_default}
        pending = PendingStep(self._networks)
        pending.loss = loss
        for quantity in {"output", "output_grad"} & set(self._quantities):
            for name in weights:
                pending.mark(quantity, self._row_of(name), "hook_missed")
        self._add_parameters(pending, weights, {name: vectors[name] for name in weights} if vectors else {}, ())
        self._undo_scale(pending)
        self._steps.append(label)
        self._readings.append(pending.read(len(self._rows)))
        self._findings.append(())

    def _fetch_updates(self) -> None:
        if self._updates is not None and not self._updates.is_empty:
            self._read(PendingStep(self._networks))

    def _check_backward(self, trace: Trace) -> None:
        """Raise if no backward pass has been run, since only unused weights would be recorded."""
        model = self._model()
        if model is None:
            raise RuntimeError("the model that the probe watches is gone")
        wanted = {"output_grad", "weight_grad"} & set(self._quantities)
        has_gradient = trace.passes.is_anything_left() and (
            len(trace.passes) > 0
            or self._weights.have_passed()
            or any(p.grad is not None for p in model.parameters())
        )
        if wanted and not has_gradient:
            raise RuntimeError("no gradient was seen: call collect after loss.backward() and before zero_grad()")
        if self._updates is not None and self._updates.is_late(trace):
            raise RuntimeError("collect was called after optimizer.step(); call it before, or update is a step late")
        is_blind = not trace.eager and not trace.calls and not trace.transformed  # a first vmap loads dynamo too
        if is_blind and is_dynamo_loaded() and self._needs_hooks():
            warnings.warn(
                "no module was called: if the model was compiled after the probe was attached, outputs and their "
                "gradients are recorded from the next collect on",
                stacklevel=4,
            )

    def _undo_scale(self, pending: PendingStep) -> None:
        """Record gradients as if a GradScaler had not multiplied the loss."""
        scaler, model = self._scaler, self._model()
        if scaler is not None and scaler.is_enabled() and model is not None:
            of_parameters = ["weight_grad", "vector_grad", "total_grad"]
            scaled = ["output_grad", *([] if is_unscaled(scaler, self._optimizers) else of_parameters)]
            pending.divide(scaled, scale_of_loss(scaler, next(model.parameters())))

    def _stacked(self, steps: Sequence[NDArray[Any] | None], columns: list[int], otherwise: float) -> Array:
        """Return ``(step, network, column)``."""
        stacked = np.full((len(steps), self._networks, len(columns)), otherwise, dtype=float)
        begin = 0
        for width, group in groupby(steps, lambda step: 0 if step is None else step.shape[1]):
            same_width = list(group)
            recorded = [index for index, column in enumerate(columns) if 0 <= column < width]
            if recorded:
                values = np.stack([step for step in same_width if step is not None])
                stacked[begin : begin + len(same_width), :, recorded] = values[:, :, [columns[i] for i in recorded]]
            begin += len(same_width)
        return stacked

    def _stacked_samples(self, readings: list[ProbeStep], columns: list[int]) -> Array:
        """Return ``(step, network, column, sample)``, nan beyond the samples of a cell."""
        counts = [log10.shape[1] for reading in readings for log10 in reading.samples.values()]
        stacked = np.full((len(readings), self._networks, len(columns), max(counts, default=0)), np.nan)
        for step, reading in enumerate(readings):
            for index, column in enumerate(columns):
                if column in reading.samples:
                    log10 = reading.samples[column]
                    stacked[step, :, index, : log10.shape[1]] = log10
        return stacked


def _quantities(wanted: Iterable[str] | None, has_optimizer: bool, per_sample: bool) -> tuple[str, ...]:
    known = QUANTITIES + VECTOR_QUANTITIES
    if wanted is None:
        return QUANTITIES if has_optimizer else QUANTITIES[:3]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [quantity for quantity in names if quantity not in known]
    if unknown or not names:
        fault = f"unknown quantity '{unknown[0]}'" if unknown else "quantities is empty"
        raise ValueError(f"{fault}; choose from {', '.join(known)}")
    if "update" in names and not has_optimizer:
        raise ValueError("the quantity 'update' needs optimizer=, whose steps are watched")
    if per_sample and "output_grad" not in names:
        raise ValueError("per_sample=True needs the quantity 'output_grad'")
    return tuple(quantity for quantity in known if quantity in names)


def _whole(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None


def _networks_of(model: nn.Module) -> int:
    """Return how many networks a model of this library stacks."""
    return model.networks if isinstance(model, MLP) else 1


def _check_kinds(model: Any, stats: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {module_kind(model)}")
    if stats is not None and not isinstance(stats, Mapping):
        raise TypeError(f"stats must map names to functions, got {module_kind(stats)}")
