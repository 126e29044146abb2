"""The transformer at initialisation: how its stream and the gradient of it grow from block to block.

In infinite width the stream of a sample is Gaussian with a covariance C between its tokens, and so is its gradient,
with a covariance G. A layer norm makes correlations of covariances, N_ij = C_ij / √(C_ii C_jj), and divides the
gradient by √C_ii at token i. While all query weights are 0, attention is the mean over tokens, and with variances
σ² = fan_in · Var(W) of the weights each half of a block adds

    attention:  C += σ_v² σ_o² mean(N),      G += σ_v² σ_o² mean(G)
    feedforward:  C += σ_2² E φ(u_i) φ(u_j),   G += σ_1² σ_2² E φ'(u_i) φ'(u_j) · G,   u ~ N(0, σ_1² N),

biases aside. Tokens become alike on the way (Noci et al., 2022, arXiv:2206.03126). With a norm behind every branch
the stream keeps its length, and the gradient its size, whatever the depth; with norms inside the branches the stream
grows like √l, and the last norm divides the whole gradient by √L (Xiong et al., 2020, arXiv:2002.04745).
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.polynomial.chebyshev import Chebyshev
from torch import Tensor

from gradexp.networks.activations import Activation
from gradexp.networks.tokens import tokens
from gradexp.theory.finite_width import layer_law
from gradexp.theory.gaussian import pair_average
from gradexp.theory.mean_field import is_piecewise_linear
from gradexp.theory.prediction import Array, Prediction
from gradexp.theory.rows import prediction_of_rows
from gradexp.theory.trust import NOT_GAUSSIAN, TOLERATED
from gradexp.theory.weight_laws import UnknownLawError, WeightLaw

# What finite width adds to log_chi beyond this law, times the width: twice what networks of widths 64 to 256 show.
_NEGLECTED = 0.5
# Of the polynomials in the angle between two tokens: relu's averages are analytic in it, as those of smooth ones.
_DEGREE = 16


def predict_transformer(
    phi: Activation,
    law: Callable[[int, int], WeightLaw],
    x: Tensor,
    outputs: int,
    *,
    depth: int,
    width: int,
    context: int = 8,
    norm: str = "pre",
    queries: str = "zero",
    depth_scaled: bool = False,
) -> Prediction:
    """Predict the profile at initialisation of a ``Transformer``.

    Args:
        phi: The activation.
        law: The law of a layer's weights, from its fan_in and fan_out.
        x: Inputs, shape ``(sample, features)``, float64.
        outputs: Number of outputs.
        depth: Number of blocks.
        width: Units of the stream.
        context: Number of tokens.
        norm: ``pre``, ``post`` or ``none``.
        queries: ``zero`` or ``init``.
        depth_scaled: Whether the last weights of each branch are divided by √(2 depth).

    Raises:
        UnknownLawError: If there is no law for this network; the text says why.
    """
    if queries != "zero":
        raise UnknownLawError("no law is known for softmax of drawn queries; model.queries=zero has one")
    if norm == "none" and not is_piecewise_linear(phi):
        raise UnknownLawError("without norms there is a law for linear, relu and leaky_relu only")
    features = x.shape[1]
    x = tokens(x[(x != 0).any(dim=1)], context)
    if not len(x):
        raise UnknownLawError("every input is exactly 0")
    if not bool((x != 0).any(dim=2).all()):
        raise UnknownLawError("a token is exactly 0, and a norm has nothing to divide by")
    walk = _Walk(phi, law, x, outputs, width, norm, 1 / (2 * depth) if depth_scaled else 1.0)
    walk.forward(depth)
    walk.backward()
    tolerance = _NEGLECTED / width + NOT_GAUSSIAN * abs(walk.square.kurtosis) / width**2
    if tolerance > TOLERATED:
        raise UnknownLawError(f"width {width} is too small for a law of infinitely wide streams")
    return prediction_of_rows(
        [features, *[context * width] * (2 * depth + 1), outputs],
        torch.stack(walk.output),
        torch.stack(walk.output_grad[::-1]),
        torch.stack(walk.weight_grad[::-1]),
        torch.stack(walk.variance[::-1]),
        reason="infinite width, token by token",
        sigma_w2=walk.inner.sigma_w2,
        sigma_b2=walk.inner.sigma_b2,
        tolerance=tolerance,
        mean_field=torch.stack(walk.mean_field[::-1]),
    )


class _Walk:
    """Covariances of the stream on the way up, and of its gradient on the way down, of shape ``(sample, T, T)``.

    Attributes:
        output: E log of the mean square of each row, from the embedding on.
        output_grad: E log ‖δ‖², from the readout down, as all that follows.
        weight_grad: E log of the squared norm of the gradient of each row's weights.
        variance: Variance of log ‖δ‖² over networks.
        mean_field: log ‖δ‖² in infinite width.
    """

    def __init__(
        self,
        phi: Activation,
        law: Callable[[int, int], WeightLaw],
        x: Tensor,
        outputs: int,
        width: int,
        norm: str,
        branch: float,
    ) -> None:
        self.phi, self.x, self.n, self.outputs, self.norm, self.branch = phi, x, width, outputs, norm, branch
        self.embedding, self.square = law(x.shape[2], width), law(width, width)
        self.inner, self.outer, self.readout = law(width, 4 * width), law(4 * width, width), law(width, outputs)
        for one in (self.embedding, self.square, self.inner, self.outer, self.readout):
            if one.diagonal is not None:
                raise UnknownLawError("a scaled identity is no random matrix, and blocks of it are not followed")
            if one.scaled_to is not None:
                raise UnknownLawError("there is no formula for LSUV with normalisers or residual branches")
            if one.sigma_w2 == 0:
                raise UnknownLawError("sigma_w2 is 0: nothing gets through")
        if norm == "none" and self.inner.sigma_b2:
            raise UnknownLawError("without norms there is a law without biases only")
        self.output: list[Tensor] = []
        self.output_grad: list[Tensor] = []
        self.weight_grad: list[Tensor] = []
        self.variance: list[Tensor] = []
        self.mean_field: list[Tensor] = []
        self._streams: list[Tensor] = []  # of all rows but the last

    def forward(self, depth: int) -> None:
        """Follow the stream to the readout."""
        size = self.x.shape[2]
        stream = self.embedding.sigma_w2 * self.x @ self.x.mT / size + self.embedding.sigma_b2
        self._keep(stream)
        for index in range(2 * depth):
            read = _correlation(stream) if self.norm == "pre" else stream
            stream = stream + (self._attended(read) if index % 2 == 0 else self._fed_forward(read))
            if self.norm == "post":
                stream = _correlation(stream)
            self._keep(stream)
        y = self.readout.sigma_w2 * _mean(self._last_read()) + self.readout.sigma_b2
        self.output.append(y.log() - 1 / self.outputs)

    def backward(self) -> None:
        """Follow the gradient down to the embedding."""
        *streams, top = self._streams
        zero = torch.zeros(len(self.x), dtype=torch.float64)
        self._enter(zero, zero, (self.n * _mean(self._last_read())).log())
        first = layer_law(
            self.n, self.outputs, self.readout.sigma_w2, backward=True, orthogonal=self.readout.orthogonal
        )
        context = self.x.shape[1]
        gradient = torch.full_like(top, self.readout.sigma_w2 / context**2)
        if self.norm == "pre":
            gradient = gradient / _scales(top)
        noise = zero + first.variance
        for index in reversed(range(len(streams))):
            below = streams[index]
            read = _correlation(below) if self.norm == "pre" else below
            half = self._attention_back if index % 2 == 0 else self._feedforward_back
            added_forward = self._attended(read) if index % 2 == 0 else self._fed_forward(read)
            at_sum = gradient / _scales(below + added_forward) if self.norm == "post" else gradient
            branch, of_weights = half(read, at_sum)
            if self.norm == "pre":
                branch = branch / _scales(below)
            self._enter(_trace(gradient).log(), noise, of_weights.log())
            total = at_sum + branch
            # What the branch adds has a part along the gradient, and a length that fluctuates with two matrices.
            cross_and_own = 4 * ((at_sum + branch) * branch).sum((1, 2)) / self.n
            noise = noise + cross_and_own / _trace(total).square()
            gradient = total
        of_embedding = (gradient * (self.x @ self.x.mT)).sum((1, 2))
        self._enter(_trace(gradient).log(), noise, of_embedding.log())

    def _keep(self, stream: Tensor) -> None:
        self._streams.append(stream)
        square = stream.diagonal(dim1=1, dim2=2).mean(1)
        fluctuation = 0 if self.norm == "post" else stream.square().mean((1, 2)) / (square.square() * self.n)
        self.output.append(square.log() - fluctuation)

    def _enter(self, mean_field: Tensor, noise: Tensor, weight: Tensor) -> None:
        self.mean_field.append(mean_field)
        self.output_grad.append(mean_field - noise / 2)
        self.variance.append(noise)
        self.weight_grad.append(weight - noise / 2)

    def _last_read(self) -> Tensor:
        top = self._streams[-1]
        return _correlation(top) if self.norm == "pre" else top

    def _values(self, read: Tensor) -> Tensor:
        """Return the covariance of the values."""
        return self.square.sigma_w2 * read + self.square.sigma_b2

    def _attended(self, read: Tensor) -> Tensor:
        mean = _mean(self._values(read))[:, None, None].expand_as(read)
        return self.branch * self.square.sigma_w2 * mean + self.square.sigma_b2

    def _fed_forward(self, read: Tensor) -> Tensor:
        return self.branch * self.outer.sigma_w2 * self._averages(read)[0] + self.outer.sigma_b2

    def _averages(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """Return E φ(u_i) φ(u_j) and E φ'(u_i) φ'(u_j) of the hidden units."""
        u = self.inner.sigma_w2 * read + self.inner.sigma_b2
        angle = _correlation(u).clamp(-1, 1).acos()
        scale = _scales(u)
        q = 1.0 if self.norm == "none" else float(scale[0, 0, 0])  # the same for all tokens, or nothing depends on it
        value, slope = _of_angle(self.phi, q)
        both = [torch.from_numpy(function(angle.numpy())) for function in (value, slope)]
        return both[0] * scale / q, both[1]

    def _attention_back(self, read: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient's covariance below the branch, and the squared gradient of its weights."""
        w2, context, n = self.square.sigma_w2, self.x.shape[1], self.n
        through = self.branch * w2  # of the output weights
        values = self._values(read)
        below = (through * w2 * _mean(above))[:, None, None].expand_as(above)
        total = above.sum((1, 2))
        of_output = total * _mean(values)
        of_values = through * total * _mean(read)
        # Query weights are 0, but not their gradient: how the weight of a token changes the result.
        centred = (values - values.mean(1, keepdim=True)) * (values - values.mean(2, keepdim=True))
        of_queries = through * (above * read).sum((1, 2)) * centred.sum((1, 2))
        return below, n * (of_output + of_values + of_queries / context**2)

    def _feedforward_back(self, read: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self._averages(read)
        through = self.branch * self.outer.sigma_w2
        inside = through * slope * above
        of_outer, of_inner = 4 * (above * value).sum((1, 2)), (inside * read).sum((1, 2))
        return self.inner.sigma_w2 * inside, self.n * (of_outer + of_inner)


@functools.lru_cache(maxsize=64)
def _of_angle(phi: Activation, q: float) -> tuple[Chebyshev, Chebyshev]:
    """Return E φ(u_a) φ(u_b) and E φ'(u_a) φ'(u_b) as functions of the angle between two tokens of length q."""

    def fitted(f: Callable[[Tensor], Tensor]) -> Chebyshev:
        def at(angles: Array) -> Array:
            distances = 2 * np.sin(angles / 2) ** 2
            return np.array([pair_average(lambda a, b: f(a) * f(b), q, q, d, phi.kinks) for d in distances.tolist()])

        return Chebyshev.interpolate(at, _DEGREE, domain=[0, math.pi])

    return fitted(phi), fitted(lambda u: phi.value_and_slope(u)[1])


def _scales(covariance: Tensor) -> Tensor:
    """Return √(C_ii C_jj)."""
    root = covariance.diagonal(dim1=1, dim2=2).sqrt()
    return root.unsqueeze(2) * root.unsqueeze(1)


def _correlation(covariance: Tensor) -> Tensor:
    return covariance / _scales(covariance)


def _mean(covariance: Tensor) -> Tensor:
    return covariance.mean((1, 2))


def _trace(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=1, dim2=2).sum(1)
