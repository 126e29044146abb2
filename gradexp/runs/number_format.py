"""The layer at which the number format of a training gives out: where that is expected, and where it is seen."""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gradexp.history.history import History
from gradexp.history.step import STATUSES, Array, Codes, Quantity
from gradexp.numerics.formats import limits, smallest_normal

if TYPE_CHECKING:  # importing it would load torch
    import torch

NARROW = ("float16", "bfloat16")
"""The formats of which a training tells the layer: float32 holds what other runs need."""

# A GradScaler begins with a factor of 2**16, and halves it until no gradient is infinite.
_SCALE, _HALF = 16 * math.log10(2), math.log10(2)


class Failure(NamedTuple):
    """From which layer on all that a format makes of some numbers is 0, or one of them is not finite.

    Args:
        quantity: ``"output"``, followed from layer 1 up, or ``"output_grad"``, from the last layer down.
        overflow: Whether they are inf or nan, else 0.
        layer: The first such layer on the way.
    """

    quantity: str
    overflow: bool
    layer: int

    def __str__(self) -> str:
        what, way = ("outputs", "up") if self.quantity == "output" else ("gradients", "down")
        return f"{what} {'overflow' if self.overflow else 'underflow to 0'} from layer {self.layer} {way}"


@dataclass(frozen=True)
class Range:
    """What a training's format can hold.

    Args:
        name: ``"float16"``, ``"bfloat16"``, ``"float32"`` or ``"float64"``.
        is_scaled: Whether a GradScaler multiplies the loss.
        is_flushed: Whether the processor takes subnormal numbers for 0.
    """

    name: str
    is_scaled: bool = False
    is_flushed: bool = False

    def first_failure(self, output: Array, gradient: Array, weight: Array | None = None) -> Failure | None:
        """Return where numbers of some size leave the range first on their way forward and back, or None.

        Args:
            output: log10 of the largest output of each layer, over all samples; -inf for what is 0 in any format.
            gradient: The same for the gradient of the real loss with respect to that.
            weight: log10 of the largest weight of each layer, if it is known: single products may be flushed too.
        """
        zero, infinite = limits(self.name)
        if self.is_flushed:
            zero = smallest_normal(self.name)
            if weight is not None:
                output, gradient = output.copy(), gradient.copy()
                output[1:][output[:-1] + weight[1:] <= zero] = zero
                gradient[:-1][gradient[1:] + weight[1:] <= zero] = zero
        over, under = ~(output < infinite), (output > -math.inf) & (output <= zero)
        if (over | under).any():
            layer = int(np.argmax(over | under))
            return Failure("output", bool(over[layer]), layer + 1)
        if self.is_scaled:
            room = math.floor((infinite - np.max(gradient)) / _HALF) * _HALF if np.max(gradient) > -math.inf else 0.0
            gradient = gradient + min(_SCALE, room)
        over, under = ~(gradient < infinite), (gradient > -math.inf) & (gradient <= zero)
        if not (over | under).any():
            return None
        layer = int(np.flatnonzero(over | under)[-1])
        return Failure("output_grad", bool(over[layer]), layer + 1)


@dataclass(frozen=True)
class FormatCheck:
    """How a narrow format bears the forward and the backward pass of the first batch.

    Args:
        name: The format in which layers compute.
        output: log10 of the largest output of each layer, computed in float64 and so of any size.
        gradient: The same for the gradient of the real loss.
        expected: Where these leave the format's range.
        measured: Where the first recorded step that was not left out has failed.
        is_measured: Whether there is such a step.
        cures: Options with which they would not, the least change first.
    """

    name: str
    output: Array
    gradient: Array
    expected: Failure | None
    measured: Failure | None = None
    is_measured: bool = False
    cures: tuple[dict[str, str], ...] = ()

    @property
    def _exact(self) -> tuple[tuple[Quantity, Array], ...]:
        return ("output", self.output), ("output_grad", self.gradient)

    def seen(self, recorded: History, skipped: Container[int]) -> "FormatCheck":
        """Return the check with what a training has recorded of one network, if it has."""
        if not recorded.steps:
            return self
        steps = [index for index, step in enumerate(recorded.steps) if step not in skipped]
        status = {key: codes[steps[0] if steps else -1, 0] for key, codes in recorded.status.items()}
        failed: dict[Quantity, Codes] = {
            key: (status[key] == STATUSES.index("nonfinite"))
            | ((status[key] == STATUSES.index("zero")) & (exact > -math.inf))
            for key, exact in self._exact
        }
        measured = None
        ends: tuple[tuple[Quantity, int], ...] = (("output_grad", -1), ("output", 0))
        for quantity, end in ends:  # outputs come first, and explain gradients
            if failed[quantity].any():
                row = int(np.flatnonzero(failed[quantity])[end])
                overflow = bool(status[quantity][row] == STATUSES.index("nonfinite"))
                measured = Failure(quantity, overflow, row + 1)
        return replace(self, measured=measured, is_measured=True)

    @property
    def is_failing(self) -> bool:
        """Whether something is lost, as far as is known by now."""
        return (self.measured if self.is_measured else self.expected) is not None

    @property
    def text(self) -> str:
        """Return what the format does, in words; empty if it holds all."""
        if not self.is_measured:
            return "" if self.expected is None else f"{self.name} will not hold it: {self.expected}"
        if self.measured is None:
            kept = f"{self.name} holds it but for its digits: {self.expected} was expected, which rounding prevents"
            return "" if self.expected is None else kept
        is_alike = self.expected is not None and self.expected[:2] == self.measured[:2]
        before = "none" if self.expected is None else f"layer {self.expected.layer}" if is_alike else self.expected
        return f"{self.name} does not hold it: {self.measured} (expected: {before})"


def cures(dtype: str, precision: str, output: Array, gradient: Array) -> tuple[dict[str, str], ...]:
    """Return the options with which numbers of some size stay in range, the least change first.

    Args:
        dtype: The run's option.
        precision: The run's option.
        output: As for ``Range.first_failure``.
        gradient: As there.
    """
    mixed = {"dtype": "float32"} if dtype != "float32" else {}
    full = {"precision": "full"} if precision != "full" else {}
    others: Sequence[tuple[Range, dict[str, str]]] = (
        (Range("float16", is_scaled=True), {**mixed, "precision": "amp_float16"}),
        (Range("bfloat16", is_flushed=True), {**mixed, "precision": "amp_bfloat16"}),
        (Range("float32"), {**full, "dtype": "float32"}),
        (Range("float64"), {**full, "dtype": "float64"}),
    )
    present = "bfloat16" if "bfloat16" in (dtype, precision.removeprefix("amp_")) else "float16"
    return tuple(
        options
        for other, options in others
        if (other.name, other.is_scaled) != (present, precision == "amp_float16")
        and other.first_failure(output, gradient) is None
    )


def flushes_subnormals(name: str, device: "torch.device | str", samples: int, units: int) -> bool:
    """Return whether matrix products on a device take subnormal numbers of a format for 0.

    Instructions of x86 processors for bfloat16 do, whatever ``torch.set_flush_denormal`` says, but small products
    are made without them.

    Args:
        name: A number format.
        device: The device.
        samples: Number of rows.
        units: Number of columns.
    """
    import torch

    dtype = getattr(torch, name)
    tiny = torch.full((1, samples, units), torch.finfo(dtype).smallest_normal / 2, dtype=dtype, device=device)
    return not bool(torch.bmm(tiny, torch.eye(units, dtype=dtype, device=device).unsqueeze(0)).any())
