"""States that are detached between the steps of a loop: no gradient flows back over time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.history.finding import Finding
from gradexp.numerics.norms import has_values
from gradexp.probe.calls import tensors_in

_FEWEST = 3  # steps that are a loop over time
_LONG = 8  # so many steps are one for modules of any class


@dataclass
class _Loop:
    """The calls of one module: which of them got the state of the one before without its graph."""

    module: nn.Module
    states: list[Tensor] = field(default_factory=list)
    steps: int = 0
    cut: list[Tensor] = field(default_factory=list)


class CutState(Observer):
    """Finds modules that get, at each call, what they returned before, detached."""

    def begin(self, examination: Examination) -> None:
        """Begin with none."""
        self._loops: dict[str, _Loop] = {}

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Compare what a module gets with what it returned before."""
        if not torch.is_grad_enabled() or next(module.parameters(), None) is None:
            return
        loop = self._loops.setdefault(name, _Loop(module))
        loop.steps += 1
        pairs = [(got, state) for got in tensors_in(args) for state in loop.states if got.shape == state.shape]
        is_linked = any(got.requires_grad and got.data_ptr() == state.data_ptr() for got, state in pairs)
        same = [(got == state).all() & state.any() for got, state in pairs if not got.requires_grad]
        if same and not is_linked:
            loop.cut.append(torch.stack(same).any())
        loop.states = [
            tensor.detach() for tensor in tensors_in(output) if tensor.requires_grad and has_values(tensor)
        ]

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return one finding for each module."""
        loops = [(name, loop) for name, loop in self._loops.items() if loop.cut and loop.steps >= _FEWEST]
        self._loops = {}
        found = [finding for name, loop in loops for finding in _of(name, loop)]
        names = {finding.modules[0] for finding in found}
        for finding in found:  # a cell rather than the parts of which it is made
            if not any(finding.modules[0].startswith(f"{name}.") for name in names):
                yield finding


def _of(name: str, loop: _Loop) -> Iterator[Finding]:
    cut = int(torch.stack(loop.cut).sum())
    passed = loop.steps - 1  # from one step to the next
    if not cut:
        return
    if cut < passed:
        text = f"the state of {name} is detached at {cut} of {passed} steps: no gradient flows back past them"
        yield Finding("cut over time", text, (name,), "", 0 if cut <= passed / 2 else 1)
        return
    text = (
        f"what {name} returns is detached before it gets it again, at each of {passed} steps: no gradient flows back "
        "over time, so it cannot learn what to keep"
    )
    # A module that runs over many steps itself is cut between chunks, as truncated backpropagation means to.
    is_cell = isinstance(loop.module, nn.RNNCellBase) or "cell" in type(loop.module).__name__.lower()
    is_fault = not isinstance(loop.module, nn.RNNBase) and (is_cell or loop.steps >= _LONG)
    remedy = "detach the state once per chunk of steps, not in each step: if t % 50 == 0: h = h.detach()"
    yield Finding("cut over time", text, (name,), remedy, 2 if is_fault else 1)
