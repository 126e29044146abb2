"""What is recorded of a training while it goes on, so that a dashboard can follow it."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradexp.history.step import Array
from gradexp.networks.mlp import MLP, evaluating
from gradexp.probe.one_node import OneNodeProbe
from gradexp.probe.probe import GradientProbe
from gradexp.runs.precision import precision_of
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

    def __init__(self, results: Sequence[Result], model: MLP, probe: GradientProbe | OneNodeProbe, x: Tensor) -> None:
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
def sample_outputs(results: Sequence[Result], model: MLP, x: Tensor, step: int) -> None:
    """Keep histograms of the outputs z of a handful of layers.

    Args:
        results: One per network of the stack, which get the histograms; those of diverged networks get none.
        model: The stack.
        x: Inputs, shape ``(batch, n_0)``.
        step: Number of training steps so far.
    """
    captured: dict[int, Tensor] = {}

    def keep(layer: int, _module: Any, _inputs: Any, output: Tensor) -> None:
        captured[layer] = output.cpu().double()  # numpy has no bfloat16

    layers = np.unique(np.linspace(1, model.depth, _LAYERS).round().astype(int)).tolist()
    hooks = [model.layers[layer - 1].register_forward_hook(partial(keep, layer)) for layer in layers]
    try:
        weight = next(model.parameters())
        with evaluating(model), precision_of(results[0].config, weight.device).casting():
            model(x.to(weight.dtype).to(weight.device).expand(model.networks, *x.shape))
    finally:
        for hook in hooks:
            hook.remove()
    for index, result in enumerate(results):
        if result.training is None or result.training.diverged_at is None:
            outputs = {layer: distribution(output[index].numpy()) for layer, output in captured.items()}
            histograms = {layer: histogram for layer, histogram in outputs.items() if histogram is not None}
            result.outputs.append((step, histograms))


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
