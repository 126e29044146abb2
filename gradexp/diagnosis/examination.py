"""What one pass of ``measure`` shows to those who look for something."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradexp.history.finding import Finding
from gradexp.history.history import History


@dataclass
class Examination:
    """One forward and backward pass of a model, as it goes on.

    Args:
        model: The model.
        loss_fn: The function or module that returned the loss.
        inputs: What the model got; None if the loss was computed without a batch.
        targets: What the loss function got beside the model's output, often one tensor.
        output: What the model returned; None before the forward pass is over.
        loss: The loss, with its graph until the backward pass is over; None before.
        history: What the probe recorded; None before the backward pass is over.
        again: Runs another pass, of the loss times a factor, once this one is over, and returns what a probe records;
            gradients stay as they are.
        optimizer: The optimizer of the training, or several, if they were given.
        terms: The known terms of the loss, once somebody has asked for them.
    """

    model: nn.Module
    loss_fn: Any
    inputs: Any = None
    targets: tuple[Any, ...] = ()
    output: Any = None
    loss: Tensor | None = None
    history: History | None = None
    again: Callable[[float], History] | None = None
    optimizer: Any = None
    terms: Sequence[Any] | None = None


def output_of(model: nn.Module, inputs: Any) -> Any:
    """Run a forward pass: a mapping goes in as keyword arguments, a tuple as positional ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


class Observer:
    """Somebody who looks for one kind of finding during a pass. Methods that do nothing may stay as they are."""

    def begin(self, examination: Examination) -> None:
        """Look at the model before the forward pass."""

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Look at what a module got and returned, also one without weights (a hook after its forward).

        Args:
            name: The module's name; that of the model itself is empty.
            module: The module.
            args: Its positional and keyword arguments, ``(args, kwargs)``.
            output: What it returned.
        """

    def see_loss(self, examination: Examination) -> None:
        """Look at the loss and its graph before the backward pass, and hook what is of interest."""

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return what was found, after the backward pass, while ``.grad`` is still there."""
        return ()

    def end(self) -> None:
        """Let go of hooks on the graph, also after an error in the pass."""
