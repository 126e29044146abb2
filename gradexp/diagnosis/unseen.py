"""Rows of which nothing is known, since no hook sees what they do, and why."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.repetition import Repetition
from gradexp.diagnosis.wording import outermost, verb
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.history.step import STATUSES, Step, is_seen
from gradexp.probe.names import named_modules


class Unseen(Observer):
    """Modules that are trained though neither their outputs nor the gradients of those were seen."""

    def begin(self, examination: Examination) -> None:
        """Note where the random number generators stand, for another pass."""
        self._repetition = Repetition()
        self._without_graph: set[int] = set()
        self._called: set[int] = set()

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Note which modules are called, and which without a graph."""
        self._called.add(id(module))
        if not torch.is_grad_enabled():
            self._without_graph.add(id(module))

    def findings(self, examination: Examination) -> Iterator[Finding]:
        """Return one finding for each reason."""
        assert examination.history is not None
        step = examination.history.at()
        if not {"output_grad", "weight_grad"} <= step.status.keys():
            return
        trained = is_seen(step.status["weight_grad"]).any(axis=0)
        missed = (step.status["output_grad"] == STATUSES.index("hook_missed")).all(axis=0)
        rows = dict.fromkeys(step.names[row] for row in np.flatnonzero(trained & missed))
        modules = {name: module for name, module in named_modules(examination.model).items() if name in rows}
        is_all = not is_seen(step.status["output_grad"]).any()
        seen = {name for name in step.names if name not in rows}
        reasons = self._reasons(examination, modules, _standing_in(step))
        not_finite = _not_finite(step)  # which shows that nan or inf was there, and that is told as such
        reasons = {name: why for name, why in reasons.items() if why != "lost" or name not in not_finite}
        for reason in dict.fromkeys(reasons.values()):
            names = outermost([name for name in reasons if reasons[name] == reason], seen)
            text, cure = _TEXTS[reason]
            text = text.format(
                names=listed(names),
                its=verb(names, "its", "their"),
                s="" if len(names) > 1 else "s",
                are=verb(names, "is", "are"),
                modules=verb(names, "module", "modules"),
                output=verb(names, "output", "outputs"),
                rows=verb(names, "row", "rows"),
                show=verb(names, "shows", "show"),
                they=verb(names, "it", "they"),
                them=verb(names, "it", "them"),
            )
            severity = 2 if is_all else 1 if reason in ("forward", "function") else 0
            if is_all:
                text = f"nothing of the gradient's flow is known: {text}"
            yield Finding("unknown" if is_all else "unseen", text, tuple(names), cure.format(it=names[0]), severity)

    def _reasons(self, examination: Examination, modules: dict[str, nn.Module], around: set[str]) -> dict[str, str]:
        """Return why nothing is seen, by the name of the row."""
        reasons = {}
        uncalled = {}
        for name, module in modules.items():
            if isinstance(module, torch.jit.ScriptModule) or isinstance(examination.model, GraphModule):
                reasons[name] = "program"
            elif id(module) in self._without_graph:
                reasons[name] = "adjoint"
            elif id(module) in self._called:
                reasons[name] = "lost"
            elif name.rpartition(".")[0] in around:
                reasons[name] = "part"
            else:
                uncalled[name] = module
        past_hooks = self._called_past_hooks(examination, uncalled) if uncalled else set()
        for name in uncalled:
            reasons[name] = "forward" if name in past_hooks else "function"
        return reasons

    def _called_past_hooks(self, examination: Examination, modules: dict[str, nn.Module]) -> set[str]:
        """Return which modules' ``forward`` runs in another pass."""
        run: set[str] = set()
        before = {name: vars(module).get("forward") for name, module in modules.items()}

        def watched(name: str, forward: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                run.add(name)
                return forward(*args, **kwargs)

            return call

        try:
            for name, module in modules.items():
                vars(module)["forward"] = watched(name, module.forward)
            self._repetition.run(examination)
        except Exception:  # noqa: S110 - what a model does in a second pass is beyond us
            pass
        finally:
            for name, module in modules.items():
                del vars(module)["forward"]
                if before[name] is not None:
                    vars(module)["forward"] = before[name]
        return run


def _standing_in(step: Step) -> set[str]:
    """Return the rows whose output gradient was seen, which stand for parts of theirs."""
    rows = np.flatnonzero(is_seen(step.status["output_grad"]).any(axis=0))
    return {step.names[row] for row in rows}


def _not_finite(step: Step) -> set[str]:
    """Return the rows whose weights' gradient is nan or inf."""
    rows = np.flatnonzero((step.status["weight_grad"] == STATUSES.index("nonfinite")).any(axis=0))
    return {step.names[row] for row in rows}


_TEXTS = {
    "program": (
        "{names} run{s} as part of a compiled program, which calls no module",
        "measure the model before it is exported or scripted",
    ),
    "adjoint": (
        "{names} run{s} in a function with a backward pass of its own, such as an adjoint method",
        "for a look at it let autograd go through, such as odeint in place of odeint_adjoint",
    ),
    "lost": (
        "the gradient of the {output} of {names} could not be followed: {they} may be changed in place, or computed "
        "inside vmap",
        "",
    ),
    "part": (
        "{names} {are} computed inside the {modules} around {them}, whose {rows} {show} {its} {output}",
        "",
    ),
    "forward": (
        "{names} {are} called by .forward(), which skips the hooks of the {modules}",
        "call the module itself: self.{it}(x) in place of self.{it}.forward(x)",
    ),
    "function": (
        "other modules compute with the weights of {names} and do not call {them}",
        "call the module in place of a function of its weight, to see its output and the gradient of that",
    ),
}
