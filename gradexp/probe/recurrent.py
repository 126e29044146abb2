"""The layers and time steps inside nn.RNN, nn.LSTM and nn.GRU, which return the outputs of the top layer alone.

What such a module does inside is computed once more, from what went in and what came back: each layer from the
input, the states and the weights of the recorded pass, its gradients from those of the outputs that the module
returned. So nothing of the training is touched, and a layer has the numbers that it would have as a module by itself.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

State = tuple[Tensor, ...]
"""Of one layer and direction, ``(batch, width)`` each: the hidden state, and the cell state of an LSTM."""


def layer_names(module: nn.Module) -> list[str]:
    """Return a name for each layer and direction of a recurrent module, as torch's parameters have them.

    Returns:
        Such as ``["l0", "l0_reverse", "l1", "l1_reverse"]``; none for one layer in one direction, which the module
        itself stands for, and for other modules.
    """
    if not isinstance(module, nn.RNNBase) or module.num_layers * (1 + module.bidirectional) == 1:
        return []
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [f"l{layer}{direction}" for layer in range(module.num_layers) for direction in directions]


def row_name(module_name: str, layer: str) -> str:
    """Return the name of the row of a recurrent module's layer; the module itself may have an empty name."""
    return f"{module_name}.{layer}" if module_name else layer


def layer_weights(module: nn.Module, layer: str) -> list[nn.Parameter]:
    """Return the weights of one layer and direction of a recurrent module."""
    weights = [getattr(module, f"weight_{kind}_{layer}", None) for kind in ("ih", "hh", "hr")]
    return [weight for weight in weights if isinstance(weight, nn.Parameter)]


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Padded or packed sequences.

    Args:
        data: ``(time, batch, width)``, or ``(elements, width)`` if packed.
        batch_sizes: How many sequences reach each time step, if packed.
    """

    data: Tensor
    batch_sizes: Tensor | None = None

    def double(self) -> "Sequences":
        """Return them in float64."""
        return Sequences(self.data.double(), self.batch_sizes)

    def steps(self, tensor: Tensor) -> list[Tensor]:
        """Split a tensor of the same layout into time steps, ``(sequences that reach it, width)`` each."""
        if self.batch_sizes is None:
            return list(tensor.unbind())
        return list(tensor.split(self.batch_sizes.tolist()))


@dataclasses.dataclass(frozen=True)
class LayerPass:
    """What one layer and direction did in one pass.

    Args:
        name: Of the layer.
        output: Of all its time steps, in the layout of ``inputs``.
        states: The last ones.
        output_grad: Gradient of ``output``; None if none came back.
        state_grads: Gradients of ``states``; None where none came back.
        inputs: What the layer reads.
        first: The states that it begins with.
    """

    name: str
    output: Tensor
    states: State
    output_grad: Tensor | None
    state_grads: tuple[Tensor | None, ...]
    inputs: Sequences
    first: State

    @property
    def outputs(self) -> list[Tensor]:
        """All that the layer would return as a module of its own."""
        return [self.output, *self.states]

    @property
    def gradients(self) -> list[Tensor]:
        """Gradients of ``outputs``, without those that are None."""
        return [gradient for gradient in (self.output_grad, *self.state_grads) if gradient is not None]


def layer_passes(
    module: nn.RNNBase,
    inputs: Sequences,
    first: State,
    output_grad: Tensor | None,
    state_grads: Sequence[Tensor | None],
) -> list[LayerPass]:
    """Run a recurrent module layer by layer, without dropout, and take the gradient back through each layer.

    Args:
        module: Whose weights are used, in the number format of ``inputs``.
        inputs: Of its first layer.
        first: Its first states, ``(layers * directions, batch, width)`` each.
        output_grad: Gradient of the top layer's outputs; None if none came back.
        state_grads: Gradients of the last states, shaped like ``first``.

    Returns:
        One entry per layer and direction, in the order of ``layer_names``.
    """
    directions = 1 + module.bidirectional
    read: list[Tensor] = [inputs.data.detach()]
    results: list[tuple[Tensor, State]] = []
    with torch.no_grad():
        for layer in range(module.num_layers):
            results.append(_run(module, layer, dataclasses.replace(inputs, data=read[-1]), first))
            read.append(results[-1][0])
    passes: list[LayerPass] = []
    gradient = output_grad
    for layer in reversed(range(module.num_layers)):
        own = slice(layer * directions, (layer + 1) * directions)
        last_grads = [None if grad is None else grad[own] for grad in state_grads]
        output, states = results[layer]
        halves = output.chunk(directions, dim=-1)
        half_grads = (None,) * directions if gradient is None else gradient.chunk(directions, dim=-1)
        for direction in reversed(range(directions)):
            passes.append(
                LayerPass(
                    f"l{layer}{'_reverse' if direction else ''}",
                    halves[direction],
                    tuple(state[direction] for state in states),
                    half_grads[direction],
                    tuple(None if grad is None else grad[direction] for grad in last_grads),
                    dataclasses.replace(inputs, data=read[layer]),
                    tuple(state[layer * directions + direction] for state in first),
                )
            )
        if layer:
            gradient = _gradient_of_input(module, layer, inputs, read[layer], first, [gradient, *last_grads])
    return passes[::-1]


def _gradient_of_input(
    module: nn.RNNBase,
    layer: int,
    inputs: Sequences,
    data: Tensor,
    first: State,
    gradients: Sequence[Tensor | None],
) -> Tensor | None:
    """Take the gradient of what a layer returns back to what it reads."""
    with torch.enable_grad():
        data = data.detach().requires_grad_()
        output, states = _run(module, layer, dataclasses.replace(inputs, data=data), first)
        pairs = [(t, g) for t, g in zip((output, *states), gradients, strict=True) if g is not None]
        if not pairs:
            return None
        tensors, cotangents = zip(*pairs, strict=True)
        return torch.autograd.grad(tensors, data, cotangents)[0]


def _run(module: nn.RNNBase, layer: int, inputs: Sequences, first: State) -> tuple[Tensor, State]:
    """Run one layer in all its directions."""
    directions = 1 + module.bidirectional
    names = [f"l{layer}", f"l{layer}_reverse"][:directions]
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    kinds += ["weight_hr"] if module.proj_size else []
    weights = [getattr(module, f"{kind}_{name}").detach().to(inputs.data.dtype) for name in names for kind in kinds]
    states = tuple(state[layer * directions : (layer + 1) * directions].contiguous() for state in first)
    hidden: Any = states if module.mode == "LSTM" else states[0]
    function = _FUSED[module.mode]
    # Weights in one piece of memory, as cuDNN wants them, are those of all layers together.
    with torch.backends.cudnn.flags(enabled=False):
        if inputs.batch_sizes is None:
            result = function(inputs.data, hidden, weights, module.bias, 1, 0.0, True, module.bidirectional, False)
        else:
            sizes = inputs.batch_sizes
            result = function(inputs.data, sizes, hidden, weights, module.bias, 1, 0.0, True, module.bidirectional)
    return result[0], tuple(result[1:])


_FUSED: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
    "LSTM": torch.lstm,
    "GRU": torch.gru,
}


def over_time(module: nn.RNNBase, layer: LayerPass) -> tuple[list[Tensor], list[Tensor]]:
    """Run one layer and direction step by step, in float64.

    Returns:
        The output at each time step, ``(sequences that reach it, width)`` each, and its whole gradient, through all
        later time steps too; no gradients if none came back.
    """
    weights = {
        kind: getattr(module, f"{kind}_{layer.name}").detach().double()
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        if hasattr(module, f"{kind}_{layer.name}")
    }
    with torch.enable_grad():
        read = layer.inputs.data.detach().double() @ weights["weight_ih"].T
        if module.bias:
            read = read + weights["bias_ih"]
        inputs = layer.inputs.steps(read)
        state = tuple(part.detach().double().requires_grad_() for part in layer.first)
        outputs: list[Tensor] = [state[0]] * len(inputs)
        order = range(len(inputs))
        for time in reversed(order) if layer.name.endswith("_reverse") else order:
            count = len(inputs[time])
            new = _CELLS[module.mode](inputs[time], tuple(part[:count] for part in state), weights)
            # Of shorter sequences it stays what it was: the last state of those that are over, the first of others.
            state = tuple(
                torch.cat([part, old[count:]]) if count < len(old) else part
                for part, old in zip(new, state, strict=True)
            )
            outputs[time] = new[0]
        pairs = (
            []
            if layer.output_grad is None
            else list(zip(outputs, layer.inputs.steps(layer.output_grad), strict=True))
        )
        pairs += [(part, grad) for part, grad in zip(state, layer.state_grads, strict=True) if grad is not None]
        if not pairs:
            return [output.detach() for output in outputs], []
        tensors, cotangents = zip(*pairs, strict=True)
        found = torch.autograd.grad(tensors, outputs, [cotangent.double() for cotangent in cotangents])
    return [output.detach() for output in outputs], list(found)


def _rnn(activation: Callable[[Tensor], Tensor]) -> "_Cell":
    def cell(read: Tensor, state: State, weights: dict[str, Tensor]) -> State:
        return (activation(read + _recurrent(state[0], weights)),)

    return cell


def _lstm(read: Tensor, state: State, weights: dict[str, Tensor]) -> State:
    inlet, keep, new, outlet = (read + _recurrent(state[0], weights)).chunk(4, dim=-1)
    cell = keep.sigmoid() * state[1] + inlet.sigmoid() * new.tanh()
    hidden = outlet.sigmoid() * cell.tanh()
    return (hidden @ weights["weight_hr"].T if "weight_hr" in weights else hidden), cell


def _gru(read: Tensor, state: State, weights: dict[str, Tensor]) -> State:
    (reset, update, new), recurrent = read.chunk(3, dim=-1), _recurrent(state[0], weights).chunk(3, dim=-1)
    candidate = (new + (reset + recurrent[0]).sigmoid() * recurrent[2]).tanh()
    share = (update + recurrent[1]).sigmoid()
    return ((1 - share) * candidate + share * state[0],)


def _recurrent(hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
    product = hidden @ weights["weight_hh"].T
    return product + weights["bias_hh"] if "bias_hh" in weights else product


_Cell = Callable[[Tensor, State, dict[str, Tensor]], State]

_CELLS: dict[str, _Cell] = {"RNN_TANH": _rnn(torch.tanh), "RNN_RELU": _rnn(torch.relu), "LSTM": _lstm, "GRU": _gru}


def sequences_of(module: nn.RNNBase, inputs: Tensor | PackedSequence, hidden: Any) -> tuple[Sequences, State]:
    """Return what a recurrent module was called with, time first and with a batch, and its first states."""
    packed = isinstance(inputs, PackedSequence)
    data: Tensor = inputs.data if isinstance(inputs, PackedSequence) else time_first(module, inputs)
    sequences = Sequences(data, inputs.batch_sizes if isinstance(inputs, PackedSequence) else None)
    count = int(inputs.batch_sizes[0]) if isinstance(inputs, PackedSequence) else data.shape[1]
    if hidden is None:
        layers = module.num_layers * (1 + module.bidirectional)
        widths = [module.proj_size or module.hidden_size] + [module.hidden_size] * (module.mode == "LSTM")
        return sequences, tuple(data.new_zeros(layers, count, width) for width in widths)
    order = inputs.sorted_indices if isinstance(inputs, PackedSequence) else None
    states = hidden if isinstance(hidden, (tuple, list)) else (hidden,)
    return sequences, tuple(in_order(state, order if packed else None) for state in states)


def time_first(module: nn.RNNBase, tensor: Tensor) -> Tensor:
    """Return inputs or outputs of padded sequences, or of one sequence alone, as ``(time, batch, width)``."""
    if tensor.dim() == 2:
        return tensor.unsqueeze(1)
    return tensor.transpose(0, 1) if module.batch_first else tensor


def in_order(state: Tensor, order: Tensor | None) -> Tensor:
    """Return states, or their gradients, as ``(layers, batch, width)`` in the order of packed sequences."""
    state = state.unsqueeze(1) if state.dim() == 2 else state
    return state if order is None else state.index_select(1, order)
