"""A measurement as plain text: the verdict, the profile, and a table by block and role."""

import shutil
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from gradexp.history.columns import columns_of, power_of_ten
from gradexp.history.finding import Finding
from gradexp.history.folding import Fold, blocks_name, folded
from gradexp.history.headline import headline, wrapped
from gradexp.history.heights import Picture, Scale
from gradexp.history.layout import Layout
from gradexp.history.roles import places
from gradexp.history.sentences import loss_text
from gradexp.history.short_names import short_names, shown_name
from gradexp.history.step import STATUSES, Step
from gradexp.history.verdict import gradient_verdict

_FEW = 30  # rows that are shown one by one


def terminal_width() -> int:
    """Return the width of the terminal, or of the variable COLUMNS; 80 without one."""
    return max(shutil.get_terminal_size().columns, 40)


def table(step: Step, decades: float = 3.0, width: int | None = None) -> str:
    """Return the verdict with its findings, the profile, and a table.

    Up to 30 rows each has a line, with a mark for its output gradient on a scale of powers of ten around that of the
    last layer. Of deeper networks the blocks fold: the layers of one role are a line with the range of each number
    and the profile over the blocks. Layers that differ in status, that a finding names, or that are off the line of
    their neighbours have lines of their own.

    Args:
        step: The measurement.
        decades: The threshold: over all layers below 10^-decades the gradient vanishes, above 10^decades it explodes.
        width: Characters of a line; None: those of the terminal.
    """
    width = terminal_width() if width is None else width
    findings, lines, limits = step.findings, [], []
    if "output_grad" in step.log10:
        verdict = gradient_verdict(step, decades)
        findings = verdict.findings
        lines = [*headline(verdict, width), ""]
        text = f"(vanishing: below 10^-{decades:g} in all, exploding: above 10^+{decades:g})"
        limits = ["", *wrapped(text, width)]
    rows = _Rows(step, findings)
    return "\n".join([*lines, *rows.totals(), *rows.profile(width), *rows.lines(width), *limits])


class _Rows:
    """The rows of a step, as lines of text."""

    def __init__(self, step: Step, findings: Sequence[Finding]) -> None:
        self.step = step
        self.names = [shown_name(name, call) for name, call in zip(step.names, step.calls, strict=True)]
        self.places = places(step.names, step.calls)
        self.kinds = [_kind_of(name, findings) for name in step.names]
        self.statuses = [
            _worst({quantity: STATUSES[codes[0, row]] for quantity, codes in step.status.items()})
            for row in range(step.depth)
        ]
        has_gradient = "output_grad" in step.log10
        self.log10 = step.profile("output_grad") if has_gradient else np.full(step.depth, np.nan)
        self.seen = [STATUSES[code] for code in step.status["output_grad"][0]] if has_gradient else [""] * step.depth
        self.scale = Scale.of(self.log10)

    def totals(self) -> list[str]:
        """Return the loss and the norm of all gradients, which no row has."""
        parts = []
        loss, total = self.step.loss, self.step.total_grad
        if loss is not None and np.isfinite(loss).any():
            parts.append(f"loss {loss_text(float(np.nanmean(loss)))}")
        if total is not None and np.isfinite(total).any():
            parts.append(f"norm of all gradients {power_of_ten(float(np.nanmean(total)), '')}")
        return [", ".join(parts), ""] if parts else []

    def profile(self, width: int) -> list[str]:
        """Return the output gradient from input to output, the largest of each block, as heights between its ends."""
        ends = self.step.ends("output_grad") if "output_grad" in self.step.log10 else None
        if ends is None or self.scale is None or self.step.depth <= _FEW:
            return []
        first, last = ends[0] - 1, ends[1] - 1
        rows = range(first, last + 1)
        blocks = [
            [*block]
            for _, block in groupby(
                rows, lambda row: row if self.places[row].block is None else (*self.places[row][:2], None)
            )
        ]
        log10 = [max((x for x in self.log10[block] if np.isfinite(x)), default=np.nan) for block in blocks]
        seen = [_worst_seen([self.seen[row] for row in block]) for block in blocks]
        names = short_names([self.names[row] for row in (first, last)], width - 12)
        left, right = (
            f"{name} {power_of_ten(self.log10[row], self.seen[row])}"
            for name, row in zip(names, (first, last), strict=True)
        )
        gap = width - len(left) - len(right)
        largest = ", largest of each block" if len(blocks) < len(rows) else ""
        height = "a power of ten" if self.scale.step < 1.05 else f"{self.scale.step:.1f} powers of ten"
        return [
            *wrapped(f"back-propagated gradient ∂L/∂z, input to output{largest} (a step of a bar: {height})", width),
            self.scale.heights(log10, seen, width),
            *([left + " " * gap + right] if gap > 0 else [left, f"{right:>{width}}"]),
            "",
        ]

    def lines(self, width: int) -> list[str]:
        """Return the table, and below it one of the statistics that have no room in it."""
        folds = self._folds()
        status = [self._status(fold) for fold in folds]
        if all(word in ("ok", "frozen") for word in status):
            status = []
        longest = max((len(fold.rows) for fold in folds), default=1)
        picture = Picture(self.scale, self.log10, self.seen, longest) if self.scale else None
        headings = {fold.stack: self._heading(fold.stack, folds, width) for fold in folds if fold.stack}
        layout = Layout(folds, columns_of(self.step), status, headings, picture, width)
        lines, left_out = layout.lines(), [" ".join(column.head) for column in layout.rest if not column.is_extra]
        rest = [column for column in layout.rest if column.is_extra]
        while rest:
            filled = [fold for fold in folds if any(column.cell(fold.rows, 1) for column in rest)]
            layout = Layout(filled or folds, rest, [], headings, None, width)
            lines += ["", *layout.lines()]
            rest = layout.rest
        if left_out:
            lines += wrapped(f"(not shown: {', '.join(left_out)}; see to_dataframe())", width)
        return lines

    def _folds(self) -> list[Fold]:
        if self.step.depth <= _FEW:
            return [Fold((row,), "", name) for row, name in enumerate(self.names)]
        kinds = [
            (status, kind, *(codes[0, row] for codes in self.step.status.values()))
            for row, (status, kind) in enumerate(zip(self.statuses, self.kinds, strict=True))
        ]
        return folded(self.places, self.names, kinds, self.log10)

    def _status(self, fold: Fold) -> str:
        """Return the status of a line, or the kind of what was found there."""
        status, kind = self.statuses[fold.rows[0]], self.kinds[fold.rows[0]]
        return kind if kind and status == "ok" else status

    def _heading(self, stack: str, folds: list[Fold], width: int) -> str:
        """Return the line above the roles of a stack."""
        rows = [row for fold in folds if fold.stack == stack for row in fold.rows]
        rows.sort(key=lambda row: self.places[row].block or 0)
        inside = [self.places[row] for row in rows]
        (name,) = short_names([blocks_name(inside, self.step.names[rows[0]], with_role=False)], width - 24)
        return f"{name}: {len({place.block for place in inside})} {'calls' if inside[0].is_call else 'blocks'}"


def _kind_of(name: str, findings: Sequence[Finding]) -> str:
    """Return the kind of the worst finding that names a module, or what it is in."""
    for finding in findings:
        if finding.severity > 0 and any(name == own or name.startswith(f"{own}.") for own in finding.modules if own):
            return finding.kind
    return ""


def _worst_seen(statuses: Sequence[str]) -> str:
    """Return why a block has no number: one inf is enough, zeros must be all."""
    return "nonfinite" if "nonfinite" in statuses else statuses[0]


def _worst(codes: dict[str, str]) -> str:
    """Return the most telling status of a layer; having no weight to train tells least."""
    order = ("nonfinite", "zero", "hook_missed", "subnormal", "unused", "not_called", "frozen")
    gradients = [status for quantity, status in codes.items() if quantity != "weight_grad" or status != "frozen"]
    return next((status for status in order if status in (gradients or codes.values())), "ok")
