"""nan and inf: the first place where they are born, and what to do there."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.guard import harmless
from gradexp.history.finding import Finding
from gradexp.numerics.extremes import extremes, nonfinite, read
from gradexp.numerics.norms import has_values
from gradexp.probe.birth import Birth
from gradexp.probe.births import Births, held
from gradexp.probe.hooks import unwatched


class Nonfinite(Observer):
    """Find where nan or inf is born: forward before backward, inputs, target and loss included."""

    def begin(self, examination: Examination) -> None:
        """Look at the inputs."""
        self._births = Births(examination.model, examination.inputs)
        self._birth: Birth | None = None

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Look at what each module got and returned."""
        self._births.see_call(name, module, args, output)

    def see_loss(self, examination: Examination) -> None:
        """Look at target and loss, and watch the operations of the backward pass."""
        assert examination.loss is not None
        self._births.see_target(examination.targets)
        self._births.see_loss(examination.loss)
        with unwatched():  # a checkpoint may run modules again to show what is saved in it
            self._birth = self._births.forward()
        if self._birth is not None and self._birth.place == "loss" and isinstance(examination.loss_fn, nn.Module):
            of_loss = held("loss_fn", examination.loss_fn, with_masks=True)
            self._birth = self._birth if of_loss is None else of_loss
        if self._birth is None:
            self._births.watch([examination.loss], partial(harmless, Nonfinite))

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return the first birth, if there is one."""
        self.end()
        birth = self._birth or self._births.backward()
        if birth is None:
            yield from _sums(examination)
            birth = self._births.unreached()
        if birth is None:
            return
        if birth.place in ("input", "target"):
            tensors = examination.inputs if birth.place == "input" else examination.targets
            birth = replace(birth, detail=_share(tensors, birth.value))
        elif birth.place in ("parameter", "buffer"):
            birth = replace(birth, detail=_share_of_tensors(examination.model, birth))
        yield birth.finding()

    def end(self) -> None:
        """Remove the hooks from the backward pass."""
        self._births.stop()


def _sums(examination: Examination) -> Iterable[Finding]:
    """Return gradients of parameters that are not finite though all that was added up is."""
    total = None if examination.history is None else examination.history.total_grad
    if total is None or bool((total < math.inf).all()):
        return
    named = examination.model.named_parameters()
    bad = [
        name for name, p in named if p.grad is not None and has_values(p.grad) and not torch.isfinite(p.grad).all()
    ]
    if bad:
        text = f"the gradient of {bad[-1]} is the sum of finite ones and does not fit into its number format"
        modules = (bad[-1].rpartition(".")[0],)
        remedy = (
            "torch.float32 weights under torch.autocast, torch.bfloat16, or the mean of the loss in place of its sum"
        )
        yield Finding("nonfinite", text, modules, remedy, 3)


def _named(value: Any, name: str = "") -> Iterable[tuple[str, Tensor]]:
    """Yield the tensors of a batch by their keys or positions."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _named(part, f"{name}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for position, part in enumerate(value):
            yield from _named(part, f"{name}[{position}]" if len(value) > 1 else name)


def _share(tensors: Any, value: str) -> str:
    """Return how many elements of which samples are not finite, of the first tensor that holds a value."""
    for name, tensor in _named(tensors):
        pair = extremes(tensor)
        if pair is None or nonfinite(read([pair])[0]) != value:
            continue
        bad = ~torch.isfinite(tensor.detach())
        elements = f"{int(bad.sum())} of {bad.numel()} elements"
        rows = bad.reshape(bad.shape[0], -1).any(1).nonzero().flatten().tolist() if bad.dim() else []
        some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        samples = f", in {'sample' if len(rows) == 1 else 'samples'} {some} of {bad.shape[0]}" if rows else ""
        return f"{name}: {elements}{samples}"
    return ""


def _share_of_tensors(model: nn.Module, birth: Birth) -> str:
    """Return how many elements of the parameter or buffer are not finite, and how many other parameters have some."""
    named = dict(model.named_parameters() if birth.place == "parameter" else model.named_buffers())
    tensor = named.get(birth.tensor)
    if tensor is None or not has_values(tensor):
        return ""
    text = f": {int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} elements"
    bad = sum(has_values(x) and not bool(torch.isfinite(x).all()) for x in named.values())
    return text + (f"; {bad} of {len(named)} {birth.place}s are not finite" if bad > 1 else "")
