"""One recorded step: numbers, statuses, slopes."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gradexp.history.finding import Finding
from gradexp.numerics.formats import limits

Array = NDArray[np.float64]
Codes = NDArray[np.int8]

Phase = Literal["init", "train"]

Quantity = Literal["output", "output_grad", "weight_grad", "weight", "update", "vector_grad", "vector"]

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)[:5]

VECTOR_QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)[5:]
"""What a probe records of parameters with too few dimensions for a weight, if asked: biases, gains, scales."""

Status = Literal[
    "ok", "zero", "subnormal", "nonfinite", "unused", "frozen", "not_called", "hook_missed", "not_optimized"
]

STATUSES: tuple[Status, ...] = get_args(Status)
"""The statuses of a cell; a History holds the index. Only ``ok`` and ``subnormal`` cells have a number.

ok: as expected. zero: every element is exactly 0. subnormal: elements are below the smallest normal number of
their dtype, so digits are lost. nonfinite: an element is inf or nan. unused: a parameter that no loss reached.
frozen: a parameter that takes no gradient. not_called: a module that was not run, or on no sample. hook_missed: a
gradient that should have been seen but was not, or a module whose weights took part without a call of it.
not_optimized: a trained parameter that no known optimizer steps.
"""

SEEN = [STATUSES.index(name) for name in ("ok", "zero", "subnormal", "nonfinite")]

_IS_SEEN = np.isin(range(len(STATUSES)), SEEN)

QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Step:
    """One recorded step of some networks: a number and a status per quantity, network and layer.

    Sizes are log10: of an rms over units for ``output``, of L2 norms for all others.

    Args:
        phase: ``"init"`` (``exact_profile``) or ``"train"`` (``GradientProbe``).
        names: Module name of each layer.
        log10: Quantity -> array of shape ``(network, layer)``, float64, nan where there is no number.
        status: Quantity -> int8 array of the same shape, an index into ``STATUSES``.
        largest_log10: Quantity -> log10 of the largest element's magnitude over all samples, same shape
            (initial profile only).
        dead_fraction: Share of each network's samples that are exactly 0 at some layer, shape ``(network,)``
            (initial profile only).
        calls: Index of each layer's call of its module in a forward pass, from 0.
        dtypes: Quantity -> number format of its tensors, such as ``"float32"`` (probe only).
        theory: Predicted log10 and standard deviation per layer, as in ``History``.
        feeds: Pairs of layers, as indices from 0, of which the first one's output goes into the second one, by
            autograd's graph; the second is ``depth`` for the loss. Empty if the graph is not known.
        findings: What was found beside the sizes, worst first.
        stats: ``"quantity.name"`` -> further statistics, shape ``(network, layer)``, as in ``History``.
        samples: log10 of the norm of each sample's output gradient, shape ``(network, layer, sample)``.
        total_grad: log10 of the norm of all parameters' gradients together, shape ``(network,)``.
        loss: The loss's value, shape ``(network,)``.
        remedies: Kind of finding -> what cures it, as in ``History``.
        kinds: Class and shape of weights of each layer's module, as in ``History``.
        time_log10: ``"quantity/name"`` -> sizes at each time step of a recurrent layer, shape ``(network, time)``.
        time_status: The same for indices into ``STATUSES``.

    Examples:
        >>> ok = np.zeros((1, 3), dtype=np.int8)
        >>> step = Step("init", ["a", "b", "c"], {"output_grad": np.array([[-2.0, -1.0, 0.0]])}, {"output_grad": ok})
        >>> step.first_over_last("output_grad")
        -2.0
    """

    phase: Phase
    names: list[str]
    log10: dict[Quantity, Array]
    status: dict[Quantity, NDArray[np.int8]]
    largest_log10: dict[Quantity, Array] = field(default_factory=dict)
    dead_fraction: Array | None = None
    calls: list[int] = field(default_factory=list)
    dtypes: dict[str, str] = field(default_factory=dict)
    theory: dict[str, Array] = field(default_factory=dict)
    feeds: list[tuple[int, int]] = field(default_factory=list)
    findings: tuple[Finding, ...] = ()
    stats: dict[str, Array] = field(default_factory=dict)
    samples: Array | None = None
    total_grad: Array | None = None
    loss: Array | None = None
    remedies: dict[str, str] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    time_log10: dict[str, Array] = field(default_factory=dict)
    time_status: dict[str, NDArray[np.int8]] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.names)

    @property
    def networks(self) -> int:
        """Number of networks."""
        return len(next(iter(self.log10.values())))

    def profile(self, quantity: Quantity) -> Array:
        """Return log10 of a quantity per layer: the mean over networks of the log, nan where there is none.

        A size that is exactly 0 has no logarithm: ``status`` tells it from an unknown one.

        Args:
            quantity: A recorded one of ``QUANTITIES``.

        Raises:
            ValueError: If that quantity was not recorded.
        """
        return mean_over_networks(self._numbers(quantity))

    def ends(self, quantity: Quantity) -> tuple[int, int] | None:
        """Return the first and the last layer, counted from 1, at which a quantity was seen, or None.

        A layer counts as seen if it has a number or is exactly 0 or not finite, unlike one that was not called,
        is frozen or unused, or whose gradient was missed.
        """
        self._numbers(quantity)
        layers = 1 + np.flatnonzero(is_seen(self.status[quantity]).any(axis=0))
        return (int(layers[0]), int(layers[-1])) if layers.size else None

    def log_chi_per_network(self, first: int | None = None, last: int | None = None) -> Array:
        """Return ``log_chi`` of each network, shape ``(network,)``; nan where an end has no number.

        The mean over layers l of log‖δˡ‖² - log‖δˡ⁺¹‖² telescopes to the first and the last layer.

        Args:
            first: First layer, counted from 1; None: the first that was seen.
            last: Last layer; None: the last that was seen.

        Raises:
            ValueError: If the layers are not within 1..depth, or output gradients were not recorded.
        """
        ends = self.ends("output_grad") or (1, self.depth)
        first = ends[0] if first is None else first
        last = ends[1] if last is None else last
        if not 1 <= first <= last <= self.depth:
            raise ValueError(f"first and last must satisfy 1 <= first <= last <= {self.depth}, got {first}, {last}")
        if first == last:
            return np.full(self.networks, np.nan)
        log10 = self.without_dead("output_grad")
        return np.asarray(2 * math.log(10) * (log10[:, first - 1] - log10[:, last - 1]) / (last - first))

    def log_chi(self, first: int | None = None, last: int | None = None) -> float | None:
        """Return the slope of log‖output_grad‖² per layer towards the input (natural log), or None.

        Positive: the gradient explodes on its way to the input; negative: it vanishes. Arguments as in
        ``log_chi_per_network``; the mean is over networks.
        """
        return mean(self.log_chi_per_network(first, last))

    def log_chi_se(self, first: int | None = None, last: int | None = None) -> float | None:
        """Return the standard error of ``log_chi`` over networks; None for fewer than two."""
        return standard_error(self.log_chi_per_network(first, last))

    def log_chi_quantiles(self) -> dict[float, float]:
        """Return the quantiles 0.05, 0.5 and 0.95 of ``log_chi`` over networks; none for fewer than two."""
        slopes = self.log_chi_per_network()
        slopes = slopes[np.isfinite(slopes)]
        return {q: float(np.quantile(slopes, q)) for q in QUANTILES} if slopes.size > 1 else {}

    def depth_scale(self, first: int | None = None, last: int | None = None) -> float | None:
        """Return 1 / |log_chi|, the layers over which ‖output_grad‖² changes by a factor e, or None."""
        log_chi = self.log_chi(first, last)
        return 1 / abs(log_chi) if log_chi else None

    def first_over_last(self, quantity: Quantity) -> float | None:
        """Return log10 of the first seen layer's size over the last one's, averaged over networks, or None."""
        first, last = self.ends(quantity) or (1, self.depth)
        log10 = self.without_dead(quantity)
        return mean(log10[:, first - 1] - log10[:, last - 1])

    def failing_layer(self, quantity: Quantity, dtype: str, overflow: bool) -> int | None:
        """Return the layer from which on a quantity would leave a number format, or None.

        Outputs are followed from layer 1 up, output gradients from the last layer down. Underflow: the
        largest element over all samples rounds to 0. Overflow: it rounds to inf.

        Args:
            quantity: ``"output"`` or ``"output_grad"``.
            dtype: ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"float64"``.
            overflow: The end of the range: True for numbers that round to inf, False for those that round to 0.
        """
        smallest, greatest = limits(dtype)
        largest = self.largest_log10[quantity]
        # The slack absorbs log10's own rounding. What is exactly 0 in any format has died, not underflowed.
        fails = largest >= greatest - 1e-12 if overflow else (largest > -math.inf) & (largest <= smallest + 1e-12)
        layers = 1 + np.flatnonzero(fails.any(axis=0))
        if not layers.size:
            return None
        return int(layers.max() if quantity == "output_grad" else layers.min())

    def without_dead(self, quantity: Quantity) -> Array:
        """Return log10 of shape ``(network, layer)``, with nan for networks in which every sample is dead."""
        log10 = self._numbers(quantity)
        return log10 if self.dead_fraction is None else np.where(self.dead_fraction[:, None] < 1, log10, np.nan)

    def _numbers(self, quantity: Quantity) -> Array:
        if quantity not in self.log10:
            raise ValueError(f"'{quantity}' was not recorded; choose one of {', '.join(self.log10)}")
        return self.log10[quantity]


def is_seen(status: Codes) -> NDArray[np.bool_]:
    """Return which statuses are of a value, if only one that is 0 or not finite."""
    return np.asarray(_IS_SEEN[status])  # numpy's isin takes thirty times as long for a few layers


def mean(values: Array) -> float | None:
    """Return the mean of the finite values, or None without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def standard_error(values: Array) -> float | None:
    """Return the standard error of the mean over networks, or None for fewer than two."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1) / math.sqrt(finite.size)) if finite.size > 1 else None


def mean_over_networks(values: Array) -> Array:
    """Average ``(network, layer)`` over networks, skipping nan, without numpy's warning for empty columns."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    total = np.where(finite, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
