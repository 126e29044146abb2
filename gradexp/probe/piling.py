"""Gradients that pile up: what an optimizer has stepped with stays in ``.grad``, and the next pass adds to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = tuple[int, int, int]
"""Which parameter it is, and which tensor in which version its ``.grad`` holds: 0 for none."""


# Clipping, and undoing a scale, leave the direction of a gradient as it is.
_SAMPLE, _SAME_DIRECTION = 64, 0.999


@dataclass(frozen=True)
class Piled:
    """A gradient that was added to that of a step already made, as it is at the collect.

    Args:
        state: Which tensor it is, in which version.
        is_left: Whether what was added to is not 0.
        sample: Some of its numbers.
    """

    state: State
    is_left: Tensor
    sample: Tensor

    @classmethod
    def of(cls, gradient: Tensor, state: State, is_left: Tensor) -> "Piled":
        """Return what is to be known of a gradient."""
        return cls(state, is_left, gradient.detach().flatten()[:_SAMPLE].clone())

    def is_still(self, gradient: Tensor, version: int, is_quiet: bool) -> Tensor:
        """Return whether a gradient is the same one at the optimizer's step, though clipped maybe.

        Args:
            gradient: At the step.
            version: Its version.
            is_quiet: Whether no backward pass is known to have come by since the collect.
        """
        if id(gradient) == self.state[1] and (is_quiet or version == self.state[2]):
            return self.is_left
        sample = gradient.detach().flatten()[:_SAMPLE]
        cosine = torch.cosine_similarity(sample.double(), self.sample.double(), dim=0)
        return self.is_left & (cosine > _SAME_DIRECTION)


class Piling:
    """The gradients that were added to those of a step already made.

    Attributes:
        kept: Number of each such parameter -> whether what was added to is not 0.
    """

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}
        self._stepped: dict[int, State] = {}
        self._next: dict[int, tuple[State, Tensor]] = {}  # of a pass that is running

    def see_step(self, held: set[int], states: Sequence[State]) -> None:
        """Note what ``.grad`` holds after an optimizer's step.

        Args:
            held: Ids of the parameters that it steps.
            states: What ``.grad`` of each parameter holds.
        """
        self._stepped |= {n: state for n, state in enumerate(states) if state[0] in held and state[1]}

    def see_pass(self, states: Sequence[State], gradients: Sequence[Tensor | None]) -> None:
        """Note to what a backward pass is about to add."""
        for number, is_left in self.kept.items():  # .grad.data.zero_() leaves the version as it is
            now = has_gradient(gradients[number])
            self.kept[number] = is_left if now is None else is_left & now
        for number, state in self._stepped.items():
            if states[number] == state and (now := has_gradient(gradients[number])) is not None:
                self._next[number] = (state, now)
        self._stepped = {}

    def see_end(self, states: Sequence[State]) -> None:
        """Note to what the pass has added; what it has not come to may be set to zero before the next one."""
        for number, (state, is_left) in self._next.items():
            if states[number] == state:
                self._stepped[number] = state
            else:
                self.kept[number] = is_left
        self._next = {}

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget parameters whose ``.grad`` was set to zero since."""
        for number in numbers:
            self.kept.pop(number, None)


def has_gradient(gradient: Tensor | None) -> Tensor | None:
    """Return whether a gradient is not 0, on its device; None if there is none, or it is no ordinary tensor."""
    if type(gradient) not in (Tensor, nn.Parameter) or gradient is None or gradient.layout is not torch.strided:
        return None
    return gradient.detach().any()
