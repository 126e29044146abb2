"""What is found along the ways of the gradient: where it vanishes or explodes, and branches that are closed."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradexp.history.finding import Finding
from gradexp.history.flow import Flow, chains
from gradexp.history.sentences import named
from gradexp.history.slope import STEEP, Line, change, is_kept, is_slope, power
from gradexp.history.step import STATUSES, Array
from gradexp.history.trunk import Stack, block_kinds, gained, like_blocks, lost, output_by_block, stacks

# Outputs that grow by this many decades over like layers make a loss that starts far above that of guessing.
_LARGE_OUTPUTS = 2.0
# More findings of one kind are told in one line.
_MOST = 3


@dataclass(frozen=True)
class Path:
    """A line of layers along which the gradient is judged.

    Args:
        line: The layers or blocks.
        rows: All rows on it.
        is_stack: Whether it is one of blocks.
        is_bypassed: Whether the gradient also passes by it, as by a branch of a residual block.
        remark: What to say of rows without a normal number.
    """

    line: Line
    rows: frozenset[int]
    is_stack: bool = False
    is_bypassed: bool = False
    remark: str = ""


def paths(flow: Flow) -> list[Path]:
    """Return the lines along which the gradient is judged: chains, and stacks of blocks, the longest first."""
    found = [_chain_path(flow, chain) for chain in chains(flow)]
    for stack in stacks(flow):
        rows = stack.rows()
        if not any(rows <= path.rows for path in found if not path.is_stack):
            found += [Path(line, frozenset(rows), True) for line in _stack_lines(flow, stack)]
    return sorted((path for path in found if np.isfinite(path.line.values).any()), key=lambda p: -len(p.rows))


def slopes(flow: Flow, lines: Sequence[Path], decades: float) -> list[Finding]:
    """Return where the gradient vanishes or explodes, the worst first; one finding for lines inside each other."""
    found: list[tuple[float, frozenset[int], Finding]] = []
    for path in lines:
        finding = _judged(path, decades)
        if finding is not None:
            found.append((abs(path.line.total), path.rows, finding))
    if not found:
        return _between_ends(flow, decades, lines)
    kept: list[tuple[frozenset[int], Finding]] = []
    for _, rows, finding in sorted(found, key=lambda item: -item[0]):
        if not any(rows & other and finding.kind == known.kind for other, known in kept):
            kept.append((rows, finding))
    findings = [finding for _, finding in kept]
    return [*findings[:_MOST], *_summary(findings[_MOST:])]


def _summary(more: list[Finding]) -> list[Finding]:
    """Return what is too much to be told one by one in one line for each kind."""
    return [
        Finding(
            kind,
            f"the same on {count} more path{'s' if count > 1 else ''}",
            tuple(f.modules[0] for f in more if f.kind == kind),
        )
        for kind, count in Counter(finding.kind for finding in more).items()
    ]


def course(line: Line) -> str:
    """Say in one sentence how the gradient changes along a line."""
    labels = [*map(named, line.labels[line.first :])]
    single = [i for i in line.single() if abs(line.steps[i]) > 0.2 * abs(line.total)][:3]
    if not single:
        unlike = [i for i, like in enumerate(line.like()) if not like and abs(line.steps[i]) >= 0.2]
        single = [i for i in unlike if abs(line.steps[i]) > 0.5 * abs(line.total)][:1]
    places = " and ".join(f"{power(line.steps[i])} between {labels[i]} and {labels[i + 1]}" for i in single)
    even = line.even()
    rate = line.rate() if len(even) else line.total / max(1, len(labels) - 1)
    ends = f"from {labels[-1]} to {labels[0]}"
    over, in_all = f"{power(line.total)} {ends}", f"by {power(line.total)} in all {ends}"
    if len(labels) == 2:
        return f"towards the input the gradient changes by {over}"
    if abs(line.total) < 0.05 and not single:
        return f"towards the input the gradient keeps its size, {over}"
    if not single:
        evenly = change(rate, line.unit)
        return f"towards the input the gradient {evenly}, {over if is_kept(rate) else in_all}"
    rest = f", elsewhere it {change(rate, line.unit)}" if len(even) else ""
    return f"towards the input the gradient changes by {over}: {places}{rest}"


def large_outputs(flow: Flow) -> list[Finding]:
    """Return where the forward signal grows from layer to layer."""
    lines = []
    for chain in chains(flow):
        line = _chain_line(flow, chain)
        if "output" in flow.step.log10:
            lines.append((replace(line, values=flow.step.profile("output")[chain]), frozenset(chain)))
    for stack in stacks(flow):
        alike = like_blocks(flow, stack)
        if values := output_by_block(flow, alike):
            line = Line(alike.labels, np.array(values), [""] * len(values), "block")
            lines.append((line, frozenset(alike.rows())))
    found = []
    covered: set[int] = set()
    for line, rows in sorted(lines, key=lambda item: -len(item[1])):
        if not np.isfinite(line.values).all() or len(line.values) < 3 or rows & covered:
            continue
        even = -line.steps[line.like()]
        if even.sum() >= _LARGE_OUTPUTS and is_slope(even):
            covered |= rows
            text = (
                f"towards the loss outputs grow x{10 ** even.mean():.3g} per {line.unit}, "
                f"{power(even.sum())} from {named(line.labels[0])} to {named(line.labels[-1])}"
            )
            found.append(Finding("exploding activations", text, (line.labels[0], line.labels[-1])))
    return found


def closed_branches(flow: Flow, decades: float) -> list[Finding]:
    """Return branches into which far less gradient goes than past them, as one harmless finding.

    Queries and keys, layers before a small scale or a gain of 0, and the like: what they add is small, and what
    stands beside them gets the whole gradient.
    """
    closed: dict[str, list[int]] = {}
    for row in flow.order:
        readers = flow.readers[row]
        if not readers or not any(np.isfinite(flow.value[reader]) for reader in readers):
            continue
        reader = max(readers, key=lambda other: flow.value[other])
        beside = max((flow.value[other] for other in flow.feeders[reader] if other != row), default=-np.inf)
        if flow.value[row] < min(beside, flow.value[reader]) - decades:
            closed.setdefault(re.sub(r"\d+", "*", flow.step.names[row]), []).append(row)
    if not closed:
        return []
    parts = []
    for role, rows in list(closed.items())[:3]:
        drops = [flow.value[row] - max(flow.value[reader] for reader in flow.readers[row]) for row in rows]
        parts.append(f"{_counted(flow, role, rows)} {_range(drops)}")
    more = f" ({len(closed) - 3} more likewise)" if len(closed) > 3 else ""
    is_one = sum(map(len, closed.values())) == 1
    text = f"{', '.join(parts)} of the gradient that passes beside {'it' if is_one else 'them'}{more}, which is "
    text += "harmless if the branch is small by design"
    names_of = tuple(flow.name(row) for rows in closed.values() for row in rows)
    return [Finding("closed branches", text, names_of, severity=0)]


def _counted(flow: Flow, role: str, rows: list[int]) -> str:
    """Return the name of some rows of one role, and how many there are, with a verb."""
    names = {flow.step.names[row] for row in rows}
    if len(rows) == 1:
        return f"{flow.shown(rows[0])} gets"
    if len(names) == 1:
        return f"{names.pop()} ({len(rows)} calls) gets"
    return f"{role} ({len(names)} modules) get"


def _range(drops: list[float]) -> str:
    low, high = min(drops), max(drops)
    if high == -np.inf:
        return "none"
    if low == -np.inf:
        return f"{power(high)} or less"
    return power(low) if power(low) == power(high) else f"{power(low)} to {power(high)}"


def _below_range(flow: Flow, chain: list[int]) -> str:
    """Say from where on gradients are below their number format's normal range, and from where on exactly 0."""
    dtype = flow.step.dtypes.get("output_grad", "float32")
    subnormal, zero = (_uppermost(flow, chain, "output_grad", word) for word in ("subnormal", "zero"))
    weights = _uppermost(flow, chain, "weight_grad", "zero")
    parts = [f"below {dtype}'s smallest normal number from {subnormal} down"] if subnormal else []
    parts += [f"exactly 0 from {zero} down"] if zero else []
    remark = f"; it is {' and '.join(parts)}" if parts else ""
    if weights:
        own = f"; the weight gradients are exactly 0 from {weights} down"
        remark += ", as are the weight gradients" if weights == zero else own
    return remark


def _uppermost(flow: Flow, chain: list[int], quantity: str, status: str) -> str:
    """Return the name of the last row of a chain with a status, empty if there is none."""
    if quantity not in flow.step.status:
        return ""
    is_so = (flow.step.status[quantity][:, chain] == STATUSES.index(status)).all(axis=0)
    return flow.shown(chain[int(np.flatnonzero(is_so)[-1])]) if is_so.any() else ""


def _chain_path(flow: Flow, chain: list[int]) -> Path:
    above = set(flow.readers[chain[-1]]) - set(chain)
    is_bypassed = any(not above.isdisjoint(flow.readers[feeder]) for feeder in flow.feeders[chain[0]])
    is_bypassed |= chain[-1] in flow.ends and any(feeder in flow.ends for feeder in flow.feeders[chain[0]])
    line, remark = _chain_line(flow, chain), _below_range(flow, chain)
    return Path(line, frozenset(chain), is_bypassed=is_bypassed, remark=remark)


def _chain_line(flow: Flow, chain: list[int]) -> Line:
    return Line([flow.name(row) for row in chain], _from_below(flow.value[chain]), [flow.kind(row) for row in chain])


def _from_below(values: Array) -> Array:
    """Return values of which those below the last 0 are 0 too, as nothing comes past it."""
    zeros = np.flatnonzero(values == -np.inf)
    if zeros.size and zeros[-1] + 1 < len(values):
        values = values.copy()
        values[: zeros[-1]] = -np.inf
    return values


def _stack_lines(flow: Flow, stack: Stack) -> Iterator[Line]:
    kinds = block_kinds(flow, stack)
    for heights in (lost(flow, stack), gained(flow, stack)):
        yield Line(stack.labels, np.array(heights), kinds, "block")


def _judged(path: Path, decades: float) -> Finding | None:
    line = path.line
    if line.values[-1] == -np.inf:
        return None
    total, steps = line.total, line.steps
    jump = float(max(steps, key=abs)) if len(steps) else 0.0
    if path.is_bypassed:  # where a scale, a gate or a gain may be small by design
        total, jump = float(line.even().sum()), 0.0
    worst = total if abs(total) > max(decades, line.spread(decades + 1)) else jump if abs(jump) > decades else 0.0
    if not worst and line.is_steep():
        worst = line.rate()
    if not worst:
        return None
    text = course(line)
    if worst < 0:
        text += path.remark
    labels = line.labels[line.first :]
    single = [labels[i] for i in line.single() if steps[i] * worst > 0]
    modules = tuple(dict.fromkeys([*single, labels[0], labels[-1]]))
    return Finding("vanishing" if worst < 0 else "exploding", text, modules)


def _between_ends(flow: Flow, decades: float, lines: Sequence[Path]) -> list[Finding]:
    """Judge a graph without a line that is to blame: from the rows that feed the loss to those that nothing feeds.

    Of a module that is called several times the call with the largest gradient counts, as it does for its weights.
    """
    value = flow.by_module().tolist()
    change_ = {}
    for row in flow.order:
        top = flow.top(row)
        by = value[row] - value[top]
        if math.isfinite(by) and not any(row in path.rows and top in path.rows for path in lines):
            change_[row] = by
    found = []
    lowest = [row for row in flow.sources if row in change_]
    best = max(lowest, key=lambda row: change_[row], default=None)
    if best is not None and change_[best] < -decades:
        found.append(Finding("vanishing", *_from_end(flow, best, change_[best])))
    grown = [row for row in change_ if change_[row] > decades and not flow.is_small_source(row)]
    worst = max(grown, key=lambda row: change_[row], default=None)
    if worst is not None:
        found.append(Finding("exploding", *_from_end(flow, worst, change_[worst])))
    return found


def _from_end(flow: Flow, row: int, change_: float) -> tuple[str, tuple[str, str]]:
    """Return what is told of a row's gradient against that at the end of its way, and the two modules."""
    top = flow.top(row)
    text = f"towards the input the gradient changes by {power(change_)} from {flow.shown(top)} to {flow.shown(row)}"
    lower, upper = _largest_step(flow, row, change_)
    step = float(flow.value[lower] - flow.value[upper]) if lower != upper else 0.0
    if (lower, upper) != (row, top) and abs(step) > 0.5 * abs(change_) and abs(step) > STEEP:
        text += f": {power(step)} between {flow.shown(lower)} and {flow.shown(upper)}"
        return text, (flow.name(lower), flow.name(upper))
    return text, (flow.name(row), flow.name(top))


def _largest_step(flow: Flow, row: int, change_: float) -> tuple[int, int]:
    """Return the step that changes most, on the way to the loss that keeps to the largest gradients."""
    best, best_size = (row, row), 0.0
    while flow.readers[row]:
        reader = max(flow.readers[row], key=lambda other: flow.value[other])
        if np.isfinite(flow.value[[row, reader]]).all():
            size = float(flow.value[row] - flow.value[reader]) * (1 if change_ > 0 else -1)
            if size > best_size:
                best, best_size = (row, reader), size
        row = reader
    return best


def calm(flow: Flow, lines: Sequence[Path]) -> str:
    """Return one line on a gradient that is neither too small nor too large anywhere on its way."""
    if len(flow.order) < 2:
        only = flow.shown(flow.order[0])
        return "there is one layer only" if flow.step.depth == 1 else f"only {only} has a gradient"
    told: list[str] = []
    covered: set[int] = set()
    # Of the two lines of a stack the one that changes more.
    for path in sorted(lines, key=lambda path: (-len(path.rows), -abs(path.line.total))):
        line = path.line
        is_first_call = not any(flow.step.calls[row] for row in path.rows)
        if path.rows & covered or len(line.values) - line.first < 2 or len(told) > 2 or not is_first_call:
            continue
        covered |= path.rows
        if not told and len(path.rows) >= 0.7 * len(flow.order) and not path.is_stack:
            return course(line)
        told.append(f"{power(line.total)} from {named(line.labels[-1])} to {named(line.labels[line.first])}")
    if told:
        return f"towards the input the gradient changes by {', '.join(told)}"
    value = flow.by_module()
    lowest = [row for row in flow.sources if np.isfinite(value[row]) and row not in flow.ends]
    if not lowest:
        return f"the loss gives a gradient to {', '.join(map(flow.shown, flow.ends[:3]))}, which feed no other layer"
    row = max(lowest, key=lambda row: value[row])
    return _from_end(flow, row, float(value[row] - value[flow.top(row)]))[0]
