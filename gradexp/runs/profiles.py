"""The profile at initialisation of one network that is no MLP."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gradexp.exact.chain import chain_profile
from gradexp.exact.samples import unit_cotangents
from gradexp.history.history import History
from gradexp.history.step import Quantity, mean_over_networks
from gradexp.networks.chain import Chain
from gradexp.networks.mlp import evaluating
from gradexp.probe.probe import GradientProbe


def profile(model: nn.Module, x: Tensor, seed: int, progress: Callable[[int, int], None] | None = None) -> History:
    """Measure a network in float64, with a cotangent of length 1 at the output of each sample.

    A chain of steps is measured with exponents carried, at any depth. Another model is measured by the probe, where
    sizes must stay within float64: a row is a module, its output that of the batch, its output gradient the mean over
    samples of log10, and its weight gradient that of the batch divided by √samples, which is the size of one sample's
    where those of different samples are in no relation. So is the output gradient where a module's first dimension
    does not count samples: with time first, with all tokens in one dimension, inside of ``nn.LSTM``.

    Args:
        model: The network; not changed.
        x: Inputs, shape ``(batch, features)``.
        seed: Seed of the cotangents.
        progress: A function of (steps done, steps in all).
    """
    if isinstance(model, Chain):
        return chain_profile(model, x, seed=seed, progress=progress)
    model = copy.deepcopy(model).double()
    x = x.to(next(model.parameters()).device, torch.float64)
    quantities: tuple[Quantity, ...] = ("output", "output_grad", "weight_grad")
    probe = GradientProbe(model, quantities=quantities, per_sample=True, stats={"largest": _log10_largest})
    with evaluating(model), probe:
        y = model(x)
        cotangent = unit_cotangents(seed, len(x), y.shape[-1]).to(x.device)
        (y * cotangent).sum().backward()
        probe.collect(0)
    measured = probe.history
    of_one = 0.5 * math.log10(len(x))
    log10 = {**measured.log10, "weight_grad": measured.log10["weight_grad"] - of_one}
    samples = measured.samples
    assert samples is not None
    has_samples = (~np.isnan(samples)).sum(axis=-1) == len(x)
    samples = np.where(has_samples[..., None], samples, np.nan)
    log10["output_grad"] = np.where(
        has_samples, mean_over_networks(np.moveaxis(samples, -1, 0)), log10["output_grad"] - of_one
    )
    return replace(
        measured,
        phase="init",
        seeds=[seed],
        log10=log10,
        largest_log10={quantity: measured.stats[f"{quantity}.largest"] for quantity in ("output", "output_grad")},
        stats={},
        samples=samples[..., :1],
        total_grad=None,  # of a sum over samples
        loss=None,
    )


def _log10_largest(values: Tensor) -> Tensor:
    return values.abs().max().log10()
