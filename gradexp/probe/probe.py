"""GradientProbe: record per-layer sizes and gradients of any model while it trains."""

import operator
import sys
import warnings
import weakref
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradexp.history.finding import Finding
from gradexp.history.history import History
from gradexp.history.probe_steps import ProbeStep, Row, Subject
from gradexp.history.step import QUANTITIES, VECTOR_QUANTITIES, Quantity
from gradexp.kinds import texts, whole_numbers
from gradexp.networks.mlp import MLP
from gradexp.numerics.torch_internals import all_parameters_of, backward_number, is_dynamo_loaded
from gradexp.probe.alarm import Alarm, AlarmWord, Bell
from gradexp.probe.calls import ProbeSpec, Statistic
from gradexp.probe.hooks import Hooks
from gradexp.probe.log import Log
from gradexp.probe.optimizers import Optimizers, held_by, unwrapped
from gradexp.probe.processes import await_other_probes
from gradexp.probe.readings import PendingStep, TensorSize, loss_value
from gradexp.probe.record import Record
from gradexp.probe.saving import Saving
from gradexp.probe.selection import Select, module_kind, select_rows, unwrap
from gradexp.probe.trace import Trace
from gradexp.probe.updates import Updates
from gradexp.probe.watch import Watch
from gradexp.probe.weights import Weights, is_unscaled, scale_of_loss


class ProbeOptions(TypedDict, total=False):
    """Options of ``GradientProbe`` that ``measure`` and the callbacks take too."""

    select: Select | None
    quantities: Iterable[Quantity] | None
    stats: Mapping[str, Statistic] | None
    per_sample: bool
    time: bool


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
        log: Where each recorded step goes at once, as at most some 60 numbers and what is newly found: a function of
            step and numbers by tag, a path that ends in ``.csv``, a ``SummaryWriter``, a wandb run, the module
            ``mlflow``, a logger of Lightning; or several. With ``update`` a step goes there when the optimizers have
            made theirs, or else at the next collect. In a training of several processes the first one logs.
        log_layers: Patterns of names, as in ``select``: each row that one matches has curves of its own.
        save: A file to which each recorded step is appended at once, when it is handed to a log too;
            ``History.load`` reads it at any time. If it is there, the record goes on: the first recorded step takes
            the place of all from its label on. In a training of several processes the first one saves.
        keep: With ``save``, how many of the last steps stay in memory, and in ``history``; of those before it has at
            most as many more, the fewer the older. None: all.
        alarm_on: What the alarm is about: ``nonfinite``, which is watched in every step, and ``vanishing``,
            ``exploding`` and ``dead``, the verdict on recorded steps. It goes off once for as long as that lasts.

    Raises:
        ValueError: If nothing is selected, a quantity or an alarm is unknown, ``update`` is asked for without an
            optimizer, the optimizer has none of the model's parameters, ``every`` or ``keep`` is below 1, or the
            file of ``save`` is the record of another model.
        TypeError: If an argument is of the wrong kind.
        OSError: If a file of ``log`` or ``save`` cannot be opened.

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
        quantities: Iterable[Quantity] | None = None,
        stats: Mapping[str, Statistic] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        per_sample: bool = False,
        time: bool = False,
        alarm: Alarm | None = None,
        alarm_on: Iterable[AlarmWord] = ("nonfinite",),
        log: Any = None,
        log_layers: str | Iterable[str] | None = None,
        save: str | Path | None = None,
        keep: int | None = None,
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
        seeds = list(range(networks)) if seeds is None else whole_numbers("seeds", seeds)
        if len(seeds) != networks:
            raise ValueError(f"seeds must name {networks} networks, got {len(seeds)}")
        names, parameters = [*selection.rows], _count_parameters(model)
        subject = Subject(names, [*self._quantities], networks, seeds, per_sample, parameters)
        self._record = Record(subject)
        self._modules_of = selection.modules_of
        self._paths: set[frozenset[Row]] = set()  # sets of rows whose graph is known
        self._is_path_new = True  # what was called last has no known graph
        self._bell = None if alarm is None else Bell(alarm, alarm_on)
        if self._bell is not None and self._bell.is_about_profiles and "output_grad" not in self._quantities:
            raise ValueError("an alarm on anything but nonfinite needs the quantity 'output_grad'")
        self._watch: Watch | None = None
        if self._bell is not None and "nonfinite" in self._bell.kinds:
            self._watch = Watch(model, optimizers, scaler, self._see_before_step)
        if keep is not None and _whole("keep", keep) < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        if keep is not None and save is None:
            raise ValueError("keep needs save=, a file for the other steps")
        self._outlets: list[Log | Saving] = [] if log is None else [Log(log, log_layers, self._record)]
        self._outlets += [] if save is None else [Saving(save, keep, self._record)]
        self._collects = 0
        self._attached = False
        self._has_met_others = False  # the probes of other processes

    def __enter__(self) -> Self:
        """Attach the hooks."""
        return self.attach()

    def __exit__(self, *_: object) -> None:
        """Remove every hook, and let the loggers end their work."""
        self.close()

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
        return f"GradientProbe({len(self._record.names)} modules, {self._record.total} steps recorded, {state})"

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
            self._updates = Updates(
                self._optimizers, self._weights, self._networks, self._recorder, self._see_updates
            )
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
        self._hand_on()

    def close(self) -> None:
        """Remove every hook, and wait until the loggers have written all; the end of a ``with`` block does this.

        Those that take pictures get a last one.
        """
        self.remove()
        for outlet in self._outlets:
            outlet.finish()

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
            self._take(label, self._recorder.trace, value, loss)
        found = [] if self._bell is None else self._look(self._bell, label, value, is_recorded)
        self._collects += 1
        self._close()
        if self._collects % self._every or not self._needs_hooks():
            self._recorder.detach()
        self._open()
        if self._updates is None or not is_recorded:
            self._hand_on()
        if found:
            self._ring(label, found)

    def add_finding(self, finding: Finding) -> None:
        """Add to the last recorded step what is known of it beside what the hooks saw.

        Raises:
            RuntimeError: If no step is recorded yet.
        """
        if not self._record.steps:
            raise RuntimeError("no step is recorded yet")
        self._record.add_findings([finding])
        for outlet in self._outlets:
            outlet.tell(finding)

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

    def state_dict(self) -> dict[str, int]:
        """Return what a training's checkpoint must keep, so that a probe goes on as if nothing had stopped it."""
        return {"collects": self._collects}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting collects where another probe was when ``state_dict`` was called; call it before ``attach``.

        Raises:
            RuntimeError: If the probe is attached.
            ValueError: If that is no state of a probe.
        """
        if self._attached:
            raise RuntimeError("load_state_dict must be called before the probe is attached")
        if not isinstance(state, Mapping) or "collects" not in state:
            raise ValueError(f"the state of a probe has 'collects', got {state!r}")
        self._collects = _whole("collects", state["collects"])

    @property
    def history(self) -> History:
        """The steps recorded so far that are in memory: all, or with ``keep`` the last ones and some before."""
        self._fetch_updates()
        return self._record.history()

    def _open(self) -> None:
        if self._collects % self._every == 0:
            self._recorder.open(self._needs_hooks(), self._plan.gradients and self._is_path_new)
            self._weights.watch()

    def _close(self) -> None:
        self._recorder.close()
        self._weights.unwatch()

    def _needs_hooks(self) -> bool:
        # Where only weights are recorded, the first step shows the order of the modules.
        return self._plan.outputs or self._plan.gradients or not self._record.steps

    def _keep_graph(
        self, trace: Trace, calls: list[Row], weights: Mapping[str, list[nn.Parameter]], loss: Tensor | float | None
    ) -> None:
        """Keep which rows feed which; look again in the next step if this one took a way that is not known."""
        path = frozenset(calls)
        feeds = trace.feeds(weights, loss)
        if feeds is not None:
            self._record.feeds |= feeds
            self._paths.add(path)
        self._is_path_new = path not in self._paths
        if not self._record.kinds.keys() >= weights.keys():
            classes = self._recorder.kinds()
            for name, own in weights.items():
                shapes = ", ".join("x".join(map(str, weight.shape)) for weight in own)
                self._record.kinds[name] = f"{classes.get(self._modules_of.get(name, name), '')}({shapes})"

    def _take(self, label: int, trace: Trace, value: Tensor | float | None, loss: Tensor | float | None) -> None:
        held = trace.passes.notice()  # until all are read
        self._check_backward(trace)
        vectors = self._weights.vectors() if self._of_vectors else {}
        weights = {name: w for name, w in self._weights.items() if w or vectors.get(name) or not self._by_default}
        pending = PendingStep(self._networks)
        pending.loss = value
        calls = trace.add(pending, self._record.row_of, weights)
        self._record.keep_order(calls)
        self._keep_graph(trace, calls, weights, loss)
        modules = [self._modules_of.get(name, name) for name in weights]
        unseen = {*trace.hidden(modules), *trace.bypassed(modules)}
        for name in weights if unseen else ():
            if self._modules_of.get(name, name) in unseen:
                for quantity in ("output", "output_grad"):
                    pending.mark(quantity, self._record.row_of(name), "hook_missed")
        of_rows = {name: vectors[name] for name in weights} if vectors else {}
        self._add_parameters(pending, weights, of_rows, trace.passes.moved)
        del held
        self._undo_scale(pending)
        reading = self._read(pending)
        self._hand_on()  # the step before, after which no optimizer has stepped
        self._record.add(label, reading)
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
        rows = self._record.rows_of(weights)
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
            self._updates.add(pending, self._record.row_of)
        reading = pending.read(len(self._record))
        if self._record.take_updates(reading) and self._updates is not None:
            self._record.add_findings(self._updates.findings(self._record.is_unmoved))
        return reading

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
            findings += bell.judged(self._record.history(slice(-1, None)).at())
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
        if findings and (new or (self._record.steps and self._record.steps[-1] == label)):
            if not self._record.steps or self._record.steps[-1] != label:
                self._record_gradients(label, loss)
            self._record.add_findings(findings)
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
                pending.mark(quantity, self._record.row_of(name), "hook_missed")
        self._add_parameters(pending, weights, {name: vectors[name] for name in weights} if vectors else {}, ())
        self._undo_scale(pending)
        self._record.add(label, pending.read(len(self._record)))

    def _fetch_updates(self) -> None:
        if self._updates is not None and not self._updates.is_empty:
            self._read(PendingStep(self._networks))

    def _see_updates(self) -> None:
        if self._outlets:
            self._fetch_updates()
            self._hand_on()

    def _hand_on(self) -> None:
        for outlet in self._outlets:
            outlet.hand_on()

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
            raise RuntimeError(
                "no gradient was seen: call collect after loss.backward() and before zero_grad(), with a loss that "
                "depends on this model"
            )
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


def _quantities(wanted: Iterable[Quantity] | None, has_optimizer: bool, per_sample: bool) -> tuple[Quantity, ...]:
    known = QUANTITIES + VECTOR_QUANTITIES
    if wanted is None:
        return QUANTITIES if has_optimizer else QUANTITIES[:3]
    names = texts("quantities", wanted, "names of quantities")
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


def _count_parameters(model: nn.Module) -> int | None:
    parameters = [*model.parameters()]
    return None if any(map(is_lazy, parameters)) else sum(parameter.numel() for parameter in parameters)


def _networks_of(model: nn.Module) -> int:
    """Return how many networks a model of this library stacks."""
    return model.networks if isinstance(model, MLP) else 1


def _check_kinds(model: Any, stats: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {module_kind(model)}")
    if stats is not None and not isinstance(stats, Mapping):
        raise TypeError(f"stats must map names to functions, got {module_kind(stats)}")
    for name, function in (stats or {}).items():
        if not isinstance(name, str) or not callable(function):
            raise TypeError(f"stats must map names to functions, got {name!r}: {function!r}")
