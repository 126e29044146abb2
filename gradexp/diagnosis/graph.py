"""Walks through autograd's graph, from the loss towards the leaves."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gradexp.probe.passes import accumulator


def node_of(tensor: Tensor) -> Any:
    """Return the node that made a tensor, or that adds to a leaf's ``.grad``; None without a gradient."""
    if not tensor.requires_grad:
        return None
    if tensor.grad_fn is not None:
        return tensor.grad_fn
    try:
        return accumulator(tensor)
    except AssertionError:  # of a view that was made without a graph
        return None


def has_nonzero(tensor: Tensor | None) -> bool:
    """Return whether any element of a tensor, sparse, nested or not, is something else than 0."""
    if tensor is None:
        return False
    tensor = tensor.detach()
    if tensor.is_nested:
        return any(map(has_nonzero, tensor.unbind()))
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce().values()
    elif tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return bool(tensor.ne(0).any())


def nodes_below(roots: Iterable[Any], closed: Collection[Any] = ()) -> dict[Any, None]:
    """Return each node that a gradient reaches from some nodes, those included, the nearest first.

    Args:
        roots: Nodes of the graph; None is none.
        closed: Nodes that let no gradient through, which are reached themselves, and pairs of a node and the number
            of one of its inputs to which it passes none.
    """
    visited = dict.fromkeys(root for root in roots if root is not None)
    waiting = list(visited)
    for node in waiting:  # which grows
        if node in closed:
            continue
        for place, (source, _) in enumerate(node.next_functions):
            if source is not None and source not in visited and (node, place) not in closed:
                visited[source] = None
                waiting.append(source)
    return visited


def leaves(nodes: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors to whose ``.grad`` some of the nodes add."""
    for node in nodes:
        if node.name().endswith("AccumulateGrad"):
            yield node.variable
