"""A network as theory knows it: no weights, only how they are drawn."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradexp.architecture import check_additions
from gradexp.networks.activations import Activation
from gradexp.theory.mean_field import Moments, check_dropout, is_piecewise_linear
from gradexp.theory.weight_laws import WeightLaw


@dataclass(frozen=True)
class Network:
    """What distinguishes one network from another before its weights are drawn.

    Args:
        activation: φ, between every two layers.
        laws: The law of each layer's weights, W¹ to Wᴸ.
        widths: n_0, ..., n_L.
        normalization: ``none``, ``layer``, ``batch`` or ``rms``, for which there is no formula.
        residual: ``none``, ``plain``, ``depth`` or ``zero``, as in ``MLP``.
        dropout: The probability with which φ(z) is 0, as in ``MLP`` in training mode.

    Raises:
        ValueError: If a normaliser or kind of residual is unknown, a residual network's hidden widths differ, or
            ``dropout`` is not at least 0 and below 1.
    """

    activation: Activation
    laws: Sequence[WeightLaw]
    widths: Sequence[int]
    normalization: str = "none"
    residual: str = "none"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_additions(self.normalization, self.residual, self.widths[1:-1])
        check_dropout(self.dropout)

    @property
    def depth(self) -> int:
        """Number of weight matrices L."""
        return len(self.laws)

    @property
    def keep(self) -> float:
        """The probability with which dropout leaves a unit on."""
        return 1 - self.dropout

    def moments(self, q: Tensor) -> Moments:
        """Return Gaussian averages of the activation at lengths q, with dropout behind it."""
        if self._at_length_1 is not None:
            return self._at_length_1.scaled(q).thinned(self.keep)
        return Moments.at(self.activation, q).thinned(self.keep)

    @functools.cached_property
    def _at_length_1(self) -> Moments | None:
        """The averages at q = 1, from which those at other lengths follow; None if φ is no line on a side of 0."""
        phi = self.activation
        return Moments.at(phi, torch.ones((), dtype=torch.float64)) if is_piecewise_linear(phi) else None

    @property
    def middle(self) -> WeightLaw:
        """The law of the middle layer, which stands for all where one number is wanted."""
        return self.laws[self.depth // 2]

    @property
    def narrowest(self) -> int:
        """The smallest hidden width; n_0 if there is no hidden layer."""
        return min(self.widths[1:-1], default=self.widths[0])

    @property
    def is_plain(self) -> bool:
        """Whether layers follow each other without normalisers and skip connections."""
        return self.normalization == self.residual == "none"

    @property
    def branch(self) -> float | None:
        """The factor a of the residual branches; None for a network without skip connections."""
        return {"none": None, "plain": 1.0, "depth": 1 / math.sqrt(self.depth), "zero": 0.0}[self.residual]

    def length_share(self, index: int, n: int) -> float:
        """Return which share of a vector of fixed length n units hold that ``laws[index]`` leads to, either way.

        Orthogonal weights keep lengths in as many dimensions as their larger side has; others keep none.
        """
        larger = max(self.widths[index], self.widths[index + 1])
        return n / larger if self.laws[index].orthogonal else 0.0

    @property
    def has_exact_laws(self) -> bool:
        """Whether the profile is a sum of independent terms of known law: docs/theory.md, section 4."""
        is_random = all(law.diagonal is None and law.scaled_to is None for law in self.laws)
        is_homogeneous = is_piecewise_linear(self.activation) and all(law.sigma_b2 == 0 for law in self.laws)
        return self.is_plain and is_random and is_homogeneous
