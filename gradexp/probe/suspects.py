"""Which operation of a piece of the graph made nan or inf: by what it has saved for its backward pass."""

import re
from collections.abc import Callable, Container, Iterable

from torch import Tensor
from torch.autograd.graph import Node

from gradexp.numerics.extremes import extremes, nonfinite, read
from gradexp.numerics.torch_internals import creation_number, saved_of

# What nan or inf usually comes from, by the name of the graph's node without "Backward".
_RISKY = re.compile(
    r"_?(Sqrt|Rsqrt|Pow|Log|Log2|Log10|Log1P|Div|Reciprocal|Exp|Expm1|Exp2|Sinh|Cosh|Softmax|SafeSoftmax|LogSoftmax|"
    r"Acos|Asin|Atanh|Acosh|Tan|Xlogy|Std|Var|Mean|NllLoss|NllLoss2D)Backward"
)
# What an operation cannot take, of the tensor that it has saved under a name.
_DOMAINS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    **dict.fromkeys(("LogBackward", "Log2Backward", "Log10Backward"), ("self", lambda x: x <= 0)),
    "Log1PBackward": ("self", lambda x: x <= -1),
    **dict.fromkeys(("DivBackward", "ReciprocalBackward"), ("other", lambda x: x == 0)),
    **dict.fromkeys(("AcosBackward", "AsinBackward"), ("self", lambda x: x.abs() > 1)),
    "AtanhBackward": ("self", lambda x: x.abs() >= 1),
    "AcoshBackward": ("self", lambda x: x < 1),
}
_ROOTS = ("SqrtBackward", "RsqrtBackward")
_QUOTIENTS = ("DivBackward", "ReciprocalBackward")
_BOTH_ENDS = ("AcosBackward", "AsinBackward", "AtanhBackward")
_SEARCHED = 500  # nodes


def name_of(node: Node) -> str:
    """Return ``SqrtBackward`` for ``SqrtBackward0``."""
    return re.sub(r"Backward\d+$", "Backward", node.name())


def suspects(ends: Iterable[Node], begin: int) -> tuple[Node, ...]:
    """Return the operation that made nan or inf, or all that may have, the last one first.

    Args:
        ends: The nodes that made the result.
        begin: The number of the last node before the piece of the graph.
    """
    waiting = list(ends)
    visited = set(waiting)
    risky = []
    while waiting and len(visited) < _SEARCHED:
        node = waiting.pop(0)
        if hasattr(node, "variable") or creation_number(node) <= begin:
            continue
        if _RISKY.fullmatch(name_of(node)):
            risky.append(node)
        new = [source for source, _ in node.next_functions if source is not None and source not in visited]
        visited.update(new)
        waiting += new
    verdicts = {node: _did_it(node) for node in risky}
    guilty = [node for node, verdict in verdicts.items() if verdict]
    if guilty:
        return (min(guilty, key=creation_number),)
    return tuple(node for node, verdict in verdicts.items() if verdict is None)


def operand_of(node: Node) -> str:
    """Return, in words, what an operation got of which it makes nan or inf; empty if it does not show."""
    name = name_of(node)
    result = saved_of(node, "result")
    if name in _ROOTS and isinstance(result, Tensor):
        value = _nonfinite_in(result)
        return {"nan": "negative numbers", "inf": "numbers down to 0"}.get(value or "", "")
    is_power = name == "PowBackward"
    if not (_did_it(node) and (is_power or name in _DOMAINS)):
        return ""
    if name in _QUOTIENTS:
        return "a divisor of 0"
    operand = saved_of(node, "self")
    pair = extremes(operand) if isinstance(operand, Tensor) else None
    if pair is None or nonfinite(ends := read([pair])[0]):
        return ""
    low, high = (end + 0.0 for end in ends)  # no -0
    if name in _BOTH_ENDS:
        return f"numbers from {low:.3g} to {high:.3g}"
    return f"numbers down to {low:.3g}" if low <= 0 or not is_power else ""


def sources(node: Node, ends: Container[Node]) -> list[Node]:
    """Return the leaves, and the nodes among some, from which an operation got what it took, the nearest ones.

    Args:
        node: The operation.
        ends: Nodes at which the search ends.
    """
    is_quotient = name_of(node) == "DivBackward"  # what matters of it is what it divides by
    waiting = [source for source, _ in node.next_functions[1 if is_quotient else 0 :]]
    found: dict[Node, None] = {}
    visited: set[Node | None] = {None}
    while waiting and len(visited) < _SEARCHED:
        below = waiting.pop(0)
        if below is None or below in visited:
            continue
        visited.add(below)
        if hasattr(below, "variable") or below in ends:
            found[below] = None
        else:
            waiting += [source for source, _ in below.next_functions]
    return list(found)


def _did_it(node: Node) -> bool | None:
    """Return whether what an operation has saved shows that its result is not finite; None if it does not show."""
    name = name_of(node)
    result = saved_of(node, "result")
    if name == "PowBackward":
        base, exponent = saved_of(node, "self"), saved_of(node, "exponent")
        result = None if base is None or exponent is None else base**exponent
    if isinstance(result, Tensor):
        value = _nonfinite_in(result)
        return None if value is None else bool(value)
    if name not in _DOMAINS:
        return None
    key, is_outside = _DOMAINS[name]
    operand = saved_of(node, key)
    return bool(is_outside(operand).any()) if isinstance(operand, Tensor) else None


def _nonfinite_in(tensor: Tensor) -> str | None:
    """Return ``nan``, ``inf``, ``-inf`` or an empty text for finite elements; None without elements."""
    pair = extremes(tensor)
    return None if pair is None else nonfinite(read([pair])[0])
