"""Phase diagram: which weight and bias variances let a deep network be trained, by theory and by measurement.

``python -m gradexp.phase`` draws what is computed here.
"""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gradexp import theory
from gradexp.exact.profile import exact_profile
from gradexp.history.step import Array
from gradexp.networks.activations import activation
from gradexp.networks.initialize import initialize
from gradexp.networks.mlp import MLP
from gradexp.theory.critical import attracts, critical_line
from gradexp.theory.mean_field import Moments, is_piecewise_linear
from gradexp.theory.mean_field_grid import QUANTITIES, mean_fields

Progress = Callable[[int, int], object]

# Bytes of weights that are measured at a time, at several weight scales.
_STACKED = 1 << 28


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Mean field on a grid.

    Args:
        activation: Name of the activation.
        sigma_w2: Weight variances fan_in · Var(W), shape ``(column,)``.
        sigma_b2: Bias variances, shape ``(row,)``.
        values: Each of ``QUANTITIES``, shape ``(row, column)``; a length or depth scale may be infinite.
        edge: Points (sigma_w2, sigma_b2) where chi_1 = 1, shape ``(point, 2)``; nan where the line is broken.
    """

    activation: str
    sigma_w2: Array
    sigma_b2: Array
    values: dict[str, Array]
    edge: Array

    @property
    def rate(self) -> Array:
        """1 / xi_c, negative in the chaotic phase: it passes 0 smoothly at the edge, where xi_c is infinite."""
        return np.where(self.values["chi_1"] > 1, -1, 1) / np.maximum(self.values["xi_c"], 1e-9)


class MeasuredPoint(NamedTuple):
    """Networks measured at one point of the plane."""

    activation: str
    sigma_w2: float
    sigma_b2: float
    width: int
    depth: int
    networks: int
    log_chi: float | None
    log_chi_se: float | None
    log_chi_theory: float | None


class WeightScalePoint(NamedTuple):
    """One weight scale lambda, and log10 of ‖δ¹‖ / ‖δᴸ‖ there; ``measured`` is None where nothing was measured."""

    activation: str
    weights: str
    weight_scale: float
    width: int
    depth: int
    predicted: float | None
    measured: float | None
    measured_se: float | None


def phase_plane(
    name: str,
    sigma_w2: Sequence[float] | Array,
    sigma_b2: Sequence[float] | Array,
    negative_slope: float = 0.01,
    progress: Progress | None = None,
) -> PhaseDiagram:
    """Compute mean field on a grid.

    Args:
        name: Name of the activation.
        sigma_w2: Columns of the grid.
        sigma_b2: Rows of the grid.
        negative_slope: Slope of ``leaky_relu`` below 0.
        progress: Function that is called with (points done, points in all).

    Examples:
        >>> plane = phase_plane("relu", [1.0, 2.0], [0.0])
        >>> plane.values["chi_1"].tolist()
        [[0.5, 1.0]]
    """
    phi = activation(name, negative_slope)
    w2, b2 = (
        grid.ravel() for grid in np.meshgrid(np.asarray(sigma_w2, np.float64), np.asarray(sigma_b2, np.float64))
    )
    values = mean_fields(phi, w2, b2, progress)
    shape = len(sigma_b2), len(sigma_w2)
    return PhaseDiagram(
        name,
        np.asarray(sigma_w2, dtype=np.float64),
        np.asarray(sigma_b2, dtype=np.float64),
        {quantity: values[quantity].reshape(shape) for quantity in QUANTITIES},
        _edge(name, negative_slope, max(sigma_b2)),
    )


def _edge(name: str, negative_slope: float, highest: float) -> Array:
    phi = activation(name, negative_slope)
    if is_piecewise_linear(phi):  # chi does not depend on lengths
        critical = theory.critical_sigma_w2(phi)
        return np.array([[critical, 0.0], [critical, highest]])
    q = torch.logspace(-8, 4, 800, dtype=torch.float64)
    w2, b2 = critical_line(phi, q)
    exists = (b2 > -1e-12) & attracts(w2, Moments.at(phi, q))
    return np.asarray(torch.stack([w2, b2.clamp(min=0)], dim=1).where(exists.unsqueeze(1), torch.nan).numpy())


def measure_dots(
    name: str,
    points: Iterable[tuple[float, float]],
    width: int,
    depth: int,
    seeds: Sequence[int],
    negative_slope: float = 0.01,
    progress: Progress | None = None,
) -> list[MeasuredPoint]:
    """Measure real networks at some points (sigma_w2, sigma_b2).

    Args:
        name: Name of the activation.
        points: Points to measure at.
        width: Units of every layer.
        depth: Number of weight matrices L.
        seeds: Neighbouring seeds, one of each network.
        negative_slope: Slope of ``leaky_relu`` below 0.
        progress: Function that is called with (points done, points in all).
    """
    points, widths = list(points), [width] * (depth + 1)
    x = torch.ones(1, width, dtype=torch.float64)
    dots = []
    for done, (w2, b2) in enumerate(points, 1):
        stack = MLP(widths, name, networks=len(seeds), negative_slope=negative_slope, dtype=torch.float64, draw=False)
        initialize(stack, "mean_field", seed=seeds[0], sigma_w2=w2, sigma_b2=b2)
        found = exact_profile(stack, x, seeds=seeds).at()
        predicted = theory.predict(name, w2, b2, width, depth, negative_slope=negative_slope).log_chi
        slopes = found.log_chi(), found.log_chi_se(), predicted
        dots.append(MeasuredPoint(name, w2, b2, width, depth, len(seeds), *slopes))
        if progress is not None:
            progress(done, len(points))
    return dots


def weight_scales(
    names: Sequence[str],
    scales: Sequence[float] | Array,
    dots: Sequence[float] | Array,
    width: int,
    depth: int,
    seeds: Sequence[int],
    negative_slope: float = 0.01,
    progress: Progress | None = None,
) -> list[WeightScalePoint]:
    """Predict and measure how far the gradient shrinks or grows over a network, against the scale of its weights.

    Weights are lambda times the identity, or Gaussian of standard deviation lambda / √width; there are no biases, and
    the input is (1, ..., 1).

    Args:
        names: Names of the activations.
        scales: Weight scales at which theory predicts.
        dots: Weight scales at which networks are measured.
        width: Units of every layer.
        depth: Number of weight matrices L.
        seeds: Neighbouring seeds, one of each Gaussian network; an identity is the same for every seed.
        negative_slope: Slope of ``leaky_relu`` below 0.
        progress: Function that is called with (points done, points in all).

    Returns:
        The predictions, followed by the measurements, of each activation and kind of weights.

    Examples:
        >>> points = weight_scales(["linear"], [1.5], [1.5], width=2, depth=150, seeds=[0])
        >>> round(points[1].predicted, 4), round(points[1].measured, 4)  # 149 log10(1.5)
        (26.2376, 26.2376)
    """
    kinds = [(name, weights) for name in names for weights in ("identity", "gaussian")]
    # Drawn once: at another scale all weights are multiples of these.
    drawn = (
        {weights: _drawn(weights, width, depth, seeds) for weights in ("identity", "gaussian")} if len(dots) else {}
    )
    total, points = len(kinds) * (len(scales) + len(dots)), list[WeightScalePoint]()
    for name, weights in kinds:
        predictions: dict[float, float | None] = {}  # a dot may lie where theory predicts anyway
        measured = _measure_scales(drawn[weights], name, dots, seeds, negative_slope) if len(dots) else iter(())
        unmeasured = ((None, None) for _ in scales)
        for scale, found in zip(map(float, [*scales, *dots]), chain(unmeasured, measured), strict=True):
            if scale not in predictions:
                predictions[scale] = _predict_scale(name, weights, scale, width, depth, negative_slope)
            points.append(WeightScalePoint(name, weights, scale, width, depth, predictions[scale], *found))
            if progress is not None:
                progress(len(points), total)
    return points


def _drawn(weights: str, width: int, depth: int, seeds: Sequence[int]) -> MLP:
    """Return networks at weight scale 1; of identities one, since all seeds have the same."""
    init, networks = ("identity", 1) if weights == "identity" else ("mean_field", len(seeds))
    stack = MLP([width] * (depth + 1), "linear", networks=networks, dtype=torch.float64, draw=False)
    initialize(stack, init, seed=seeds[0])
    return stack


def _measure_scales(
    drawn: MLP, name: str, scales: Sequence[float] | Array, seeds: Sequence[int], negative_slope: float
) -> Iterator[tuple[float | None, float | None]]:
    """Yield log10 of the ratio of first and last output gradient, and its standard error, at each weight scale.

    As many scales are one stack as fit into memory: calls take more time than the sums of so small layers.
    """
    networks, widths = drawn.networks, drawn.widths
    x = torch.ones(1, widths[0], dtype=torch.float64)
    at_once = max(1, _STACKED // sum(weight.nbytes for weight in drawn.parameters()))
    for start in range(0, len(scales), at_once):
        some = torch.as_tensor(scales[start : start + at_once], dtype=torch.float64)
        stack = _scaled(drawn, some, name, negative_slope)
        profiles = exact_profile(stack, x, seeds=[*seeds[:networks]] * len(some))
        for first in range(0, stack.networks, networks):
            of_scale = profiles.of_networks(slice(first, first + networks)).at()
            error = of_scale.log_chi_se()
            error = None if error is None else error * (drawn.depth - 1) / (2 * math.log(10))
            yield of_scale.first_over_last("output_grad"), error
        del stack  # before the next one is made


def _scaled(drawn: MLP, scales: torch.Tensor, name: str, negative_slope: float) -> MLP:
    """Return networks with another activation, whose weights are multiples of these, at one scale after another."""
    networks = len(scales) * drawn.networks
    stack = MLP(drawn.widths, name, networks=networks, negative_slope=negative_slope, dtype=torch.float64, draw=False)
    with torch.no_grad():
        for weight, source in zip(stack.parameters(), drawn.parameters(), strict=True):
            factors = scales.reshape(-1, *[1] * source.dim())
            torch.mul(source, factors, out=weight.data.view(len(scales), *source.shape))
    return stack


def _predict_scale(
    name: str, weights: str, scale: float, width: int, depth: int, negative_slope: float
) -> float | None:
    law = theory.WeightLaw(scale**2, diagonal=scale if weights == "identity" else None)
    x = torch.ones(1, width, dtype=torch.float64)
    phi = activation(name, negative_slope)
    prediction = theory.predict_layers(phi, [law] * depth, [width] * (depth + 1), x)
    return prediction.first_over_last if prediction.valid else None


def write_plane(path: Path, plane: PhaseDiagram) -> None:
    """Write one row per point; empty where a quantity is infinite."""
    columns = ("activation", "sigma_w2", "sigma_b2", *QUANTITIES)
    rows = [
        (plane.activation, w2, b2, *(plane.values[quantity][row, column] for quantity in QUANTITIES))
        for row, b2 in enumerate(plane.sigma_b2)
        for column, w2 in enumerate(plane.sigma_w2)
    ]
    _write(path, columns, rows)


def write_rows(path: Path, rows: Sequence[MeasuredPoint] | Sequence[WeightScalePoint]) -> None:
    """Write dots or scales, one per row."""
    _write(path, rows[0]._fields, rows)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else value
