"""Whether the network still tells its inputs apart."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.alike import ENOUGH_NUMBERS, ENOUGH_SAMPLES, Course, has_samples, mean_cosine
from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import loss_terms
from gradexp.diagnosis.rows import Row, Rows, add_statistic, has_weights
from gradexp.history.finding import Finding
from gradexp.history.history import History
from gradexp.history.sentences import named
from gradexp.probe.calls import tensors_in

# Alike from this mean cosine on, with differences this many times smaller than those of the inputs. Gradients for
# what samples share are then some 50 times larger than those for what tells them apart.
_ALIKE, _TIMES, _MANY_TIMES = 0.99, 40.0, 1000.0
# Inputs that are this much alike are one input.
_SAME = 1 - 1e-5
# What comes last must be nearly as alike, if it is more than a sign: a layer with large biases may look alike alone.
_A_FEW, _ALIKE_AFTER = 3, 0.95


class Collapse(Observer):
    """Finds the module from which on all samples look alike: the mean cosine of pairs of samples is near 1.

    Samples are along the first dimension. With unit vectors ``x_s`` the mean over pairs is
    ``(‖Σ x_s‖² - n) / (n (n - 1))``. What a later module, such as batch normalisation, tells apart again is no
    collapse, nor is what a skip connection carries past it: see ``Course``.
    """

    def begin(self, examination: Examination) -> None:
        """Look at the inputs."""
        self._rows = Rows(examination.model)
        self._course = Course()
        self._cosines: dict[Row, Tensor] = {}
        self._widths: dict[Row, int] = {}
        self._norms: dict[Row, str] = {}
        self._ends: dict[Row, Node | None] = {}
        self._inputs = _with_samples(examination.inputs)
        self._samples = _samples(self._inputs, _with_samples(examination.targets))

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Take the cosine of what the call returned, if it is one tensor with all samples."""
        row = self._rows.next_call(module)
        if not self._samples and not self._inputs:  # a loss without a batch
            self._inputs = _with_samples(args)
            self._samples = _samples(self._inputs, [])
        self._course.see_call(module, args, output, self._samples)
        if has_weights(module) and has_samples(output, self._samples):
            self._widths[row] = output.numel() // self._samples
            self._norms[row] = _norm_after(module)
            self._ends[row] = output.grad_fn
            self._cosines[row] = self._course.cosine(output, self._samples)
            self._course.see_row(row, output)

    def see_loss(self, examination: Examination) -> None:
        """See whether the output is that of a classifier, whose logits may rightly be alike."""
        kinds = {term.kind for term in loss_terms(examination)}
        is_classifier = bool(kinds & {"cross entropy", "binary cross entropy"})
        self._logits = _logits(tensors_in(examination.output)) if is_classifier else set()

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return the module at which it begins, or that the inputs themselves are alike."""
        history = examination.history
        assert history is not None
        rows = [row for row in zip(history.names, history.calls, strict=True) if row in self._cosines]
        values = torch.stack([self._cosines[row].cpu() for row in rows]).tolist() if rows else []
        cosines = dict(zip(rows, values, strict=True))
        add_statistic(history, "output.cosine", cosines)
        wide = [
            row
            for row in rows
            if self._widths[row] >= ENOUGH_NUMBERS
            and self._ends[row] not in self._logits
            and not math.isnan(cosines[row])
        ]
        before = self._of_inputs()
        if before is not None and before >= _SAME:
            text = f"all {self._samples} inputs are alike: their mean cosine is 1"
            text += f" up to {1 - before:.1g}" if before < 1 else ""
            remedy = "different samples in the batch; if they do differ, x - x.mean(0)"
            yield Finding("inputs alike", text, (), remedy, 1)
            return
        apart = 1 - (before or 0.0)
        limit = max(_ALIKE, 1 - apart / _TIMES)
        alike = []
        for row in reversed(wide):
            if cosines[row] < limit:
                break
            alike.append(row)
        is_told_apart = bool(rows) and self._widths[rows[-1]] >= _A_FEW and cosines[rows[-1]] < _ALIKE_AFTER
        if not alike or is_told_apart:
            return
        carried = self._course.is_told_apart_after(alike[0], limit, self._logits)
        if carried if carried is not None else _is_bypassed(history, set(alike), {*wide} - {*alike}):
            return
        first, last = alike[-1], alike[0]
        text = f"from {named(first[0])} on all {self._samples} samples look alike: mean cosine "
        text += f"{cosines[first]:.4f} there"
        if first[0] != last[0]:
            text += f", {cosines[last]:.4f} at {named(last[0])}"
        if before is not None:
            text += f"; {round(before, 2) + 0.0:.2f} for the inputs"  # no -0.00
        severity = 2 if 1 - cosines[last] < apart / _MANY_TIMES else 1
        norms = " or ".join(dict.fromkeys(self._norms[row] for row in reversed(alike)))
        remedy = f"{norms} before each activation; for up to 30 ReLU layers also gradexp.initialize(model, 'he')"
        names = tuple(dict.fromkeys(name for name, _ in reversed(alike)))
        yield Finding("inputs collapse", text, names, remedy, severity)

    def _of_inputs(self) -> float | None:
        """Return the mean cosine of the inputs; of tokens only whether they are all the same."""
        for x in self._inputs:
            if len(x) != self._samples or self._samples < ENOUGH_SAMPLES or x.layout is not torch.strided:
                continue
            flat = x.detach().reshape(self._samples, -1)
            if not x.is_floating_point():
                return 1.0 if flat.shape[1] > 1 and bool((flat == flat[:1]).all()) else None
            if flat.shape[1] >= ENOUGH_NUMBERS:
                cosine = mean_cosine(flat).item()
                return None if math.isnan(cosine) else cosine
            return 1.0 if bool((flat == flat[:1]).all()) else None
        return None


def _norm_after(module: nn.Module) -> str:
    """Return the normalisation over the batch that fits a layer's output, as it is typed."""
    dimensions = next((n for n, kinds in _CONVOLUTIONS.items() if isinstance(module, kinds)), 0)
    return f"nn.BatchNorm{dimensions}d(channels)" if dimensions else "nn.BatchNorm1d(width)"


_CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}


def _with_samples(value: Any) -> list[Tensor]:
    """Return the tensors that have a first dimension, which nested ones have not."""
    return [x for x in tensors_in(value) if x.dim() and not x.is_nested]


def _samples(inputs: list[Tensor], targets: list[Tensor]) -> int:
    """Return how many samples there are: along the first dimension, or the second of sequences with time first."""
    if not inputs:
        return len(targets[0]) if targets else 0
    shape = inputs[0].shape
    is_time_first = bool(targets) and len(shape) > 2 and shape[1] == len(targets[0]) != shape[0]
    return shape[1 if is_time_first else 0]


def _logits(outputs: Iterable[Tensor]) -> set[Node | None]:
    """Return the nodes that end the last layer, before a shape or a probability is made of it."""
    nodes: set[Node | None] = set()
    for output in outputs:
        node = output.grad_fn
        while node is not None:
            nodes.add(node)
            is_last = not node.name().startswith(("View", "Squeeze", "Sigmoid", "Softmax", "LogSoftmax"))
            node = None if is_last else node.next_functions[0][0]
    return nodes


def _is_bypassed(history: History, alike: set[Row], apart: set[Row]) -> bool:
    """Return whether what tells samples apart reaches the loss past all rows that do not."""
    rows = [*zip(history.names, history.calls, strict=True)]
    reached = {index for index, row in enumerate(rows) if row in apart}
    closed = {index for index, row in enumerate(rows) if row in alike}
    while new := {b for a, b in history.feeds if a in reached} - reached - closed:
        reached |= new
    return len(rows) in reached
