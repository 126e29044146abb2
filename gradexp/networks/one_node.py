"""An MLP as one node of autograd's graph, in place of ten for each layer."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import gcd
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradexp.networks.activations import ACTIVATIONS
from gradexp.networks.mlp import MLP

# Bytes at whose multiples each parameter begins, as if it had memory of its own: that decides the order of sums.
_ALIGNED = 64

# Numbers of a layer's outputs that are evaluated at a time on a CPU: as many as stay in its cache, and a multiple of
# what it takes φ of at once, since what is left over is computed by another formula, to other last digits.
_CACHED, _VECTOR = 1 << 17, 64

# Activation -> φ(z) in the memory of z, and the gradient of z, from that of φ(z) and φ(z) itself, by the operation
# that autograd takes.
_IN_PLACE: dict[Any, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    ACTIVATIONS["relu"]: (torch.relu_, lambda gradient, a: torch.ops.aten.threshold_backward(gradient, a, 0)),
    ACTIVATIONS["tanh"]: (torch.tanh_, torch.ops.aten.tanh_backward),
    ACTIVATIONS["sigmoid"]: (torch.sigmoid_, torch.ops.aten.sigmoid_backward),
    ACTIVATIONS["linear"]: (lambda z: z, lambda gradient, _: gradient),
}


class Watcher(Protocol):
    """Sees the outputs z and their gradients while they are computed."""

    def see_output(self, z: Tensor) -> None:
        """See what a layer returned, from the first one on. φ(z) may then take its memory."""

    def see_gradient(self, gradient: Tensor) -> None:
        """See the gradient of a layer's output, from the last one on."""


class Parts:
    """A buffer that holds the parameters of an MLP one after the other, or something of the same shapes.

    Args:
        buffer: The buffer.
        places: Where each parameter begins, and its shape.
        per_layer: Parameters of a layer: a weight and maybe a bias.

    Attributes:
        weights: The part of each layer's weight, shape ``(networks, fan_out, fan_in)``.
        biases: The part of each bias, shape ``(networks, fan_out)``; empty without biases.
    """

    def __init__(self, buffer: Tensor, places: Sequence[tuple[int, torch.Size]], per_layer: int) -> None:
        self.buffer = buffer
        self.all: list[Tensor] = [buffer[begin : begin + shape.numel()].view(shape) for begin, shape in places]
        self.weights: list[Tensor] = self.all[::per_layer]
        self.biases: list[Tensor] = self.all[1::2] if per_layer == 2 else []


class OneNode:
    """The passes of an MLP, written out, with all of its parameters in one buffer.

    It computes what ``model(x)`` and its backward pass compute, by the same products in the same order. Autograd
    would spend on its own nodes, and on transposing each weight's gradient, half of what the products take.

    The model's parameters become views of ``parameter``, so that they stay up to date. They get no ``.grad``.

    Args:
        model: An MLP without normalisation and skip connections.

    Attributes:
        parameter: The parameters of all layers one after the other, to be given to an optimizer. Its ``.grad`` is
            the same memory in each step.
        values: The parts of ``parameter``.
        gradients: Those of its ``.grad``.
        names: Of the model's layers.
        watcher: Sees what is computed with a graph, if any.

    Raises:
        ValueError: If the model cannot be written out.
    """

    def __init__(self, model: MLP) -> None:
        if not can_be_one_node(model):
            raise ValueError("only an MLP without normalization, residual and dropout is written out as one node")
        self.networks: int = model.networks
        self.depth: int = model.depth
        self.names: list[str] = [f"layers.{layer}" for layer in range(model.depth)]
        self.watcher: Watcher | None = None
        self.parameter: nn.Parameter
        self.parameter, self._places = side_by_side(list(model.parameters()))
        self.values: Parts = self.like(self.parameter.detach())
        self.gradients: Parts = self.like(torch.zeros_like(self.parameter))
        self._weights = [weight.mT for weight in self.values.weights]
        self._biases = [bias.unsqueeze(1) for bias in self.values.biases]
        self._widths = model.widths
        self._activation: Callable[[Tensor], Tensor]
        self._backward: Callable[[Tensor, Tensor], Tensor] | None
        self._activation, self._backward = _IN_PLACE.get(model.activation, (model.activation, None))

    def __call__(self, x: Tensor) -> Tensor:
        """Return y = zᴸ, shape ``(networks, batch, n_L)``, for inputs of shape ``(networks, batch, n_0)``."""
        if torch.is_grad_enabled():
            output: Tensor = _Passes.apply(self.parameter, self, x)  # type: ignore[no-untyped-call]
            return output
        at_once = self._at_once(x.shape[1]) if x.device.type == "cpu" else self.networks
        firsts = range(0, self.networks, at_once)
        return torch.cat([self._evaluate(x, slice(first, first + at_once)) for first in firsts])

    def like(self, buffer: Tensor) -> Parts:
        """Return the parts of another buffer like ``parameter``."""
        return Parts(buffer, self._places, len(self._places) // self.depth)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return y, the inputs of each layer, and the z before them where φ'(z) cannot be had from φ(z)."""
        watcher, activation, weights, biases = self.watcher, self._activation, self._weights, self._biases
        inputs, outputs = [x], []
        z = _linear(x, 0, weights, biases)
        for layer in range(1, self.depth):
            if watcher is not None:
                watcher.see_output(z)
            if self._backward is None:
                with torch.enable_grad():
                    a = activation(z.requires_grad_())
                outputs.append(z)
            else:
                a = activation(z)
            inputs.append(a)
            z = _linear(a.detach() if outputs else a, layer, weights, biases)
        if watcher is not None:
            watcher.see_output(z)
        return z, inputs, outputs

    def backward(self, gradient: Tensor, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Add to ``parameter.grad``, given the gradient of y. Takes the tensors out of the two lists."""
        watcher, backward = self.watcher, self._backward
        is_first = self.parameter.grad is None
        parts = self.gradients if is_first else self.like(torch.zeros_like(self.parameter))
        for layer in range(self.depth - 1, -1, -1):
            if watcher is not None:
                watcher.see_gradient(gradient)
            a = inputs.pop()
            torch.bmm(gradient.mT, a.detach(), out=parts.weights[layer])
            if parts.biases:
                torch.sum(gradient, 1, out=parts.biases[layer])
            if layer:
                gradient = torch.bmm(gradient, self.values.weights[layer])
                if backward is not None:
                    gradient = backward(gradient, a)
                else:
                    (gradient,) = torch.autograd.grad(a, outputs.pop(), gradient)
        if is_first:
            self.parameter.grad = parts.buffer
        else:
            self.gradients.buffer.add_(parts.buffer)

    def _at_once(self, rows: int) -> int:
        """Return how many networks to evaluate at a time on some rows."""
        whole = _VECTOR // gcd(_VECTOR, rows * gcd(*self._widths[1:-1]))
        return max(1, _CACHED // (rows * max(self._widths[1:]) * whole)) * whole

    def _evaluate(self, x: Tensor, networks: slice) -> Tensor:
        """Return y of some of the networks, and keep nothing for a way back."""
        weights, biases = ([part[networks] for part in parts] for parts in (self._weights, self._biases))
        z = _linear(x[networks], 0, weights, biases)
        for layer in range(1, self.depth):
            z = _linear(self._activation(z), layer, weights, biases)
        return z


def _linear(a: Tensor, layer: int, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return torch.baddbmm(biases[layer], a, weights[layer]) if biases else torch.bmm(a, weights[layer])


class _Passes(torch.autograd.Function):
    """The node."""

    @staticmethod
    def forward(ctx: Any, _parameter: Tensor, network: OneNode, x: Tensor) -> Tensor:
        ctx.network = network
        output, *ctx.kept = network.forward(x)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.network.backward(gradient, *ctx.kept)
        return None, None, None


def can_be_one_node(model: nn.Module) -> bool:
    """Return whether a model's passes can be written out."""
    return type(model) is MLP and model.normalization == model.residual == "none" and not model.dropout


@torch.no_grad()
def side_by_side(parameters: Sequence[Tensor]) -> tuple[nn.Parameter, list[tuple[int, torch.Size]]]:
    """Move parameters into one buffer; return it, and where each begins with its shape."""
    first = parameters[0]
    step = max(1, _ALIGNED // first.element_size())
    begins = [0, *accumulate(-(-parameter.numel() // step) * step for parameter in parameters)]
    buffer = torch.zeros(begins.pop(), dtype=first.dtype, device=first.device)
    for begin, parameter in zip(begins, parameters, strict=True):
        part = buffer[begin : begin + parameter.numel()].view(parameter.shape)
        parameter.data = part.copy_(parameter)
    return nn.Parameter(buffer), [(begin, p.shape) for begin, p in zip(begins, parameters, strict=True)]
