"""On the critical line the mean squared singular value of the Jacobian is 1; only isometry makes all of them alike.

Orthogonal weights with tanh come near to it where sigma_w² is just above 1; Gaussian weights never do, nor does ReLU,
nor orthogonal weights further along the line. The paper's networks are 200 layers deep and see CIFAR-10, these are
60 deep and see digits for 300 steps; as there, each has the best learning rate of a grid, here that of the lowest
loss. Moments are measured in wide networks on inputs of the fixed length, where theory applies.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from experiments.lab.claims import Claim, Findings, above, below, near
from experiments.lab.drawing import COLOURS, courses, guessing, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import GUESSING, grouped, lowest_loss, median_steps_to
from gradexp import MLP
from gradexp.exact.jacobian import SpectralMoments, singular_values, spectral_moments
from gradexp.numerics.seeds import generator
from gradexp.runs.result import Result
from gradexp.theory import MeanField, jacobian_moments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Two rates, among them the best of both tanh kinds that are compared; in the full version no best one is at an end.
QUICK = ["seed=0", "optimizer.lr=0.02,0.05"]
LEARNED = 1.0  # a loss that only a network has that tells most digits apart; guessing has 2.3
WIDE, FACTORS = 400, 16  # of the Jacobian whose moments are measured: few factors against the width
NETWORKS, SAMPLES = 4, 4  # over which they are averaged


class Kind(NamedTuple):
    """A point of the critical line, and the weights that are drawn there."""

    name: str
    activation: str
    init: str
    sigma_w2: float
    sigma_b2: float

    @property
    def options(self) -> list[str]:
        """Options that make the preset's networks of this kind."""
        gain = math.sqrt(self.sigma_w2)
        options = {"activation": self.activation, "init": self.init, "init.gain": gain, "sigma_b2": self.sigma_b2}
        return [f"{key}={value}" for key, value in options.items()]

    @property
    def point(self) -> MeanField:
        """What theory knows of the point."""
        return MeanField(self.activation, self.sigma_w2, self.sigma_b2)


ISOMETRIC = Kind("tanh, orthogonal", "tanh", "orthogonal", 1.05, 2.01e-5)
GAUSSIAN = Kind("tanh, Gaussian", "tanh", "mean_field", 1.05, 2.01e-5)
FAR = Kind("tanh, orthogonal, $\\sigma_w^2$ = 2", "tanh", "orthogonal", 2.0, 0.1038)
RELU = Kind("ReLU, orthogonal", "relu", "orthogonal", 2.0, 0.0)
KINDS = (ISOMETRIC, GAUSSIAN, FAR, RELU)


def reproduce(lab: Lab) -> Findings:
    """Train each kind of network at several rates, and measure its Jacobian at initialisation."""
    best = {kind: _at_best_rate(lab.runs(*kind.options)) for kind in KINDS}
    moments = {kind: spectral_moments(*_wide(lab, kind)) for kind in KINDS}
    return Findings(_claims(moments, best), {"pennington2017": _figure(lab, best)})


def _at_best_rate(results: Sequence[Result]) -> list[Result]:
    """Return the results at the learning rate of the lowest loss, which at large rates may rise again later."""
    return min(grouped(results, lambda config: config.optimizer.lr).values(), key=lowest_loss)


def _claims(moments: Mapping[Kind, SpectralMoments], best: Mapping[Kind, Sequence[Result]]) -> list[Claim]:
    size = {kind: float(measured.log10_m1.mean()) * math.log(10) for kind, measured in moments.items()}
    ratio = {kind: float(measured.ratio.mean()) for kind, measured in moments.items()}
    theory = {
        kind: jacobian_moments(kind.point, FACTORS, orthogonal=kind.init == "orthogonal").ratio for kind in KINDS
    }
    steps = {kind: median_steps_to(results, LEARNED) for kind, results in best.items()}
    lowest = lowest_loss(best[RELU])
    # Standard errors over the networks: of log m_1 0.004 with orthogonal weights and 0.05 with Gaussian ones, of the
    # ratio 0.001 and 3 %. ReLU's ratio is another 3 % above that of infinite width.
    return [
        near("orthogonal tanh: log of m₁, mean squared singular value", size[ISOMETRIC], 0, 0.02),
        near("Gaussian tanh: the same, as both have chi_1 = 1", size[GAUSSIAN], 0, 0.2),
        near("orthogonal tanh: nearly isometric, m₂/m₁²", ratio[ISOMETRIC], theory[ISOMETRIC], 0.01),
        near(
            "Gaussian tanh: m₂/m₁² is larger by the depth", ratio[GAUSSIAN], theory[GAUSSIAN], 0.12 * theory[GAUSSIAN]
        ),
        near("orthogonal ReLU: m₂/m₁² is 1 + depth", ratio[RELU], theory[RELU], 0.15 * theory[RELU]),
        below(f"orthogonal tanh learns: steps to loss {LEARNED:g}", steps[ISOMETRIC], 80),
        above("Gaussian tanh: its steps over these", steps[GAUSSIAN] / steps[ISOMETRIC], 2),
        above("orthogonal far along the line: the same", steps[FAR] / steps[ISOMETRIC], 1.5),
        above("orthogonal ReLU is slower: its lowest loss in 300 steps", lowest, LEARNED),
    ]


def _wide(lab: Lab, kind: Kind) -> tuple[MLP, torch.Tensor]:
    """Return wide and not so deep networks of a kind, with inputs."""
    return _at_fixed_length(lab, kind, f"width={WIDE}", f"depth={FACTORS + 2}", f"seeds={NETWORKS}")


def _at_fixed_length(lab: Lab, kind: Kind, *overrides: str) -> tuple[MLP, torch.Tensor]:
    """Return the hidden layers of networks of a kind, and inputs that these give the fixed length from layer 1 on."""
    networks = lab.hidden_layers(*kind.options, *overrides)
    x = torch.randn(SAMPLES, networks.widths[0], generator=generator(0, "inputs"), dtype=torch.float64)
    length = (kind.point.q_star - kind.sigma_b2) / kind.sigma_w2
    return networks, x * (length / x.square().mean(1, keepdim=True)).sqrt()


def _figure(lab: Lab, best: Mapping[Kind, Sequence[Result]]) -> "Figure":
    depth = best[ISOMETRIC][0].config.depth
    figure, (spectrum, training) = panels(
        [f"Jacobian of {depth} layers", "training at the best rate"], "share of singular values", "singular value"
    )
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        network, x = _at_fixed_length(lab, kind)
        values = (10 ** singular_values(network, x[:1])).flatten()
        spectrum.plot(np.linspace(0, 1, len(values)), values, color=colour, linewidth=2)
        courses(training, best[kind], colour, kind.name)
    spectrum.axhline(1, color="black", linewidth=1, linestyle=":")
    spectrum.set_yscale("log")
    spectrum.set_ylim(1e-3, 20)
    training.set_xlabel("training step")
    training.set_ylabel("training loss")
    training.set_ylim(0, 3.8)
    guessing(training, label="_guessing")
    training.annotate("guessing", (best[ISOMETRIC][0].config.steps, GUESSING + 0.05), ha="right")
    training.legend(frameon=False)
    return figure
