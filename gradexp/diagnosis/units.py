"""Units that are dead or saturated: an activation passes no gradient through them."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.activations import FLAT, Activation, Made, activations
from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import loss_terms
from gradexp.diagnosis.rows import Rows, add_statistic
from gradexp.diagnosis.sentences import listed
from gradexp.history.finding import Finding
from gradexp.history.step import STATUSES
from gradexp.numerics.torch_internals import keeps_elsewhere, parameters_of
from gradexp.probe.calls import tensors_in
from gradexp.probe.parametrized import computed_weights

# Fewer samples than this leave too many healthy units off by chance.
_ENOUGH_SAMPLES = 32
# Of a healthy layer fewer units than this look dead by chance, given how often its other units fire.
_CHANCE = 0.01
# Wide layers of healthy trained networks do without a third of their units, or somewhat more. Half of them are many.
_SOME, _MORE, _MANY = 0.2, 0.3, 0.5
# Trained gates and recurrent units are saturated here and there; most of a layer is not.
_HALF_FLAT, _ALL_FLAT = 0.5, 0.9
# A model that has halved the loss of guessing gets along without its dead units.
_LEARNED = 0.5
_CARE = "a learning rate a tenth as large from the start, or nn.LeakyReLU(0.1) in place of nn.ReLU()"


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

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        """Remember which node of the graph ends the call."""
        row = self._rows.next_call(module)
        self._is_hidden |= keeps_elsewhere()
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                # A container ends with the node of the module inside, which was called before.
                self._made.setdefault(tensor.grad_fn, Made(row, module, tuple(tensor.shape)))

    def see_loss(self, examination: Examination) -> None:
        """Read the activations, before the backward pass frees them."""
        if not self._is_hidden:
            outputs = list(tensors_in(examination.output)) or [examination.loss]
            self._activations = sorted(
                activations(outputs, self._made, _has_weights), key=lambda activation: activation.name
            )
        terms = loss_terms(examination)
        self._has_learned = not terms or any(
            term.guessing > 0 and term.value < _LEARNED * term.guessing for term in terms
        )
        self._modules = {made.row[0]: made.module for made in self._made.values()}
        self._made = {}

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return one finding for each kind, over all modules."""
        history = examination.history
        assert history is not None
        order = {name: layer for layer, name in reversed(list(enumerate(history.names)))}
        self._activations.sort(key=lambda activation: order.get(activation.name, len(order)))
        counted = [(a, *_counts(a)) for a in self._activations if a.fires is not None]
        shares = [(a, a.saturated.item() / a.elements) for a in self._activations if a.saturated is not None]
        off = {row: dead / units for a, dead, _, units in counted for row in a.rows}
        add_statistic(history, "output.dead", off)
        add_statistic(history, "output.saturated", {row: share for a, share in shares for row in a.rows})
        yield from self._dead_layers(examination, [a for a, dead, _, units in counted if dead == units])
        yield from _dead_units([count for count in counted if count[1] < count[3]], self._has_learned)
        yield from _saturated(shares)

    def _dead_layers(self, examination: Examination, dead: list[Activation]) -> Iterable[Finding]:
        if not dead:
            return
        names = [activation.name for activation in dead]
        first = dead[0]
        units = _units(first)
        history = examination.history
        assert history is not None
        blocked = "output_grad" in history.status and history.status["output_grad"][0, 0, 0] == STATUSES.index("zero")
        empty = [name for name in names if _is_zero(self._modules.get(name))]
        severity = 1 if units * first.samples < 8 else 3 if blocked else 2
        who = f"all {units} units after {first.name}" if units > 1 else f"the one unit after {first.name}"
        text = f"{who} fire{'' if units > 1 else 's'} for none of {first.samples} samples: no gradient passes"
        if len(names) > 1:
            text += f"; the same after {listed(names[1:])}"
        if empty:
            text += f"; the weights of {listed(empty)} are exactly 0"
        remedy = 'gradexp.initialize(model, "he"), which makes them fire again' + ("" if empty else f"; then {_CARE}")
        yield Finding("dead layer", text, tuple(names), remedy, severity)


def _dead_units(counted: list[tuple[Activation, int, int, int]], has_learned: bool) -> Iterable[Finding]:
    worth = [
        (dead / units, f"{dead} of {units} units after {a.name} fire for none of {a.samples} samples", a.name)
        for a, dead, on, units in counted
        if _is_no_chance(a, dead, on, units)
    ]
    if not worth:
        return
    worth.sort(key=lambda item: -item[0])
    names = [name for *_, name in worth]
    further = f"; many too after {listed(names[1:])}" if len(names) > 1 else ""
    limits = (_MANY,) if has_learned else (_MORE, _MANY)
    severity = sum(worth[0][0] >= limit for limit in limits)
    if not severity:
        further += "; wide layers can do without them"
    yield Finding("dead units", worth[0][1] + further, tuple(names), _CARE if severity else "", severity)


def _is_no_chance(activation: Activation, dead: int, on: int, units: int) -> bool:
    """Return whether units are dead by more than few samples, alike inputs or rare firing would make them."""
    assert activation.firing is not None
    on_at_once = activation.firing.sum().item() * units / activation.elements
    rate = min(1.0, on_at_once / (units - dead))
    is_sparse = (1 - rate) ** activation.samples >= _CHANCE and on_at_once >= 1
    return (
        dead >= _SOME * units
        and activation.samples >= _ENOUGH_SAMPLES
        and not is_sparse
        and dead - on > 3 * math.sqrt(dead + on)
    )


def _saturated(shares: list[tuple[Activation, float]]) -> Iterable[Finding]:
    # At the output of a trained classifier or generator most are rightly at their ends.
    worth = [(share, a) for a, share in shares if share >= (_ALL_FLAT if a.is_output else _HALF_FLAT)]
    if not worth:
        return
    worth.sort(key=lambda item: -item[0])
    share, worst = worth[0]
    names = [activation.name for _, activation in worth]
    further = f"; much too after {listed(names[1:])}" if len(names) > 1 else ""
    text = f"{100 * share:.3g} % of the {worst.kind} after {worst.name} have a slope below {FLAT:g}{further}"
    if all(activation.is_output for _, activation in worth):
        remedy = "if the loss is high: the output without it, and a loss of logits such as nn.BCEWithLogitsLoss()"
        yield Finding("saturated", text, tuple(names), remedy, 1)
        return
    remedy = 'gradexp.initialize(model, "xavier"), inputs of mean 0 and standard deviation 1'
    yield Finding("saturated", text, tuple(names), remedy, 2 if share >= _ALL_FLAT else 1)


def _counts(activation: Activation) -> tuple[int, int, int]:
    """Return how many units are always off, how many always on, and how many there are."""
    assert activation.fires is not None
    assert activation.never_off is not None
    dead, on = torch.stack([(~activation.fires).sum(), activation.never_off.sum()]).tolist()
    return dead, on, len(activation.fires)


def _units(activation: Activation) -> int:
    return 0 if activation.fires is None else len(activation.fires)


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in parameters_of(module)) or bool(computed_weights(module))


def _is_zero(module: nn.Module | None) -> bool:
    weights: list[Tensor] = [] if module is None else [p for p in parameters_of(module) if p.dim() > 1]
    return bool(weights) and not any(weight.detach().any() for weight in weights)
