"""The profile of convolutional networks, plain and residual, at initialisation, from averages over positions.

Mean squares follow from ``gradexp.theory.convolution``. For straight lines on either side of 0 without normalisers
they are exact at any width: gradients at different positions are in no relation, since the readout has weights of its
own for each. What the typical network falls short of the mean by, E log = log E - V / 2, and the band, follow from
the relative variance V of ‖δ‖² over networks, to which a layer of n channels adds κ / n. That depends on how alike
positions are:

    κ = J - 1 + 2 J_0 / P + 2 J R

J and J_0 are those of ``Activated``, P is the number of positions, and R the mean square of δ_p · δ_q over two of
them, relative to that of one: 0 in infinite width, it grows by J / n per layer, while the window of the kernel takes
off what differs from place to place. So κ is 5 / P for relu where positions are in no relation, and 1 + 4 / P where
they are alike, as deep inside; the MLP's is 5.

Two convolutions beside a skip connection multiply ‖δ‖² by 1 + a² chi chi', with chi = sigma_w2 E φ'² of each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradexp.networks.activations import Activation
from gradexp.theory.convolution import Activated, Convolution, Nonlinearity, Units
from gradexp.theory.finite_width import log_mean_square
from gradexp.theory.mean_field import MeanField, is_piecewise_linear
from gradexp.theory.network import Network
from gradexp.theory.prediction import Prediction, no_prediction
from gradexp.theory.rows import prediction_of_rows
from gradexp.theory.trust import non_gaussian_error
from gradexp.theory.weight_laws import WeightLaw

# Largest tolerance of log_chi with which a prediction is still worth a line, and largest R that the expansion stands.
_TOLERATED, _ALIGNED = 0.05, 0.2
# Below this a variance is what differences of averages leave.
_ROUNDING = 1e-12
# Layers after which lengths stand for all of them, in tables.
_SETTLED = 10


@dataclass(frozen=True)
class Row:
    """The convolutions of one row of a profile, each behind an activation.

    Args:
        convolutions: One of a plain network, two of a block.
        branch: a² of the branch that they are, beside a skip connection; None: there is none.
    """

    convolutions: Sequence[Convolution]
    branch: float | None = None


def predict_images(
    phi: Activation,
    x: Tensor,
    stem: Convolution,
    rows: Sequence[Row],
    readout: WeightLaw,
    outputs: int,
    normalization: str = "none",
) -> Prediction:
    """Predict the profile of a convolutional network: a stem, rows of convolutions, and a linear readout.

    Args:
        phi: The activation.
        x: Inputs, shape ``(sample, features)``, float64. Those that are exactly 0 or not finite are left out.
        stem: The first convolution, which sees the image.
        rows: What follows; all convolutions are as wide as the stem.
        readout: The law of the last layer's weights.
        outputs: Number of outputs.
        normalization: ``none``, ``layer``, ``batch`` or ``rms``, for the last two of which there is no formula.
    """
    elements = [x.shape[1], *[stem.width * stem.positions] * (1 + len(rows)), outputs]
    laws = [stem.law, *(convolution.law for row in rows for convolution in row.convolutions), readout]
    x = x[x.any(dim=1) & x.isfinite().all(dim=1)]
    reason = _why_no_formula(stem, laws, normalization, x)
    if reason:
        return no_prediction(reason, elements, stem.law.sigma_b2)
    network = _Images(phi, x, stem, rows, readout, outputs, normalization)
    tolerance = network.tolerance(laws)
    reason = network.why_not_trusted(tolerance)
    if reason:
        return no_prediction(reason, elements, stem.law.sigma_b2)
    middle, point = laws[len(laws) // 2], network.point
    is_plain = normalization == "none" and all(row.branch is None and len(row.convolutions) == 1 for row in rows)
    return prediction_of_rows(
        elements,
        network.output,
        network.gradient,
        network.weights,
        network.variance,
        reason=network.formula,
        sigma_w2=middle.sigma_w2,
        sigma_b2=middle.sigma_b2,
        tolerance=tolerance,
        mean_field=network.mean_field,
        q_star=point.q_star if is_plain else None,
        chi_1=point.chi_1 if is_plain else None,
    )


def _why_no_formula(stem: Convolution, laws: Sequence[WeightLaw], normalization: str, x: Tensor) -> str:
    if not len(x):
        return "every input is exactly 0 or not finite"
    if normalization == "batch":
        return "batch norm of images takes variances over positions too, which are alike: there is no formula"
    if normalization == "rms":
        return "there is no formula for rms normalisation"
    if any(law.diagonal is not None for law in laws):
        return "a scaled identity is no random matrix, and fills only as many channels as the image has"
    if any(law.scaled_to is not None for law in laws):
        return "there is no formula for LSUV of convolutions"
    if not stem.law.sigma_w2 or not laws[-1].sigma_w2:
        return "sigma_w2 is 0: nothing gets through"
    if stem.is_delta and stem.law.sigma_w2 != laws[1].sigma_w2 and stem.width < 3:
        return "an image with more channels than the network has is mapped by no orthogonal matrix"
    return ""


@dataclass
class _Hidden:
    """An activation on the way, and what came of it.

    Args:
        activated: What it makes of units.
        length_noise: Relative variance over networks of the length of these units, shape ``(sample,)`` as all.
        value_noise: That of the length of the activations.
        own_noise: What the activation adds to that of the next units.
        length_slope: d log of the next length / d log of this one.
        weight_share: Share of the next length that comes from weights, not biases.
        divisor: Mean and variance of -log of what a normaliser divides by, beyond infinite width.
    """

    activated: Activated
    length_noise: Tensor
    value_noise: Tensor
    own_noise: Tensor
    length_slope: Tensor
    weight_share: Tensor
    divisor: tuple[Tensor, Tensor]


class _Images:
    """One network followed forth and back.

    Attributes:
        output: E log of the mean square of each row, shape ``(row, sample)``, as all that follow.
        gradient: E log ‖δ‖².
        weights: E log of the squared norm of the weights' gradient, as if lengths and gradients were in no relation.
        variance: Variance of log ‖δ‖² over networks.
        mean_field: log ‖δ‖² in infinite width.
        point: Mean field at the variances of the middle convolution.
    """

    def __init__(
        self,
        phi: Activation,
        x: Tensor,
        stem: Convolution,
        rows: Sequence[Row],
        readout: WeightLaw,
        outputs: int,
        normalization: str,
    ) -> None:
        self.phi, self.stem, self.rows, self.readout = phi, stem, rows, readout
        self.normalization = normalization
        self.is_straight = is_piecewise_linear(phi)
        self.nobody = torch.zeros(len(x), dtype=torch.float64)
        units = Units.of_images(x, stem)
        inside = [convolution.law for row in rows for convolution in row.convolutions] or [readout]
        law = inside[len(inside) // 2]
        self.point = MeanField(phi, law.sigma_w2, law.sigma_b2, start=float(units.mean.mean()))
        typical = self.point.start if self.is_straight else self.point.lengths(self.point.start, _SETTLED)[-1]
        self.nonlinearity = Nonlinearity(phi, normalization, typical)
        self._forth(units, outputs)
        self._back(x)

    def _forth(self, units: Units, outputs: int) -> None:
        """Follow units from the stem to the readout."""
        n, positions = self.stem.width, self.stem.positions
        self.hidden: list[list[_Hidden]] = []
        output, noise, below = [], self.nobody, self.stem
        for row in self.rows:
            output.append(self._log_length(units, noise, below))
            stream, stream_noise, here = units, noise, []
            for convolution in row.convolutions:
                hidden = self._activated(units, noise, below, convolution.law)
                units = hidden.activated.convolved(convolution)
                noise = hidden.length_slope.square() * noise + hidden.own_noise
                here.append(hidden)
                below = convolution
            self.hidden.append(here)
            if row.branch is not None:
                branch = row.branch * units.mean.squeeze(1)
                share = branch / (stream.mean.squeeze(1) + branch)
                noise = (1 - share).square() * stream_noise + share.square() * noise
                units = stream.plus(units, row.branch)
        output.append(self._log_length(units, noise, below))
        top = self._activated(units, noise, below, self.readout)
        self.hidden.append([top])
        noise = top.length_slope.square() * noise + top.own_noise
        scatter = log_mean_square(outputs)
        if self.readout.orthogonal:
            scatter -= log_mean_square(max(outputs, n * positions))
        square = self.readout.sigma_w2 * top.activated.square.mean(dim=1) + self.readout.sigma_b2
        output.append(square.log() - noise / 2 + scatter)
        self.output = torch.stack(output)

    def _scatter(self, units: Units, below: Convolution) -> Tensor:
        """Return the relative variance of the length of units, given what went into the convolution below."""
        return self.nobody if below.is_delta else _spread(2 * units.likeness[1], self.nobody) / self.stem.width

    def _log_length(self, units: Units, noise: Tensor, below: Convolution) -> Tensor:
        return units.mean.squeeze(1).log() - (noise + self._scatter(units, below)) / 2

    def _activated(self, units: Units, noise: Tensor, below: Convolution, above: WeightLaw) -> _Hidden:
        """Return an activation of units, below weights of a law."""
        n, found = self.stem.width, self.nonlinearity(units, below.is_delta)
        square = above.sigma_w2 * found.square.mean(dim=1)
        share = square / (square + above.sigma_b2) if above.sigma_w2 else torch.zeros_like(square)
        value_noise = _spread(found.value_noise, self.nobody) / n
        own_noise = share.square() * value_noise
        if self.normalization == "none":
            slope = (found.length_slope * found.square).sum(dim=1) / found.square.sum(dim=1)
            carried, nothing = value_noise + slope.square() * noise, (self.nobody, self.nobody)
            return _Hidden(found, noise, carried, own_noise, share * slope, share, nothing)
        variance = noise + self._scatter(units, below)
        mean = variance / 2 + _spread(units.likeness[0], self.nobody) / n  # the last is the square of the mean
        return _Hidden(found, noise, value_noise, own_noise, self.nobody, share, (mean, variance))

    def _back(self, x: Tensor) -> None:
        """Follow gradients from the readout to the stem."""
        n, positions, nobody = self.stem.width, self.stem.positions, self.nobody
        down = _Down(n, positions)
        [top] = self.hidden[-1]
        weights = [(n * positions * top.activated.square.mean(dim=1)).log() - top.value_noise / 2]
        size = torch.full_like(top.activated.square, 1 / positions)  # ‖δ_p‖² / ‖δ‖²
        size, total = down.through(top, self.readout.sigma_w2, size, nobody, self.readout.orthogonal, None)
        mean_field, variance, first_order = [nobody, total], [nobody, down.variance(top)], [nobody, down.first_order]
        shares: list[Tensor] = []
        for index in reversed(range(len(self.rows))):
            row, here = self.rows[index], self.hidden[index]
            branch, log_branch = size, total + (math.log(row.branch) if row.branch else 0.0)
            if row.branch == 0:
                log_branch = torch.full_like(total, -math.inf)
            before = down.noise, down.first_order
            of_weights = []
            for convolution, hidden in zip(reversed(row.convolutions), reversed(here), strict=True):
                window = convolution.over_positions(hidden.activated.square) * n * convolution.kernel**2
                of_weights.append(log_branch + (branch * window).sum(dim=1).log() - hidden.value_noise / 2)
                spread, law = convolution.over_positions(branch), convolution.law
                branch, log_branch = down.through(
                    hidden, law.sigma_w2, spread, log_branch, convolution.is_delta, convolution
                )
            weights.append(torch.logsumexp(torch.stack(of_weights), dim=0))
            if row.branch is None:
                size, total = branch, log_branch
            else:
                joined = torch.logaddexp(total, log_branch)
                share = (log_branch - joined).exp()
                size = (1 - share).unsqueeze(1) * size + share.unsqueeze(1) * branch
                total = joined
                down.beside_skip(share, before)
                down.noise = down.noise + 2 * share * self._lasting(index, shares) / n
                shares.append(share)
            mean_field.append(total)
            variance.append(down.variance(here[0]) if row.branch is None else down.noise)
            first_order.append(down.first_order)
        square = x.square().unflatten(1, (-1, positions)).sum(dim=1)
        window = self.stem.over_positions(square) * self.stem.kernel**2
        weights.append(total + (size * window).sum(dim=1).log())
        self.mean_field = torch.stack(mean_field[::-1])
        scatter = torch.stack(variance[::-1])
        self.variance = scatter.where(scatter > _ROUNDING, 0.0)
        corrections = torch.stack(first_order[::-1])
        self.gradient = self.mean_field + corrections
        self.weights = torch.stack(weights[::-1]) + corrections
        self.alignment = down.largest

    def _lasting(self, index: int, shares: Sequence[Tensor]) -> Tensor:
        """Return what the units of a stream that stay on through the blocks above add to the variance, times n."""
        units, total = self.hidden[index][0].activated.units, self.nobody
        for step, share in enumerate(reversed(shares), 1):
            above = self.hidden[index + step][0].activated.units
            ratio = min(float((units.mean.mean() / above.mean.mean()).sqrt()), 1.0)
            total = total + share * _spread(self.nonlinearity.between(units, ratio), total)
        return total

    @property
    def is_exact(self) -> bool:
        """Whether no network differs from another."""
        return self.is_straight and not bool(self.variance.any())

    @property
    def formula(self) -> str:
        """Which formula it is."""
        if self.is_exact:
            return "exact: every network has the same gradient norms"
        if self.is_straight and self.normalization == "none":
            return "mean squares exact at any width, their scatter to first order in 1 / width"
        return "infinite width, and scatter to first order in 1 / width"

    def tolerance(self, laws: Sequence[WeightLaw]) -> float:
        """Return what log_chi leaves out."""
        if self.is_exact:
            return 0.0
        n, laws = self.stem.width, [law for law in laws if law.sigma_w2]
        mlp = Network(self.phi, laws, [n] * (len(laws) + 1))
        second = (self.gradient - self.mean_field).diff(dim=0).square().mean()
        tolerance = float(second) + non_gaussian_error(mlp)
        has_skip = any(row.branch is not None for row in self.rows)
        slope = (self.mean_field[0] - self.mean_field[-1]).abs().mean() / (len(self.mean_field) - 1)
        share = -math.expm1(-float(slope)) if has_skip else 1.0
        if has_skip:
            tolerance += share / n * (1 if self.normalization == "none" else 2)
        elif self.normalization != "none":
            tolerance += 0.5 / n
        lengths = [abs(row[0].activated.slope_he2) / 2 * row[0].length_noise.mean() for row in self.hidden]
        tolerance += share * float(torch.stack(lengths).mean())  # what lengths that scatter do to slopes
        return tolerance

    def why_not_trusted(self, tolerance: float) -> str:
        """Return why the prediction cannot be trusted; empty if it can."""
        if not bool(self.gradient.isfinite().all() and self.output.isfinite().all()):
            return "lengths leave the range of float64"
        if self.alignment > _ALIGNED and not self.is_exact:
            return f"width {self.stem.width} is too small for this depth: gradients of positions become parallel"
        if not tolerance <= _TOLERATED:
            return f"width {self.stem.width} is too small for an expansion in 1 / width"
        return ""


class _Down:
    """What is known of the scatter of gradients on their way down.

    Args:
        width: n.
        positions: P.

    Attributes:
        noise: Relative variance of ‖δ‖², given the length of the units.
        sensitivity: d log ‖δ‖² / d log of the length of the units.
        first_order: E log ‖δ‖² less its value in infinite width.
        largest: Largest R.
    """

    def __init__(self, width: int, positions: int) -> None:
        self.width, self.positions = width, positions
        self.noise = self.sensitivity = self.first_order = torch.zeros(())
        self.waves: Tensor | None = None  # R by waves of the image, shape (some samples, wave)
        self.largest = 0.0

    def through(
        self,
        hidden: _Hidden,
        sigma_w2: float,
        size: Tensor,
        total: Tensor,
        keeps_lengths: bool,
        convolution: Convolution | None,
    ) -> tuple[Tensor, Tensor]:
        """Carry a gradient through weights and through the activation below them.

        Args:
            hidden: The activation.
            sigma_w2: That of the weights.
            size: Shares of positions in ‖δ‖², averaged over the window of the weights, shape ``(sample, position)``.
            total: log ‖δ‖², shape ``(sample,)``.
            keeps_lengths: Whether the weights keep products of gradients over positions.
            convolution: The weights; None: a readout, which has others for each position.

        Returns:
            Shares and log below the activation.
        """
        found = hidden.activated
        reached = found.slope2 * size
        gain = reached.sum(dim=1)
        own = _spread(self._own_noise(found, keeps_lengths, convolution), total)
        mixed = _spread(found.mixed_noise, total) * hidden.weight_share / self.width
        mean, variance = hidden.divisor
        self.first_order = self.first_order + mean - own / 2
        if hidden.length_slope.any():
            self.noise = self.noise + 2 * mixed * self.sensitivity + hidden.own_noise * self.sensitivity**2
            chi_slope = _spread(found.slope_he2 / 2 + 0 * found.slope_noise, total)
            self.sensitivity = chi_slope + hidden.length_slope * self.sensitivity
        self.noise = self.noise + own + variance
        total = total + (gain * sigma_w2).log() if sigma_w2 else torch.full_like(total, -math.inf)
        return reached / gain.where(gain > 0, 1).unsqueeze(1), total

    def _own_noise(self, found: Activated, keeps_lengths: bool, convolution: Convolution | None) -> Tensor:
        """Return κ / n, and follow R."""
        joint, fixed = 1 + found.slope_noise, float(keeps_lengths)
        noise = found.slope_noise + 2 * (found.own_slope - fixed) / self.positions
        if self.waves is None:
            self.waves = torch.zeros(len(joint), self.positions, dtype=torch.float64)
        elif convolution is not None:
            self.waves = self.waves * convolution.spectrum
            self.largest = max(self.largest, float(self.waves.sum(dim=1).max()))
            noise = noise + 2 * (joint - fixed) * self.waves.sum(dim=1)
            self.waves = self.waves * found.slope_likeness.unsqueeze(1)
        created = joint - fixed * found.slope_likeness
        self.waves = self.waves + created.unsqueeze(1) / (self.width * self.positions)
        return noise / self.width

    def beside_skip(self, share: Tensor, before: tuple[Tensor, Tensor]) -> None:
        """Take what a branch has added for its share in the squared gradient only."""
        noise, first_order = before
        added, crossed = self.noise - noise, 4 * share * (1 - share) / (self.width * self.positions)
        self.noise = noise + share.square() * added + crossed
        branch = self.first_order - first_order + (1 - share) * added / 2  # E log(1 + r) of a branch r that scatters
        self.first_order = first_order + share * branch - crossed / 2
        self.waves, self.sensitivity = None, torch.zeros(())

    def variance(self, hidden: _Hidden) -> Tensor:
        """Return the variance of log ‖δ‖² at some units."""
        return self.noise + self.sensitivity**2 * hidden.length_noise


def _spread(some: Tensor, like: Tensor) -> Tensor:
    """Return numbers of some samples, and their mean for the others."""
    return torch.cat([some, some.mean().expand(len(like) - len(some))]) if len(some) < len(like) else some
