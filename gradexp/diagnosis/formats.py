"""Number formats that under- or overflow: gradients that are 0, or lost digits, only for what a format can hold."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.history.finding import Finding
from gradexp.history.history import History
from gradexp.history.sentences import named, number
from gradexp.history.slope import power
from gradexp.history.step import STATUSES, Quantity, Step
from gradexp.numerics.extremes import Extremes, extremes, nonfinite, read
from gradexp.probe.calls import tensors_in

# Those that hold least first.
_FORMATS = (torch.float16, torch.bfloat16, torch.float32)
# Operations that make inf of small numbers, so that it is no overflow.
_POLES = ("Log", "Div", "Reciprocal", "Rsqrt", "Pow", "Tan", "MaskedFill", "Where")
Again = Callable[[float], History]

_GRADIENTS: tuple[Quantity, ...] = ("output_grad", "weight_grad")


class NumberFormats(Observer):
    """Find where float16, bfloat16 or float32 cannot hold what another format could.

    Gradients that are exactly 0, subnormal or infinite are measured once more, of the loss times a power of two,
    which changes nothing else: those of a dead layer are 0 again.
    """

    def begin(self, _examination: Examination) -> None:
        """Begin with no format seen."""
        self._formats: dict[str, torch.dtype] = {}
        self._narrow: list[tuple[str, str, Tensor]] = []  # outputs in float16: module, operation, extremes

    def see_call(self, name: str, module: nn.Module, _args: Any, output: Any) -> None:
        """Note the format of what a module returns, and how large it is in float16."""
        for tensor in tensors_in(output):
            if tensor.dtype in _FORMATS:
                self._formats.setdefault(name, tensor.dtype)
            if tensor.dtype is torch.float16 and (pair := extremes(tensor)) is not None:
                operation = type(module).__name__ if tensor.grad_fn is None else tensor.grad_fn.name()
                self._narrow.append((name, operation.lstrip("_"), pair))

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return where outputs overflow, or else where gradients under- or overflow."""
        history, loss = examination.history, examination.loss
        assert history is not None
        assert loss is not None
        used = [dtype for dtype in _FORMATS if dtype in {*self._formats.values(), loss.dtype}]
        if not used or not set(_GRADIENTS) <= set(history.status):
            return
        overflow = self._overflow()
        if overflow is not None:
            yield overflow
            return
        step = history.at()
        zero, subnormal, infinite = (_rows(step, word) for word in ("zero", "subnormal", "nonfinite"))
        if examination.again is None or not torch.isfinite(loss.detach()).all():
            return
        if infinite:
            finding = _infinite(examination.again, step, infinite, used[0])
        else:
            finding = _lost(examination.again, step, zero, subnormal, used[0], loss.dtype)
        if finding is not None:
            yield finding

    def _overflow(self) -> Finding | None:
        """Return the first module whose output does not fit into float16."""
        sizes: list[Extremes] = read([pair for _, _, pair in self._narrow])
        before = 0.0
        for (name, operation, _), pair in zip(self._narrow, sizes, strict=True):
            word = nonfinite(pair)
            if word in ("inf", "-inf") and not operation.startswith(_POLES):
                reach = f"; the outputs before reach {number(before)}" if before else ""
                return Finding(
                    "number format",
                    f"float16 overflows: {named(name)} returns more than 65504, float16's largest number{reach}",
                    (name,) if name else (),
                    "torch.bfloat16 in place of torch.float16, which holds numbers as large as float32 does",
                    3,
                )
            if word:
                return None
            before = max(before, *map(abs, pair))
        return None


def _infinite(again: Again, step: Step, rows: Sequence[int], dtype: torch.dtype) -> Finding | None:
    """Return where gradients overflow, if those of the loss times a small factor do not."""
    if dtype is not torch.float16:
        return None
    exponent = -12
    smaller = again(2.0**exponent).at()
    if set(_rows(smaller, "nonfinite")) & set(rows):
        return None
    row = rows[-1]
    return Finding(
        "number format",
        f"float16 overflows: gradients are above 65504, float16's largest number, from {named(step.names[row])} on. "
        f"With the loss times 2^{exponent} they are finite",
        (step.names[row],),
        "torch.bfloat16 in place of torch.float16, or a torch.amp.GradScaler, which finds a scale that fits",
        3,
    )


def _lost(
    again: Again, step: Step, zero: Sequence[int], subnormal: Sequence[int], dtype: torch.dtype, of_loss: torch.dtype
) -> Finding | None:
    """Return where gradients are too small for a format, if those of the loss times a large factor are not."""
    exponent = _exponent(step, dtype, of_loss) if zero or subnormal else 0
    if exponent < 1:
        return None
    scaled = again(2.0**exponent).at()
    if scaled.names != step.names:
        return None
    rows = sorted(set(zero) - set(_rows(scaled, "zero")))
    name = str(dtype).removeprefix("torch.")
    if not rows and (dtype is not torch.float16 or not subnormal):
        return None
    is_zero = bool(rows)
    rows = rows or list(subnormal)
    has_no_update = any(_is(step, "weight_grad", row, "zero") for row in rows)
    small = "exactly 0" if is_zero else f"below {torch.finfo(dtype).smallest_normal:.2g}, where digits get lost"
    text = f"{name} underflows: the gradients {_of(step, rows)} are {small}. "
    text += f"With the loss times 2^{exponent} they are not"
    severity = 3 if is_zero and has_no_update else 1
    remedy = _remedy(dtype, exponent, is_zero) if dtype is torch.float16 or has_no_update else ""
    return Finding("number format", text + _ratio(scaled), (step.names[rows[-1]],), remedy, severity)


def _of(step: Step, rows: Sequence[int]) -> str:
    """Return which modules some rows are, or which calls of one module."""
    first, last = named(step.names[rows[-1]]), named(step.names[rows[0]])
    if len(rows) == 1:
        return f"of {first}"
    if first == last:  # a module that is called at each time step
        return f"of {len(rows)} of {step.names.count(step.names[rows[0]])} calls of {first}"
    return f"of {len(rows)} modules, {first} down to {last},"


def _remedy(dtype: torch.dtype, exponent: int, is_zero: bool) -> str:
    if dtype is torch.float16:
        scaled = f"; measure the loss times 2**{min(exponent, 16)} to see gradients as a scaler makes them"
        return "torch.amp.GradScaler, which multiplies the loss, or torch.bfloat16 in place of torch.float16" + (
            "" if is_zero else scaled
        )
    return (
        "gradexp.initialize(model, 'he'), residual connections or norms, since no loss scale lifts so steep a slope"
    )


def _ratio(step: Step) -> str:
    """Return how much the gradient changes from the last to the first row with a number."""
    log10 = step.profile("output_grad")
    rows = np.flatnonzero(np.isfinite(log10))
    if len(rows) < 2:
        return ""
    first, last = int(rows[0]), int(rows[-1])
    names = step.names
    change = float(log10[first] - log10[last])
    how = "keep their size" if abs(change) < 0.05 else f"{'fall' if change < 0 else 'grow'} by {power(change)}"
    return f", and {how} from {named(names[last])} to {named(names[first])}"


def _exponent(step: Step, dtype: torch.dtype, of_loss: torch.dtype) -> int:
    """Return the power of two by which the loss may be multiplied without an overflow of what has a number now."""
    numbers = np.concatenate([step.log10[quantity].ravel() for quantity in _GRADIENTS])
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return 0
    room = math.floor((math.log10(torch.finfo(dtype).max) - float(numbers.max())) / math.log10(2)) - 2
    # The factor itself is a gradient in the format of the loss.
    return min(room, 24 if dtype is torch.float16 else 100, math.floor(math.log2(torch.finfo(of_loss).max)))


def _is(step: Step, quantity: Quantity, row: int, status: str) -> bool:
    return bool((step.status[quantity][:, row] == STATUSES.index(status)).any())


def _rows(step: Step, status: str) -> list[int]:
    """Return the rows, as indices, in which a gradient has a status."""
    code = STATUSES.index(status)
    has = np.any([(step.status[quantity] == code).any(axis=0) for quantity in _GRADIENTS], axis=0)
    return [int(row) for row in np.flatnonzero(has)]
