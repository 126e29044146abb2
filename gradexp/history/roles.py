"""Blocks and roles: what the numbers in modules' names say about which layers are alike.

``encoder.layer.3.attention.query`` is block 3 of the stack ``encoder.layer``, and its role there is
``attention.query``. Layers of one stack and role make up a curve over blocks, and fold into a line of a table.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_FEW_NUMBERS = 4  # inside a role: the layers of an MLP, and not experts


class Place(NamedTuple):
    """Where a row stands.

    Args:
        stack: The part of the name before the block's number; all of the name if there is no number.
        block: The block's number; None if there is none.
        role: The part of the name after it; empty if the block itself is the row.
        is_call: Whether the block is a call of the module, from 0, in place of a number in its name.
    """

    stack: str
    block: int | None
    role: str
    is_call: bool = False


def split(name: str) -> Place:
    """Split a dotted name at the first part that is a number.

    Examples:
        >>> split("encoder.layer.3.attention.query")
        Place(stack='encoder.layer', block=3, role='attention.query', is_call=False)
        >>> split("lm_head")
        Place(stack='lm_head', block=None, role='', is_call=False)
    """
    parts = name.split(".")
    at = next((index for index, part in enumerate(parts) if _is_number(part)), None)
    return Place(name, None, "") if at is None else _split_at(parts, at)


def places(names: Sequence[str], calls: Sequence[int] = ()) -> list[Place]:
    """Return the place of each row, which the other names may make clearer than its own.

    The block is the first number of a name, but for three kinds. Stages of different lengths are stacks, so that
    ``stages.2.blocks.26.fc`` is block 26 of ``stages.2.blocks``. Names without a number of its own between dots, such
    as ``denseblock1.denselayer12.conv``, are split at the last part that ends in one and has like ones. A module that
    is called over and over, such as a cell or a shared block, has its calls for blocks.

    Args:
        names: Name of each row's module.
        calls: Which call of its module each row is, from 0; empty if each is called once.
    """
    found: dict[str, Place] = {name: split(name) for name in dict.fromkeys(names)}
    found |= _in_stages(found)
    found |= _ending_in_numbers([name for name, place in found.items() if place.block is None])
    blocks = _members((place.stack, place.block) for place in found.values())
    called = _members(zip(names, calls, strict=False))
    rows = []
    for index, name in enumerate(names):
        place = found[name]
        if len(called[name]) > max(1, len(blocks[place.stack])):
            place = _of_call(name, calls[index])
        rows.append(place)
    return rows


def merged_roles(found: Sequence[Place]) -> list[str]:
    """Return the role of each row, with ``*`` for numbers that have many values, such as those of experts.

    Examples:
        >>> rows = [Place("layers", block, f"experts.{expert}.w1") for block in (0, 1) for expert in range(8)]
        >>> set(merged_roles(rows))
        {'experts.*.w1'}
    """
    parts = [place.role.split(".") for place in found]
    masks = [
        (place.stack, *("*" if _is_number(part) else part for part in own))
        for place, own in zip(found, parts, strict=True)
    ]
    values = _members(
        ((mask, index), part)
        for mask, own in zip(masks, parts, strict=True)
        for index, part in enumerate(own)
        if _is_number(part)
    )
    return [
        ".".join("*" if len(values[mask, index]) > _FEW_NUMBERS else part for index, part in enumerate(own))
        for mask, own in zip(masks, parts, strict=True)
    ]


def _is_number(part: str) -> bool:
    return part.isdecimal() and part.isascii()


def _split_at(parts: list[str], at: int) -> Place:
    return Place(".".join(parts[:at]), int(parts[at]), ".".join(parts[at + 1 :]))


def _of_call(name: str, call: int) -> Place:
    """Split a name at its last number, so that a shared block keeps its roles."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts[:-1]) if _is_number(part)]
    at = numbers[-1] + 1 if numbers else len(parts)
    return Place(".".join(parts[:at]), call, ".".join(parts[at:]), is_call=True)


def _in_stages(found: dict[str, Place]) -> dict[str, Place]:
    """Return the places of names in stages: few, and of different lengths, at least one of which is longer.

    The only stack in a sequence of other things, as in ``nn.Sequential(embedding, encoder, head)``, is a stage too.
    """
    inner = {name: split(place.role) for name, place in found.items() if place.block is not None}
    lengths: dict[tuple[str, str], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name, below in inner.items():
        place = found[name]
        if below.block is not None and place.block is not None:
            lengths[place.stack, below.stack][place.block].add(below.block)
    blocks = _members((place.stack, place.block) for place in found.values())
    like = _members(((place.stack, place.role), place.block) for place in found.values())
    alike = {(place.stack, place.block) for place in found.values() if len(like[place.stack, place.role]) > 1}
    deeper = set()
    for (stack, middle), stages in lengths.items():
        counts = {len(stage) for stage in stages.values()}
        is_only = len(stages) == 1 < len(blocks[stack]) and (stack, *stages) not in alike
        # Experts or the layers of an MLP are as many in each block.
        if (len(counts) > 1 or is_only) and max(counts) > len(blocks[stack]):
            deeper.add((stack, middle))
    return {
        name: Place(
            ".".join(filter(None, (found[name].stack, str(found[name].block), below.stack))), below.block, below.role
        )
        for name, below in inner.items()
        if below.block is not None and (found[name].stack, below.stack) in deeper
    }


def _ending_in_numbers(names: list[str]) -> dict[str, Place]:
    """Return the places of names with parts that end in a number, if other names have another number there."""
    candidates: dict[str, list[Place]] = {}
    for name in names:
        parts = name.split(".")
        for at in reversed(range(len(parts))):
            match = re.fullmatch(r"(.*?)([0-9]+)(?:_(reverse))?", parts[at])
            if match:
                stem = ".".join([*parts[:at], match[1]])
                role = ".".join([*filter(None, [match[3]]), *parts[at + 1 :]])
                candidates.setdefault(name, []).append(Place(stem, int(match[2]), role))
    blocks = _members((place.stack, place.block) for own in candidates.values() for place in own)
    roles = _members(((place.stack, place.role), place.block) for own in candidates.values() for place in own)
    chosen = {}
    for name, own in candidates.items():
        like = [place for place in own if len(blocks[place.stack]) > 1]
        # ``conv1`` and ``conv2`` inside ``block3`` are roles.
        inside = [place for place in like if place.role and len(roles[place.stack, place.role]) > 1]
        if like:
            chosen[name] = (inside or like)[0]
    return chosen


def _members(pairs: Iterable[tuple[object, object]]) -> defaultdict[object, set[object]]:
    """Return what goes with each key."""
    members: defaultdict[object, set[object]] = defaultdict(set)
    for key, member in pairs:
        members[key].add(member)
    return members
