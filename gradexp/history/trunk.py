"""Blocks and roles: what the names of modules tell about the trunk of a model."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gradexp.history.flow import Flow


class Place(NamedTuple):
    """Where a module stands by its name.

    Args:
        stack: What comes before the number.
        block: The number.
        role: What comes after it.
    """

    stack: str
    block: int
    role: str


def places(name: str) -> list[Place]:
    """Return a place for each number in a dotted name, the outermost first.

    Examples:
        >>> places("decoder.h.3.attn.c_proj")
        [Place(stack='decoder.h', block=3, role='attn.c_proj')]
    """
    parts = name.split(".")
    return [
        Place(".".join(parts[:index]), int(part), ".".join(parts[index + 1 :]))
        for index, part in enumerate(parts)
        if part.isdecimal()
    ]


@dataclass(frozen=True)
class Stack:
    """Blocks that follow each other.

    Args:
        name: What their names begin with.
        blocks: The rows of each block, from the input on.
        labels: Name of each block.
    """

    name: str
    blocks: list[list[int]]
    labels: list[str]

    def rows(self) -> set[int]:
        """Return all rows."""
        return {row for block in self.blocks for row in block}


def stacks(flow: Flow) -> list[Stack]:
    """Return the stacks of at least two blocks of which each feeds the next one.

    Experts, heads and other branches side by side are no stack. A stack that is called several times is one for each
    call.
    """
    grouped: dict[tuple[str, int], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in flow.order:
        call = flow.step.calls[row] if flow.step.calls else 0
        for place in places(flow.step.names[row]):
            grouped[place.stack, call][place.block].append(row)
    found = []
    for (name, call), by_number in grouped.items():
        blocks = list(by_number.values())  # in the order of the graph
        if len(blocks) > 1 and all(_feeds(flow, *pair) for pair in pairwise(blocks)):
            suffix = f" #{call + 1}" if call else ""
            labels = [f"{name}.{number}".lstrip(".") + suffix for number in by_number]
            found.append(Stack(name, blocks, labels))
    return found


def _feeds(flow: Flow, lower: list[int], upper: list[int]) -> bool:
    bits = sum(1 << row for row in upper)
    return any(flow.above[row] & bits for row in lower)


def lost(flow: Flow, stack: Stack) -> list[float]:
    """Return the gradient at the height of each block: the largest in it and in all that is below.

    Beside a block whose branch is closed the gradient passes by; it shows in the rows below.
    """
    amplified = _amplified(flow)
    heights = []
    for block in stack.blocks:
        bits = 0
        for row in block:
            bits |= 1 << row | flow.below[row]
        heights.append(flow.largest(bits & ~amplified))
    return heights


def gained(flow: Flow, stack: Stack) -> list[float]:
    """Return by how much the gradient grows from the last block down to each one.

    A block adds what its gradient is more than any that it gets from above. So what another loss brings in at its
    height, as in deep supervision, is no growth.
    """
    amplified = _amplified(flow)
    heights = [0.0]
    for block in stack.blocks[-2::-1]:
        own = above = 0
        for row in block:
            own |= 1 << row
            above |= flow.above[row]
        mine, given = flow.largest(own & ~amplified), flow.largest(above & ~own)
        heights.append(heights[-1] + (max(0.0, mine - given) if given > -np.inf else 0.0))
    return heights[::-1]


def _amplified(flow: Flow) -> int:
    """Return the rows, as bits, whose gradient is large only since their outputs are small."""
    return sum(
        1 << row
        for row in flow.order
        if flow.is_small_source(row)
        and flow.value[row] > max(flow.value[reader] for reader in flow.readers[row]) + 0.5
    )


def block_kinds(flow: Flow, stack: Stack) -> list[str]:
    """Return of what each block consists, so that those that are alike can be told from others."""
    return [str(sorted((_role(flow, stack, row), flow.kind(row)) for row in block)) for block in stack.blocks]


def like_blocks(flow: Flow, stack: Stack) -> Stack:
    """Return the part of a stack whose blocks are of the most frequent kind."""
    kinds = block_kinds(flow, stack)
    most = Counter(kinds).most_common(1)[0][0]
    chosen = [index for index, kind in enumerate(kinds) if kind == most]
    return Stack(stack.name, [stack.blocks[i] for i in chosen], [stack.labels[i] for i in chosen])


def output_by_block(flow: Flow, stack: Stack) -> list[float]:
    """Return log10 rms of outputs of each block, as the mean over those roles that all blocks have; [] if none."""
    if "output" not in flow.step.log10:
        return []
    output = flow.step.profile("output")
    by_block = [
        {_role(flow, stack, row): float(output[row]) for row in block if np.isfinite(output[row])}
        for block in stack.blocks
    ]
    common = set(by_block[0]).intersection(*by_block[1:])
    return [sum(roles[role] for role in common) / len(common) for roles in by_block] if common else []


def _role(flow: Flow, stack: Stack, row: int) -> str:
    """Return what comes after the number of the block in a row's name."""
    name = flow.step.names[row].split(".")
    return ".".join(name[1 + len(stack.name.split(".")) if stack.name else 1 :])
