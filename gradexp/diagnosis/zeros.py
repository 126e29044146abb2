"""Gradients that are exactly 0 because a weight above is: closed branches, which open by themselves, or do not."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.graph import has_nonzero, leaves, node_of, nodes_below
from gradexp.diagnosis.guard import harmless
from gradexp.diagnosis.wording import outermost, owners
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.numerics.norms import has_values

# Where a vector or a scalar multiplies, in place of being added as a bias is.
_MULTIPLY = re.compile("Mul|.*(BatchNorm|LayerNorm|GroupNorm|RmsNorm)")

_Edge = tuple[Any, int]  # a node of the graph, and which of its inputs


class ZeroInitialised(Observer):
    """Weights of exactly 0 through which no gradient passes to what is below.

    It is seen at the node that computes with the weight: a gradient arrives and what goes on to another of its inputs
    is exactly 0.
    """

    def see_loss(self, examination: Examination) -> None:
        """Find the nodes that compute with weights of exactly 0, and hook them."""
        self._hooked: list[Any] = []  # nodes; a hook knows only which, or each would keep its whole graph alive
        self._shut: dict[tuple[int, int], int] = {}  # which of them, which of its inputs -> id of the weight
        assert examination.loss is not None
        self._root = node_of(examination.loss)
        zeros = [p for p in examination.model.parameters() if p.requires_grad and p.is_leaf and _is_zero(p)]
        users: dict[Any, list[Any]] = {}
        for node in nodes_below([self._root]) if zeros else ():
            for source, _ in node.next_functions:
                if source is not None:
                    users.setdefault(source, []).append(node)
        for weight in zeros:
            for node, place in _consumers(node_of(weight), users):
                if weight.dim() > 1 or _MULTIPLY.fullmatch(node.name().partition("Backward")[0]):
                    see = partial(_see, self._shut, len(self._hooked), place, id(weight))
                    node.register_hook(harmless(type(self), see))
                    self._hooked.append(node)

    def findings(self, examination: Examination) -> Iterator[Finding]:
        """Return one finding for branches that open at the next step, and one for those that never do."""
        shut: dict[_Edge, int] = {
            (self._hooked[which], place): weight for (which, place), weight in self._shut.items()
        }
        if not shut:
            return
        owner = owners(examination.model)
        parameters = {id(p): p for p in examination.model.parameters() if p.requires_grad and p.grad is not None}
        without = {key for key, p in parameters.items() if not has_nonzero(p.grad)}
        is_open = {id(leaf) for leaf in leaves(nodes_below([self._root], closed=shut))}
        behind: dict[int, set[int]] = {}  # id of a weight of 0 -> ids of the parameters that it closes off
        for (node, place), weight in shut.items():
            below = nodes_below([node.next_functions[place][0]])
            behind.setdefault(weight, set()).update({id(leaf) for leaf in leaves(below)} & without - is_open)
        behind = {weight: closed for weight, closed in behind.items() if closed}
        opening = behind.keys() - without
        if opening:
            closed = set().union(*(behind[weight] for weight in opening))
            yield _opening(_owners_of(opening, owner), _owners_of(closed, owner), parameters.keys() - closed, owner)
        zeros_below = {
            weight: {key for key in behind[weight] if parameters[key].dim() > 1 and _is_zero(parameters[key])}
            for weight in behind.keys() & without
        }
        stuck = {weight for weight, below in zeros_below.items() if below}
        if stuck:
            series = stuck.union(*(zeros_below[weight] for weight in stuck))
            yield _stuck(_owners_of(series, owner), len(series))


def _see(
    shut: dict[tuple[int, int], int],
    which: int,
    own: int,
    weight: int,
    passed_on: Sequence[Any],
    arrived: Sequence[Any],
) -> None:
    """Note the inputs of a node, other than its weight, to which it passes no gradient."""
    if any(map(has_nonzero, arrived)):
        for place, gradient in enumerate(passed_on):
            if place != own and gradient is not None and not has_nonzero(gradient):
                shut[which, place] = weight


def _opening(names: list[str], closed: list[str], others: Iterable[int], owner: dict[int, str]) -> Finding:
    below = outermost(closed, {owner[key] for key in others})
    return Finding(
        "zero by initialisation",
        f"the gradient of {listed(below)} is 0 because the weights of {listed(names)} are exactly 0; those get a "
        "gradient themselves, so measure again after one step",
        tuple(names),
        severity=0,
    )


def _stuck(names: list[str], weights: int) -> Finding:
    others = "each keeps the gradient of the other at 0"
    if weights > 2:
        others = "in series each keeps the gradient of the others at 0"
    return Finding(
        "zero by initialisation",
        f"these weights never change: those of {listed(names)} are exactly 0, and {others}",
        tuple(names),
        "draw their weights at random; only the last of those in series may begin at 0",
        3,
    )


def _consumers(leaf: Any, users: dict[Any, list[Any]]) -> Iterator[_Edge]:
    """Yield the nodes that compute with a leaf and something else, through views, casts and scales of it alone."""
    waiting = [leaf]
    for below in waiting:  # which grows
        for user in users.get(below, ()):
            inputs = [place for place, (source, _) in enumerate(user.next_functions) if source is not None]
            if len(inputs) > 1:
                yield from ((user, place) for place in inputs if user.next_functions[place][0] is below)
            elif user not in waiting:
                waiting.append(user)


def _is_zero(parameter: nn.Parameter) -> bool:
    return has_values(parameter) and parameter.numel() > 0 and not has_nonzero(parameter)


def _owners_of(keys: Collection[int], owner: dict[int, str]) -> list[str]:
    """Return the names of modules in their order in the model."""
    return list(dict.fromkeys(name for key, name in owner.items() if key in keys))
