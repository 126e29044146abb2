"""Parts that get no gradient, since the graph is cut between them and the loss, or nothing comes of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.graph import leaves, node_of, nodes_below
from gradexp.diagnosis.provenance import Exit, Provenance
from gradexp.diagnosis.repetition import Repetition
from gradexp.diagnosis.wording import outermost, owners, parameter_names, verb
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.history.step import STATUSES
from gradexp.probe.calls import tensors_in
from gradexp.probe.names import is_callable, named_modules

_STEP = "a step whose slope is 0", "pass the gradient straight through: x + (step(x) - x).detach()"
_DRAW = (
    "which draws random numbers and passes no gradient",
    "draw without parameters and scale then: mean + std * torch.randn_like(std); F.gumbel_softmax for a choice",
)
_OVERWRITE = "which overwrites it", "write into another tensor"
# Operations whose gradient is exactly 0 whatever they get: why, and what helps.
_FLAT = {
    **dict.fromkeys(("Round", "Floor", "Ceil", "Trunc", "Sign", "Sgn"), _STEP),
    **dict.fromkeys(("Bernoulli", "Normal", "Poisson", "Exponential", "Uniform"), _DRAW),
    **dict.fromkeys(("Fill", "Zero"), _OVERWRITE),
}
_ON_PURPOSE = "if this is meant, freeze {names} by requires_grad_(False)"


class Cut(Observer):
    """Trained parameters that the backward pass does not reach."""

    def begin(self, examination: Examination) -> None:
        """Note where the random number generators stand, and what was there."""
        self._repetition = Repetition()
        self._called: dict[int, str] = {}  # id of a module -> its name, in the order of the last calls
        self._without_graph: set[str] = set()
        self._flat: dict[int, str] = {}
        self._of_output: set[int] = set()

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Note which modules are called."""
        self._called.pop(id(module), None)
        self._called[id(module)] = name
        if not torch.is_grad_enabled():
            self._without_graph.add(name)

    def see_loss(self, examination: Examination) -> None:
        """Note which leaves the loss reaches through steps of slope 0 only, and which the model's output does."""
        assert examination.loss is not None
        nodes = nodes_below([node_of(examination.loss)])
        flat = {node: word for node in nodes if (word := node.name().partition("Backward")[0]) in _FLAT}
        if flat:
            open_to = {id(leaf) for leaf in leaves(nodes_below([node_of(examination.loss)], closed=flat))}
            for node, word in flat.items():
                for leaf in leaves(nodes_below([node])):
                    if id(leaf) not in open_to:
                        self._flat.setdefault(id(leaf), word)
        outputs = [node_of(tensor) for tensor in tensors_in(examination.output)]
        self._of_output = {id(leaf) for leaf in leaves(nodes_below(outputs))}

    def findings(self, examination: Examination) -> Iterator[Finding]:
        """Return one finding for each place at which the graph is cut, and one for what is frozen."""
        model = examination.model
        owner = owners(model)
        parameters = {id(parameter): parameter for parameter in model.parameters()}
        trained = {key: parameter for key, parameter in parameters.items() if parameter.requires_grad}
        moved = _with_moved_gradients(examination)
        silent = {key for key, p in trained.items() if p.grad is None and owner[key] not in moved}
        flat = {key: way for key, way in self._flat.items() if key in trained and key not in silent}
        reached = {owner[key] for key in trained if key not in silent and key not in flat}
        yield from self._flat_findings(flat, owner, reached)
        if silent:
            yield from self._silent_findings(examination, silent, owner, reached)
        if len(trained) < len(parameters):
            yield _frozen(parameters, owner, parameter_names(model))

    def _flat_findings(self, flat: dict[int, str], owner: dict[int, str], reached: set[str]) -> Iterator[Finding]:
        for operation in dict.fromkeys(flat.values()):
            names = outermost(list(dict.fromkeys(owner[key] for key in flat if flat[key] == operation)), reached)
            gets, it = verb(names, "gets", "get"), verb(names, "it", "them")
            why, cure = _FLAT[operation]
            text = f"{listed(names)} {gets} a gradient of exactly 0: what comes of {it} goes through "
            text += f"{operation.lower()}(), {why}"
            yield Finding("cut", text, tuple(names), cure, 3)

    def _silent_findings(
        self, examination: Examination, silent: set[int], owner: dict[int, str], reached: set[str]
    ) -> Iterator[Finding]:
        exits, numbers = exits_of(examination, self._repetition)
        causes: dict[int, Exit | str] = {}
        for way_out, is_number in [*((e, False) for e in exits), *((e, True) for e in numbers)]:
            for key in way_out.cut_off() & silent:
                # The last one is nearest to the loss; but first come those that values are known to pass.
                if not is_number or not isinstance(causes.get(key), Exit):
                    causes[key] = way_out
        modules = named_modules(examination.model)
        for key in silent - causes.keys():
            unused = "output" if key in self._of_output else "unused"
            causes[key] = unused if id(_caller(modules, owner[key])) in self._called else "not called"
        parameters = {id(parameter): parameter for parameter in examination.model.parameters()}
        known = parameter_names(examination.model)
        order = list(owner)
        groups: dict[tuple[str, str, str], list[int]] = {}
        for key in sorted(silent, key=order.index):
            groups.setdefault(_label(causes[key]), []).append(key)
        for keys in groups.values():
            others = reached | {owner[key] for key in silent if key not in keys}
            whole = [key for key in keys if owner[key] and owner[key] not in others]
            names = outermost(list(dict.fromkeys(owner[key] for key in whole)), others)
            names += [known[key] for key in keys if key not in whole]
            is_bias = not whole and all(parameters[key].dim() < 2 for key in keys)
            runs_without = any(_is_in(name, names) for name in self._without_graph)
            finding = _finding(causes[keys[0]], names, self._next_after(names), is_bias, runs_without)
            if not whole:  # parameters have no output
                text = finding.text.replace("its output is", "it is").replace("their output is", "they are")
                finding = replace(finding, text=text, modules=tuple(dict.fromkeys(owner[key] for key in keys)))
            yield finding

    def _next_after(self, names: list[str]) -> str:
        """Return which module was called next after some modules, empty if none was."""
        called = list(self._called.values())
        last = max((place for place, name in enumerate(called) if _is_in(name, names)), default=len(called))
        return next((name for name in called[last + 1 :] if not any(_is_in(each, [name]) for each in names)), "")


def _finding(cause: Exit | str, names: list[str], successor: str, is_bias: bool, runs_without: bool) -> Finding:
    who, gets, its = listed(names), verb(names, "gets", "get"), verb(names, "its", "their")
    if isinstance(cause, Exit):
        where = f"{_operation(cause)}{f' ({cause.place})' if cause.place else ''}"
        receiver = successor if _is_in(cause.before, names) else cause.before or successor
        before = f" before {receiver}" if receiver else ""
        text = f"{who} {gets} no gradient: {its} output is cut off by {where}{before}"
        if cause.without_graph and runs_without:
            text = f"{who} {gets} no gradient: {verb(names, 'it runs', 'they run')} under torch.no_grad(){before}"
        return Finding("cut", text, tuple(names), f"{_cure(cause)}; {_ON_PURPOSE.format(names=who)}", 3)
    if cause == "not called":
        return Finding(
            "cut",
            f"{who} {gets} no gradient: {verb(names, 'it is', 'they are')} not called in this pass",
            tuple(names),
            severity=1,
        )
    if is_bias:  # or a gain, of a layer that is trained: as of the last one, where the loss is made of slopes
        return Finding(
            "cut",
            f"{who} {gets} no gradient: the loss does not depend on {verb(names, 'it', 'them')}",
            tuple(name.rpartition(".")[0] for name in names),
            severity=0,
        )
    what = "the loss does not use" if cause == "output" else "nothing in the loss uses"
    text = f"{who} {gets} no gradient: {what} {its} output"
    return Finding("cut", text, tuple(names), "", 1)


def may_reach_parameters(loss: Tensor, model: nn.Module) -> bool:
    """Return whether a backward pass may reach a parameter, as far as the graph shows."""
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    nodes = nodes_below([node_of(loss)])
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):  # others stand in for sharded ones
        return loss.requires_grad
    # A function with a backward pass of its own may do anything in it, as reentrant checkpoints do.
    return any(id(leaf) in trained for leaf in leaves(nodes)) or any(isinstance(n, BackwardCFunction) for n in nodes)


def why_without_gradient(examination: Examination) -> str:
    """Return why a loss depends on no trained parameter, as the end of a sentence, empty if it is not known."""
    trained = {id(parameter) for parameter in examination.model.parameters() if parameter.requires_grad}
    if not trained:
        return ": all are frozen (requires_grad=False)"
    exits, numbers = exits_of(examination, Repetition())
    cutting = [way_out for way_out in [*exits, *numbers] if way_out.cut_off() & trained]
    if not cutting:
        return ""
    last = cutting[-1]
    return f": {_operation(last)} cuts them off{f' ({last.place})' if last.place else ''}"


def _frozen(parameters: Mapping[int, Tensor], owner: Mapping[int, str], called: Mapping[int, str]) -> Finding:
    """Return what is frozen; it is an alarm if biases are trained and no weight of the whole model."""
    frozen = dict.fromkeys(owner[key] for key, p in parameters.items() if not p.requires_grad)
    trained = {owner[key] for key, p in parameters.items() if p.requires_grad}
    names = outermost(list(frozen), trained)
    text = f"{listed(names)} {verb(names, 'is', 'are')} frozen (requires_grad=False) and not trained"
    halves = [name for name in frozen if name in trained]  # a bias without its weight
    if not halves or any(p.requires_grad and p.dim() > 1 for p in parameters.values()):
        return Finding("frozen", text, tuple(names), severity=0)
    rest = [called[key] for key, p in parameters.items() if p.requires_grad]
    text += f": no weight of the whole model is trained, only {listed(rest)}"
    remedy = f"model.get_submodule({halves[-1]!r}).requires_grad_(True)"
    is_choice = all(p.requires_grad for p in parameters.values() if p.dim() < 2)  # biases alone, as BitFit trains
    return Finding("frozen", text, tuple(names), remedy, 1 if is_choice else 2)


def exits_of(examination: Examination, repetition: Repetition) -> tuple[Sequence[Exit], Sequence[Exit]]:
    """Return where values leave the graph and still come to the loss, and where they leave torch."""
    provenance = Provenance(examination.model)
    try:
        with provenance:
            loss = repetition.run(examination)
    except Exception:  # what a model does in a second pass is beyond us
        return (), ()
    return provenance.exits_to(loss), provenance.out_of_torch


def _is_in(name: str, names: list[str]) -> bool:
    """Return whether a module is one of some others, or inside of one."""
    return any(name == outer or not outer or name.startswith(f"{outer}.") for outer in names)


def _label(cause: Exit | str) -> tuple[str, str, str]:
    if isinstance(cause, str):
        return cause, "", ""
    if cause.without_graph:
        return "no_grad", "", ""
    return cause.operation, cause.place, cause.before


_WORDS = {
    "data": ".data",
    "tensor": "torch.tensor()",
    "__getitem__": "indexing",
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne"), "a comparison"),
}
_COPIES = ("detach", "detach_", "data", "tensor", "as_tensor", "new_tensor", "item", "tolist", "numpy", "__float__")


def _operation(way_out: Exit) -> str:
    name = way_out.operation
    if way_out.without_graph:
        return "torch.no_grad()"
    return _WORDS.get(name, f"{name.strip('_')}()")


def _cure(way_out: Exit) -> str:
    if way_out.without_graph:
        return "compute it outside of torch.no_grad(); of a distribution take rsample() in place of sample()"
    if way_out.operation in _COPIES:
        return f"pass the tensor on without {_operation(way_out)}"
    smooth = "softmax or F.gumbel_softmax" if way_out.operation in ("argmax", "topk", "max") else "sigmoid"
    return f"{_operation(way_out)} has no slope: use a smooth function in its place, such as {smooth}"


def _with_moved_gradients(examination: Examination) -> set[str]:
    """Return the rows whose gradients hooks took away, so that ``.grad`` says nothing."""
    assert examination.history is not None
    step = examination.history.at()
    if "weight_grad" not in step.status:
        return set()
    missed = (step.status["weight_grad"] == STATUSES.index("hook_missed")).any(axis=0)
    return {name for name, is_missed in zip(step.names, missed, strict=True) if is_missed}


def _caller(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    """Return a module, or the nearest one around it if it is a container that nobody calls."""
    while name and not is_callable(modules[name]):
        name = name.rpartition(".")[0]
    return modules[name]
