"""What is recorded of a training while it goes on, so that a dashboard can follow it."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradexp.models import MLP
from gradexp.probe import GradientProbe
from gradexp.result import Result

SAMPLED = 5
"""Layers whose outputs are kept for histograms, spread evenly from the first to the last."""

# Seconds between two looks at what the probe has, and their largest share of the time.
_BETWEEN = 5.0
_SHARE = 0.02


class Recording:
    """Keeps the results of some runs up to date while their networks are trained together.

    Args:
        results: Of each network of the stack.
        model: The stack.
        probe: What records it.
        x: Inputs of which outputs are kept for histograms, shape ``(batch, n_0)``.
    """

    def __init__(self, results: Sequence[Result], model: MLP, probe: GradientProbe, x: Tensor) -> None:
        self.results = results
        self.model = model
        self.probe = probe
        self.x = x
        config = results[0].config
        self._profile_steps = set(config.record.profile_steps)
        between = max(1, config.steps // 10)
        sampled = {*range(between, config.steps, between), config.steps}
        self._sampled_after = sampled if config.record.histograms else set[int]()
        self._due = time.monotonic() + _BETWEEN

    def after(self, step: int) -> None:
        """Take in what there is after a step, where that is due."""
        begin = time.monotonic()
        if step in self._profile_steps or begin >= self._due:
            self.read(self.results[:1])  # of which alone the sinks are told
            end = time.monotonic()
            self._due = end + max(_BETWEEN, (end - begin) / _SHARE)
        if step + 1 in self._sampled_after:
            sample_outputs(self.results, self.model, self.x, step + 1)

    def read(self, results: Sequence[Result] | None = None) -> None:
        """Give each result the gradients that the probe has recorded so far."""
        gradients = self.probe.history
        for index, result in enumerate(self.results if results is None else results):
            last = result.training.diverged_at if result.training is not None else None
            result.gradients = gradients.of_networks(slice(index, index + 1), last)


@torch.no_grad()
def sample_outputs(results: Sequence[Result], model: MLP, x: Tensor, step: int) -> None:
    """Keep the outputs z of a handful of layers for some inputs, after so many training steps.

    Args:
        results: Of each network of the stack, which get them. Those of networks that have diverged do not.
        model: The stack.
        x: Shape ``(batch, n_0)``.
        step: How many steps it has been trained for.
    """
    seen: dict[int, Tensor] = {}

    def keep(layer: int, _module: Any, _inputs: Any, output: Tensor) -> None:
        seen[layer] = output.cpu()

    layers = _spread(model.depth)
    hooks = [model.layers[layer - 1].register_forward_hook(partial(keep, layer)) for layer in layers]
    try:
        weight = next(model.parameters())
        model(x.to(weight.device, weight.dtype).expand(model.networks, *x.shape))
    finally:
        for hook in hooks:
            hook.remove()
    for index, result in enumerate(results):
        if result.training is None or result.training.diverged_at is None:
            result.outputs.append((step, {layer: output[index].numpy() for layer, output in seen.items()}))


def _spread(depth: int) -> list[int]:
    """Return the layers at the quarters of a depth, each once."""
    return sorted({1 + round((depth - 1) * part / (SAMPLED - 1)) for part in range(SAMPLED)})
