"""The activations of a model, modules or functions: which units fire, and how much of them is saturated.

Autograd's graph shows each activation as a node that keeps its input or its result for the backward pass. So
``nn.ReLU`` and ``torch.relu`` are seen alike. What a checkpoint computes anew is not kept, and not seen.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.rows import Row
from gradexp.numerics.torch_internals import saved_of

FLAT = 1e-3
"""The slope below which an activation counts as saturated: a gradient through it loses three powers of ten."""

_LONGEST_WALK = 100  # nodes between an activation and the module before it
_BY_CHANNEL = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


@dataclass(frozen=True)
class Made:
    """What made a tensor: a call of a module, and the shape of what it returned."""

    row: Row
    module: nn.Module
    shape: tuple[int, ...]


@dataclass
class Activation:
    """All calls of one kind of activation after one module.

    Args:
        name: The module before it, the nearest one with weights.
        kind: The activation, such as ``relu``.
        rows: The calls of that module.
        device: Where its numbers are.
        is_output: Whether no weights come after it.
        samples: Samples (or positions, where units are the last of three dimensions) that were seen.
        elements: Numbers that were seen.
        saturated: How many of them lie where the slope is below ``FLAT``; None for a rectifier.
        fires: Whether each unit fires for some sample, shape ``(unit,)``; None if it is unknown what the units are.
        never_off: Whether each unit fires for every sample, and as far from the level as a dead one is below it.
        firing: How many elements of the units fire.
    """

    name: str
    kind: str
    rows: list[Row]
    device: torch.device
    is_output: bool = False
    samples: int = 0
    elements: int = 0
    saturated: Tensor | None = None
    fires: Tensor | None = None
    never_off: Tensor | None = None
    firing: Tensor | None = None

    def see(self, kept: Tensor, flat: Tensor | None, level: float | None, made: Made | None) -> None:
        """Add one call: what was kept, where it is flat, and the level above which a unit fires."""
        self.elements += kept.numel()
        if flat is not None:
            share = flat.sum()
            self.saturated = share if self.saturated is None else self.saturated + share
        if level is None or made is None or made.shape != tuple(kept.shape) or kept.dim() < 2 or not kept.numel():
            return
        unit = 1 if isinstance(made.module, _BY_CHANNEL) else kept.dim() - 1
        others = [dimension for dimension in range(kept.dim()) if dimension != unit]
        fires, never_off = ~(kept.amax(others) <= level), kept.amin(others) > abs(level)  # nan is not dead
        firing = (kept > level).sum(others)
        self.samples += kept.shape[0] if unit == 1 else kept.numel() // kept.shape[-1]
        if self.fires is None or self.never_off is None or self.firing is None:
            self.fires, self.never_off, self.firing = fires, never_off, firing
        elif self.fires.shape == fires.shape:
            self.fires, self.never_off = self.fires | fires, self.never_off & never_off
            self.firing = self.firing + firing


_Reading = tuple[str, Callable[[Node, Tensor], Tensor | None], float | None]


def _none(_: Node, __: Tensor) -> None:
    return None


def _outside(low: float, high: float) -> Callable[[Node, Tensor], Tensor]:
    return lambda _, kept: (kept <= low) | (kept >= high)


def _clipped(node: Node, kept: Tensor) -> Tensor | None:
    """Return what a clip holds at its ends; of one that begins at 0, such as relu6, at its upper end."""
    low, high = _ends(node)
    if high is None:
        return None
    return kept >= high if not low else (kept <= low) | (kept >= high)


def _ends(node: Node) -> tuple[float | None, float | None]:
    names = ("min_val", "max_val") if node.name().startswith("Hardtanh") else ("min", "max")
    low, high = (saved_of(node, name) for name in names)
    return (None if low is None else float(low)), (None if high is None else float(high))


_HALF_SIGMOID = math.sqrt(0.25 - FLAT)  # y (1 - y) < FLAT beyond 1/2 ± this
_TANH = math.sqrt(1 - FLAT)  # 1 - y² < FLAT
# Node -> what it keeps, which elements are saturated, and the level above which a unit fires. Below that of a smooth
# rectifier the slope is less than FLAT in size: gelu φ' = Φ(z) + z φ(z), silu and mish about z exp(z), elu exp(z).
_READINGS: dict[str, _Reading] = {
    "ReluBackward": ("result", _none, 0.0),
    "ThresholdBackward": ("self", _none, 0.0),
    "GeluBackward": ("self", _none, -4.1),
    "SiluBackward": ("self", _none, -9.2),
    "MishBackward": ("self", _none, -9.2),
    "HardswishBackward": ("self", _none, -3.0),
    "EluBackward": ("self", _none, math.log(FLAT)),
    "CeluBackward": ("self", _none, math.log(FLAT)),
    "SoftplusBackward": ("self", _none, math.log(FLAT)),
    "HardtanhBackward": ("self", _clipped, 0.0),
    "ClampBackward": ("self", _clipped, 0.0),
    "TanhBackward": ("result", _outside(-_TANH, _TANH), None),
    "SigmoidBackward": ("result", _outside(0.5 - _HALF_SIGMOID, 0.5 + _HALF_SIGMOID), None),
    "HardsigmoidBackward": ("self", _outside(-3, 3), None),
    "SoftsignBackward": ("self", _outside(-(FLAT**-0.5) + 1, FLAT**-0.5 - 1), None),  # 1 / (1 + |z|)²
}


def activations(
    outputs: Iterable[Tensor], made: dict[Node, Made], is_weighted: Callable[[Any], bool]
) -> list[Activation]:
    """Return the activations on the way to some outputs, in no particular order.

    Args:
        outputs: What the model returned.
        made: Node -> the call of a module that it ends.
        is_weighted: Whether a module has weights, so that it may stand for what comes after it.
    """
    found: dict[tuple[str, str], Activation] = {}
    ends = {tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None}
    last = set(_nodes(ends, lambda node: node in made and is_weighted(made[node].module)))
    for node in _nodes(ends):
        kind = _kind(node, made.get(node))
        if kind not in _READINGS:
            continue
        quantity, flat_where, level = _READINGS[kind]
        kept = saved_of(node, quantity)
        if kept is None and kind.endswith("luBackward"):
            kept = saved_of(node, "self_or_result")
        if type(kept) is not Tensor or not kept.is_floating_point() or not kept.numel():
            continue
        if kind in ("HardtanhBackward", "ClampBackward") and _ends(node)[0] != 0:
            level = None
        before, weighted = _before(node, made, is_weighted)
        source = weighted or before
        if source is None:
            continue
        with torch.no_grad():
            flat = flat_where(node, kept.detach())
            if flat is None and level is None:
                continue
            key = source.row[0], kind.removesuffix("Backward").lower()
            entry = found.setdefault(key, Activation(*key, [], kept.device))
            entry.rows.append(source.row)
            entry.is_output |= node in last
            entry.see(kept.detach(), flat, level, before)
    return list(found.values())


def _kind(node: Node, made: Made | None) -> str:
    if made is not None and isinstance(made.module, nn.Softsign):  # a quotient, for autograd
        return "SoftsignBackward"
    return node.name().rstrip("0123456789")


def _nodes(ends: Iterable[Node], is_end: Callable[[Node], bool] = lambda _: False) -> Iterator[Node]:
    """Yield all nodes from some on down to the leaves, or to others at which it ends, each once."""
    waiting = list(ends)
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if is_end(node):
            continue
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)


def _before(
    node: Node, made: dict[Node, Made], is_weighted: Callable[[Any], bool]
) -> tuple[Made | None, Made | None]:
    """Return what made an activation's input: the nearest module, and the nearest one with weights."""
    nearest = None
    waiting = deque(below for below, _ in node.next_functions)
    for _ in range(_LONGEST_WALK):
        if not waiting:
            break
        below = waiting.popleft()
        if below is None:
            continue
        call = made.get(below)
        if call is not None:
            nearest = nearest or call
            if is_weighted(call.module):
                return nearest, call
        waiting.extend(further for further, _ in below.next_functions)
    return nearest, None
