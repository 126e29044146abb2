"""Units that are dead or saturated: an activation passes no gradient through them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.activations import FLAT, Activation, Made, activations
from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import has_learned, loss_terms
from gradexp.diagnosis.rows import Rows, add_statistic, has_weights
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed, named
from gradexp.history.step import STATUSES
from gradexp.numerics.torch_internals import keeps_elsewhere, parameters_of
from gradexp.probe.calls import tensors_in

# Fewer samples than this leave too many healthy units off by chance.
_ENOUGH_SAMPLES = 32
# Of a healthy layer fewer units than this look dead by chance, given how often its other units fire.
_CHANCE = 0.01
# Wide layers of healthy trained networks do without a third of their units, or somewhat more. Half of them are many.
_SOME, _MORE, _MANY = 0.2, 0.3, 0.5
# Trained gates and recurrent units are saturated here and there; most of a layer is not.
_HALF_FLAT, _ALL_FLAT = 0.5, 0.9
# They bound what need not be a probability.
_BOUNDS = ("clamp", "hardtanh")
_CARE = "a learning rate a tenth as large or less from the start, or nn.LeakyReLU(0.1) in place of nn.ReLU()"


@dataclass(frozen=True)
class Count:
    """What an activation's units do.

    Args:
        activation: Where.
        units: How many units there are; 0 if it is unknown what they are.
        dead: How many fire for no sample.
        always_on: How many fire for every sample.
        on_at_once: How many fire for a sample on average.
        saturated: The share of elements with a slope near 0; nan for a rectifier.
    """

    activation: Activation
    units: int
    dead: int
    always_on: int
    on_at_once: float
    saturated: float


class Units(Observer):
    """Finds dead units, dead layers and saturated activations.

    A unit is dead in a batch if it fires for none of the samples. That many inputs of a layer point the same way,
    or few samples, make healthy units look dead; as many of them are then on for every sample, since weights are as
    often positive as negative. So what counts is how many more are always off than always on, in standard deviations
    of a fair coin, √(off + on).
    """

    def begin(self, examination: Examination) -> None:
        """Prepare to name calls."""
        self._rows = Rows(examination.model)
        self._made: dict[Node, Made] = {}
        self._activations: list[Activation] = []
        self._is_hidden = False

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Remember which node of the graph ends the call."""
        row = self._rows.next_call(module)
        self._is_hidden |= keeps_elsewhere()
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None and not tensor.is_nested:
                # A container ends with the node of the module inside, which was called before.
                self._made.setdefault(tensor.grad_fn, Made(row, module, tuple(tensor.shape)))

    def see_loss(self, examination: Examination) -> None:
        """Read the activations, before the backward pass frees them."""
        assert examination.loss is not None
        if not self._is_hidden:
            outputs = list(tensors_in(examination.output)) or [examination.loss]
            self._activations = activations(outputs, self._made, has_weights)
        terms = loss_terms(examination)
        self._may_be_right = not terms or has_learned(terms)
        self._modules = {made.row[0]: made.module for made in self._made.values()}
        self._made = {}

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return one finding for each kind, over all modules."""
        history = examination.history
        assert history is not None
        order = {name: layer for layer, name in reversed(list(enumerate(history.names)))}
        self._activations.sort(key=lambda activation: (order.get(activation.name, len(order)), activation.kind))
        counts = _counted(self._activations)
        off = {row: count.dead / count.units for count in counts if count.units for row in count.activation.rows}
        add_statistic(history, "output.dead", off)
        add_statistic(history, "output.saturated", {row: c.saturated for c in counts for row in c.activation.rows})
        status = history.status.get("output_grad")
        is_blocked = status is not None and bool(status[0, 0, 0] == STATUSES.index("zero"))
        yield from self._dead_layers([count for count in counts if 0 < count.dead == count.units], is_blocked)
        yield from self._dead_units([count for count in counts if count.dead < count.units])
        yield from _saturated(counts)

    def _dead_layers(self, dead: list[Count], is_blocked: bool) -> Iterable[Finding]:
        if not dead:
            return
        first, names = dead[0], [count.activation.name for count in dead]
        samples = first.activation.samples
        text = (
            f"all {first.units} units after {named(names[0])} fire for none of {samples} samples: no gradient passes"
        )
        if first.units == 1:
            text = f"the only unit after {named(names[0])} never fires ({samples} samples): no gradient passes"
        if len(names) > 1:
            text += f"; the same after {listed(names[1:])}"
        empty = [name for name in names if _is_zero(self._modules.get(name))]
        remedy = "gradexp.initialize(model, 'he', sigma_b2=0), which makes them fire again"
        is_output = all(count.units == 1 and count.activation.is_output for count in dead)
        if is_output:
            remedy = "no activation after the last layer"
        if empty:
            text += f"; the weights of {listed(empty)} are exactly 0"
        elif not is_output:
            remedy += f"; if training switched them off, also {_CARE}"
        severity = 1 if first.units * samples < 8 else 3 if is_blocked else 2
        yield Finding("dead layer", text, tuple(names), remedy, severity)

    def _dead_units(self, counts: list[Count]) -> Iterable[Finding]:
        worth = sorted(filter(_is_no_chance, counts), key=lambda count: -count.dead / count.units)
        if not worth:
            return
        worst, names = worth[0], [count.activation.name for count in worth]
        samples = worst.activation.samples
        text = f"{worst.dead} of {worst.units} units after {named(names[0])} fire for none of {samples} samples"
        if len(names) > 1:
            text += f"; many also after {listed(names[1:])}"
        limits = (_MANY,) if self._may_be_right else (_MORE, _MANY)
        severity = sum(worst.dead >= limit * worst.units for limit in limits)
        if not severity:
            text += "; a wide layer can spare them"
        yield Finding("dead units", text, tuple(names), _CARE if severity else "", severity)


def _is_no_chance(count: Count) -> bool:
    """Return whether more units are dead than few samples, alike inputs or rare firing would make look so."""
    rate = min(1.0, count.on_at_once / (count.units - count.dead))
    samples = count.activation.samples
    is_sparse = (1 - rate) ** samples >= _CHANCE and count.on_at_once >= 1
    return (
        count.dead >= _SOME * count.units
        and samples >= _ENOUGH_SAMPLES
        and not is_sparse
        and count.dead - count.always_on > 3 * math.sqrt(count.dead + count.always_on)
    )


def _saturated(counts: list[Count]) -> Iterable[Finding]:
    # At the output of a trained classifier or generator most are rightly at their ends.
    worth = [c for c in counts if c.saturated >= (_ALL_FLAT if c.activation.is_output else _HALF_FLAT)]
    worth.sort(key=lambda count: -count.saturated)
    if not worth:
        return
    worst, names = worth[0], [count.activation.name for count in worth]
    kind, share = worst.activation.kind, f"{100 * worst.saturated:.3g} %"
    text = f"{share} of the {kind}'s outputs after {named(names[0])} lie where its slope is below {FLAT:g}"
    if len(names) > 1:
        text += f"; many also after {listed(names[1:])}"
    if all(count.activation.is_output for count in worth):
        remedy = "if the loss is high: the output without it, and a loss of logits such as nn.BCEWithLogitsLoss()"
        if all(count.activation.kind in _BOUNDS for count in worth):
            remedy = ""  # the finding of what is cut has it
        severity = 1
    else:
        remedy = "gradexp.initialize(model, 'xavier', sigma_b2=0), inputs of mean 0 and standard deviation 1"
        severity = 2 if worst.saturated >= _ALL_FLAT else 1
    yield Finding("saturated", text, tuple(names), remedy, severity)


def _counted(found: list[Activation]) -> list[Count]:
    """Return the numbers of some activations, which come from the device together."""
    if not found:
        return []
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    numbers = []
    for a in found:
        off = zero if a.fires is None else (~a.fires).sum()
        on = zero if a.never_off is None else a.never_off.sum()
        firing = zero if a.firing is None else a.firing.sum()
        flat = zero * math.nan if a.saturated is None else a.saturated
        numbers.append(torch.stack([x.to(a.device, torch.float64) for x in (off, on, firing, flat)]))
    rows = torch.stack([row.to(numbers[0].device) for row in numbers]).tolist()
    counts = []
    for a, (off, on, firing, flat) in zip(found, rows, strict=True):
        units = 0 if a.fires is None else len(a.fires)
        counts.append(Count(a, units, int(off), int(on), firing * units / a.elements, flat / a.elements))
    return counts


def _is_zero(module: nn.Module | None) -> bool:
    weights: list[Tensor] = [] if module is None else [p for p in parameters_of(module) if p.dim() > 1]
    return bool(weights) and not any(weight.detach().any() for weight in weights)
