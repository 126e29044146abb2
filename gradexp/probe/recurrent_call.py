"""One call of a recurrent module: what went in and what came back, and what its layers and time steps make of it."""

import math
import weakref
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gradexp.numerics.torch_internals import version_of
from gradexp.probe.calls import ModuleCall, statistics
from gradexp.probe.passes import BackwardPass
from gradexp.probe.readings import PendingStep, TensorSize, measure_all, tensor_size
from gradexp.probe.recurrent import (
    LayerPass,
    Sequences,
    in_order,
    layer_names,
    layer_passes,
    over_time,
    row_name,
    sequences_of,
    time_first,
)

# How far the norm of the outputs of a second run may be from that of the first, by rounding alone.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}

_FORWARDS = [kind.forward for kind in (nn.RNN, nn.LSTM, nn.GRU)]


class RecurrentCall:
    """What is kept of a call until the collect: its inputs, which autograd keeps too, and gradients of its outputs.

    Args:
        call: Of the module.
        module: Held weakly.
        args: Of the call.
        kwargs: Of the call.
        output: What it returned; measured, and not kept.
    """

    def __init__(
        self, call: ModuleCall, module: nn.RNNBase, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        self._call = weakref.ref(call)
        self._module = weakref.ref(module)
        names = [row_name(call.name, layer) for layer in layer_names(module)]
        directions = 1 + module.bidirectional
        self.layers: list[list[str]] = [
            names[start : start + directions] for start in range(0, len(names), directions)
        ]
        self._gradients: dict[int, list[tuple[BackwardPass, Tensor]]] = {}
        inputs = args[0] if args else kwargs["input"]
        self._order = inputs.sorted_indices if isinstance(inputs, PackedSequence) else None
        sequences, first = sequences_of(module, inputs, args[1] if len(args) > 1 else kwargs.get("hx"))
        self._sequences = Sequences(sequences.data.detach(), sequences.batch_sizes)
        self._first = tuple(state.detach() for state in first)
        self._versions = self._versions_now(module)
        tensors = list(_tensors(output))
        states = [in_order(state.detach(), None)[-directions:] for state in tensors[1:]]
        self._top = [
            [tensor_size(part, 1) for part in (half, *(state[direction] for state in states))]
            for direction, half in enumerate(tensors[0].chunk(directions, dim=-1))
        ]
        self._can_be_repeated = (
            not any(torch.is_autocast_enabled(device) for device in {"cpu", tensors[0].device.type})
            and (module.num_layers == 1 or not (module.dropout and module.training))
            and type(module).forward in _FORWARDS
            and "forward" not in module.__dict__
        )
        self._tolerance = _ROUNDING.get(tensors[0].dtype, 3e-2)

    def hook(self, output: Any) -> None:
        """Keep the gradients of the outputs when they come back."""
        for index, tensor in enumerate(_tensors(output)):
            if tensor.requires_grad:
                tensor.register_hook(_keep(self, index))

    def add(
        self,
        pending: PendingStep,
        row_of: Callable[[str, int], int],
        names: Container[str],
        passes: Sequence[BackwardPass] | None,
    ) -> list[str]:
        """Add what the module's layers did, and their time steps if those are wanted.

        Args:
            pending: The step.
            row_of: Row of a name and a call.
            names: Rows that are recorded.
            passes: Backward passes that count; None if that is not known.

        Returns:
            The names of the layers' rows. Where no gradient came back, it is left open why.
        """
        call, module = self._call(), self._module()
        if call is None or module is None:
            return []
        sums = self._sums_of_gradients(module, passes or ())
        with torch.inference_mode(False):
            layers = self._layers(module, sums)
            if call.plan.time and layers and not call.missed and self._sequences.data.device.type != "mps":
                self._add_times(pending, call, module, sums)  # for which mps has no float64
        tops = {} if layers else self._top_layers(module, sums)
        rows = []
        for index, layer in enumerate(layer_names(module)):
            if (name := row_name(call.name, layer)) in names:
                rows.append(name)
                if layers:
                    self._add_layer(pending, row_of(name, call.index), call, layers[index])
                else:
                    _add_sizes(pending, row_of(name, call.index), call, *tops.get(index, (None, None)))
        return rows

    def _add_layer(self, pending: PendingStep, row: int, call: ModuleCall, layer: LayerPass) -> None:
        plan = call.plan
        _add_sizes(pending, row, call, measure_all(layer.outputs, 1), measure_all(layer.gradients, 1))
        for quantity, wanted, tensors in (
            ("output", plan.outputs, layer.outputs),
            ("output_grad", plan.gradients, layer.gradients),
        ):
            for tensor in tensors if wanted and plan.stats else ():
                for name, value in statistics(quantity, tensor, plan):
                    pending.add_statistic(name, row, value)

    def _add_times(
        self, pending: PendingStep, call: ModuleCall, module: nn.RNNBase, sums: Sequence[Tensor | None]
    ) -> None:
        plan = call.plan
        wide = [None if gradient is None else gradient.double() for gradient in sums]
        first = tuple(state.double() for state in self._first)
        for layer in layer_passes(module, self._sequences.double(), first, wide[0], wide[1:]):
            steps = pending.over_time(row_name(call.name, layer.name) if layer_names(module) else call.name)
            outputs, gradients = over_time(module, layer)
            for quantity, wanted, tensors in (
                ("output", plan.outputs, outputs),
                ("output_grad", plan.gradients, gradients),
            ):
                for time, size in enumerate(measure_all(tensors, 1) if wanted else ()):
                    steps.add(quantity, time, size)

    def _layers(self, module: nn.RNNBase, sums: Sequence[Tensor | None]) -> list[LayerPass] | None:
        """Run the module once more, layer by layer; None where that would not give what the first run gave."""
        if not self._can_be_repeated or self._versions_now(module) != self._versions:
            return None
        layers = layer_passes(module, self._sequences, self._first, sums[0], sums[1:])
        top = [layer.output for layer in layers[-len(self._top) :]]
        again, before = (_joint(sizes) for sizes in (measure_all(top, 1), [sizes[0] for sizes in self._top]))
        return layers if abs(again - before) <= self._tolerance * max(again, before) else None

    def _top_layers(
        self, module: nn.RNNBase, sums: Sequence[Tensor | None]
    ) -> dict[int, tuple[list[TensorSize], list[TensorSize]]]:
        """Return outputs and gradients of the top layer, which needs no second run, by its index."""
        of_output, *of_states = sums
        directions, count = len(self._top), len(layer_names(module))
        top = {}
        for direction, sizes in enumerate(self._top):
            index = count - directions + direction
            gradients = [] if of_output is None else [of_output.chunk(directions, dim=-1)[direction]]
            gradients += [gradient[index] for gradient in of_states if gradient is not None]
            top[index] = sizes, measure_all(gradients, 1)
        return top

    def _sums_of_gradients(self, module: nn.RNNBase, passes: Sequence[BackwardPass]) -> list[Tensor | None]:
        """Return the gradients of outputs, time first, and of last states, each summed over backward passes."""
        sums: list[Tensor | None] = []
        for index in range(1 + len(self._first)):
            brought = [gradient for backward, gradient in self._gradients.get(index, ()) if backward in passes]
            total = sum(brought[1:], brought[0]) if brought else None
            if total is not None and index:
                total = in_order(total, self._order)
            elif total is not None and self._sequences.batch_sizes is None:
                total = time_first(module, total)
            sums.append(total)
        return sums

    def _versions_now(self, module: nn.RNNBase) -> list[int]:
        """Return how often the inputs and the weights were changed in place."""
        tensors = [self._sequences.data, *self._first, *module.parameters()]
        return [0 if tensor.is_inference() else version_of(tensor) for tensor in tensors]


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield what a recurrent module returned: outputs, hidden states, and the cell states of an LSTM."""
    outputs, states = output
    yield outputs.data if isinstance(outputs, PackedSequence) else outputs
    yield from states if isinstance(states, tuple) else (states,)


def _keep(owner: RecurrentCall, index: int) -> Callable[[Tensor], None]:
    """Return a tensor hook that keeps its gradient."""

    def hook(gradient: Tensor) -> None:
        call = owner._call()
        if call is not None and call.passes.is_open:
            backward = call.passes.running(call.name, call.run, gradient)
            if backward.accumulates:
                owner._gradients.setdefault(index, []).append((backward, gradient.detach().clone()))

    return hook


def _add_sizes(
    pending: PendingStep,
    row: int,
    call: ModuleCall,
    outputs: list[TensorSize] | None,
    gradients: list[TensorSize] | None,
) -> None:
    """Add the sizes of a row, or that they are not known."""
    plan = call.plan
    for quantity, wanted, sizes in (("output", plan.outputs, outputs), ("output_grad", plan.gradients, gradients)):
        if not wanted:
            continue
        for size in sizes or ():
            pending.add(quantity, row, size)
        if sizes is None or quantity in call.missed:
            pending.mark(quantity, row, "hook_missed")


def _joint(sizes: Sequence[TensorSize]) -> float:
    return math.hypot(*(float(norm) * 2.0 ** float(exponent) for norm, exponent, *_ in sizes))
