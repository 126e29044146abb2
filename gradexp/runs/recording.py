"""What is recorded of a training while it goes on, so that a dashboard can follow it."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradexp.history.step import Array
from gradexp.networks.alone import Alone
from gradexp.networks.chain import Chain
from gradexp.networks.mlp import MLP, evaluating
from gradexp.probe.one_node import OneNodeProbe
from gradexp.probe.probe import GradientProbe
from gradexp.runs.result import Distribution, Result

# Layers whose outputs are kept for histograms, and how many bins these have.
_LAYERS, _BINS = 5, 40
# Seconds between two looks at what the probe has, and their largest share of the time: a look at 100,000 steps of
# 150 layers takes seconds.
_BETWEEN = 5.0
_SHARE = 0.02


class Recording:
    """Keeps the results of some runs up to date while their networks are trained together.

    Args:
        results: One per network of the stack.
        model: The stack.
        probe: The probe that records its training.
        x: Inputs of which outputs are kept for histograms, shape ``(batch, n_0)``.
    """

    def __init__(
        self, results: Sequence[Result], model: MLP | Alone, probe: GradientProbe | OneNodeProbe, x: Tensor
    ) -> None:
        self.results = results
        self.model = model
        self.probe = probe
        self.x = x
        config = results[0].config
        tenths = {round(config.steps * tenth / 10) for tenth in range(1, 11)}
        self._sampled_after = tenths if config.record.histograms else set[int]()
        self._due = time.monotonic() + _BETWEEN

    def after(self, step: int) -> None:
        """Update the results after a step, if it is time to."""
        begin = time.monotonic()
        if len(self.results) == 1 and begin >= self._due:  # of a stack nobody follows a single network
            self.read()
            end = time.monotonic()
            self._due = end + max(_BETWEEN, (end - begin) / _SHARE)
        if step + 1 in self._sampled_after:
            sample_outputs(self.results, self.model, self.x, step + 1)

    def read(self) -> None:
        """Copy the gradients that the probe has recorded so far into each result."""
        for result in self.results:
            result.gradients = None  # before another copy is made
        gradients = self.probe.history
        for index, result in enumerate(self.results):
            last = result.training.diverged_at if result.training is not None else None
            result.gradients = gradients.of_networks(slice(index, index + 1), last)


@torch.no_grad()
def sample_outputs(results: Sequence[Result], model: MLP | Alone, x: Tensor, step: int) -> None:
    """Keep histograms of the outputs z of a handful of layers.

    Args:
        results: One per network of the stack, which get the histograms; those of diverged networks get none.
        model: The stack.
        x: Inputs, shape ``(batch, n_0)``.
        step: Number of training steps so far.
    """
    assert results[0].initial is not None
    names = results[0].initial.names
    layers = np.unique(np.linspace(1, len(names), _LAYERS).round().astype(int)).tolist()
    weight = next(model.parameters())
    x = x.to(weight.dtype).to(weight.device)
    with evaluating(model):
        captured = _outputs(model, x, {layer: names[layer - 1] for layer in layers})
    for index, result in enumerate(results):
        if result.training is None or result.training.diverged_at is None:
            outputs = {layer: distribution(output[index].cpu().numpy()) for layer, output in captured.items()}
            histograms = {layer: histogram for layer, histogram in outputs.items() if histogram is not None}
            result.outputs.append((step, histograms))


def _outputs(model: MLP | Alone, x: Tensor, layers: dict[int, str]) -> dict[int, Tensor]:
    """Return the outputs of some layers by their number, each with a leading network dimension."""
    captured: dict[int, Tensor] = {}
    if isinstance(model, Alone) and isinstance(model.module, Chain):
        h, steps = model.module.unrolled(x)
        for layer, row in enumerate(steps, 1):
            h = row.run(h)
            if layer in layers:
                captured[layer] = h.unsqueeze(0)
        return captured

    def keep(layer: int, _module: Any, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            captured[layer] = output if isinstance(model, MLP) else output.unsqueeze(0)

    owner = model if isinstance(model, MLP) else model.module
    hooks = [owner.get_submodule(name).register_forward_hook(partial(keep, layer)) for layer, name in layers.items()]
    try:
        model(x.expand(model.networks, *x.shape))
    finally:
        for hook in hooks:
            hook.remove()
    return captured


def distribution(values: Array) -> Distribution | None:
    """Return the histogram of some numbers, or None if none is finite.

    Examples:
        >>> int(distribution(np.array([0.0, 1.0, 1.0])).counts.sum())
        3
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return None
    low, high = finite.min(), finite.max()
    if low == high:
        low, high = low - 0.5, high + 0.5
    share = np.linspace(0, 1, _BINS + 1)
    edges = low * (1 - share) + high * share  # their distance need not fit into a number
    with np.errstate(over="ignore"):
        counts, _ = np.histogram(finite, edges)
        return Distribution(counts, edges, float(finite.sum()), float(np.square(finite).sum()))
