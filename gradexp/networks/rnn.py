"""The recurrent network: one cell, applied once per time step, so that the profile runs over time."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradexp.architecture import check_sizes, token_size
from gradexp.choices import CELLS, check_choice
from gradexp.networks.activations import Activation, as_activation
from gradexp.networks.chain import Chain, Step, scaling_of
from gradexp.networks.tokens import tokens

_GATES = {"rnn": 1, "gru": 3, "lstm": 4}


class Recurrence(nn.Linear):
    """The matrix between time steps, W a + b, with what comes from the input added, so that hooks see the sum."""

    def forward(self, input: Tensor, drive: Tensor | None = None) -> Tensor:  # noqa: A002
        """Return W a + b + drive for a and drive of shape ``(batch, width)``."""
        z = super().forward(input)
        return z if drive is None else z + drive


class RNN(Chain):
    """A recurrent network that reads its input token by token, goes on without, and is read out at the end.

    For time steps t = 1..L-1, with h_0 = 0, and x_t = 0 once all tokens are read:

        z_t = W h_(t-1) + U x_t + b,   h_t = φ(z_t),   output y = V h_(L-1) + c

    Rows of its profile are z_1 ... z_(L-1) and y, so that it shows how far back the gradient reaches. ``init`` draws
    W; U and V are Gaussian of variance 1 / fan_in whatever it is, so that nothing but the recurrence differs. With
    ``identity`` it is the IRNN of Le et al. (2015, arXiv:1504.00941).

    Two other cells have gates, each with matrices W, U and b of its own; their rows are h_t, and h_t beside the
    memory c_t:

        gru:   r, u = σ(z_r), σ(z_u),   h_t = u h_(t-1) + (1 - u) φ(W_n (r h_(t-1)) + U_n x_t + b_n)
        lstm:  c_t = σ(z_f + 1) c_(t-1) + σ(z_i) φ(z_g),   h_t = σ(z_o) φ(c_t)

    (Cho et al., 2014, arXiv:1406.1078; Hochreiter & Schmidhuber, 1997, with the 1 of Jozefowicz et al., 2015).

    Args:
        features: Number of inputs, which are cut into tokens.
        outputs: Number of outputs.
        depth: Number of rows L, at least 2: L - 1 time steps and the readout.
        width: Units of the state.
        cell: ``rnn``, ``gru`` or ``lstm``.
        context: Number of tokens, L - 1 at most.
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        bias: Whether there are b and c.
        negative_slope: The slope below 0 of ``leaky_relu``.

    Raises:
        ValueError: If the cell is unknown, there is no time step, or the inputs are fewer than the tokens.
    """

    rules: Mapping[str, Any] = {"skip": ("inputs", "readout")}

    def __init__(
        self,
        features: int,
        outputs: int,
        depth: int,
        width: int,
        cell: str = "rnn",
        context: int = 8,
        activation: str | Activation | Callable[[Tensor], Tensor] = "tanh",
        bias: bool = True,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        check_choice("cell", cell, CELLS)
        check_sizes("rnn", depth=depth, width=width, features=features, context=context)
        self.cell: str = cell
        self.moments: int = depth - 1
        self.width: int = width
        self.context: int = min(context, self.moments)
        self.activation: Activation = as_activation(activation, negative_slope)
        self.scaling: str = scaling_of(str(activation), self.activation) if cell == "rnn" else "none"
        size = token_size(features, self.context)
        count = _GATES[cell]
        self.recurrence: nn.ModuleList = nn.ModuleList(Recurrence(width, width, bias) for _ in range(count))
        self.inputs: nn.ModuleList = nn.ModuleList(nn.Linear(size, width, bias=False) for _ in range(count))
        self.readout: nn.Linear = nn.Linear(width, outputs, bias)
        for layer in (*self.inputs, self.readout):
            _draw(cast(nn.Linear, layer))
        for layer in self.recurrence:
            if bias:
                nn.init.zeros_(cast(nn.Linear, layer).bias)

    def unrolled(self, x: Tensor) -> tuple[Tensor, list[Step]]:
        """Return the first token, and a step for each moment and for the readout."""
        x_t = tokens(x, self.context)
        # The state of a plain cell is what its one matrix returns, call by call.
        names = ["recurrence.0" if self.cell == "rnn" else f"steps.{t}" for t in range(self.moments)]
        steps = [
            # What still adds tokens is no multiple of the state.
            Step(names[t], partial(self._step, x_t[:, t] if t < self.context else None), t >= self.context)
            for t in range(1, self.moments)
        ]
        return x_t[:, 0], [Step(names[0], self._first), *steps, Step("readout", self._read)]

    def _first(self, token: Tensor) -> Tensor:
        parts = (len(token), 2, self.width) if self.cell == "lstm" else (len(token), self.width)
        nothing = token.new_zeros(parts)
        if self.cell == "rnn":
            return cast(Tensor, self.recurrence[0](nothing, self.inputs[0](token)))
        return self._step(token, nothing)

    def _step(self, token: Tensor | None, state: Tensor) -> Tensor:
        drives = [None if token is None else layer(token) for layer in self.inputs]
        if self.cell == "rnn":
            return cast(Tensor, self.recurrence[0](self.activation(state), drives[0]))
        h = state if self.cell == "gru" else state[:, 0]
        z = [layer(h, drive) for layer, drive in zip(self.recurrence[:-1], drives, strict=False)]
        last = self.recurrence[-1]
        if self.cell == "gru":
            reset, update = z[0].sigmoid(), z[1].sigmoid()
            return cast(Tensor, update * h + (1 - update) * self.activation(last(reset * h, drives[-1])))
        forget, enter, leave = (z[0] + 1).sigmoid(), z[1].sigmoid(), z[2].sigmoid()
        memory = forget * state[:, 1] + enter * self.activation(last(h, drives[-1]))
        return torch.stack([leave * self.activation(memory), memory], dim=1)

    def _read(self, state: Tensor) -> Tensor:
        h = self.activation(state) if self.cell == "rnn" else state[:, 0] if self.cell == "lstm" else state
        return cast(Tensor, self.readout(h))


def _draw(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
