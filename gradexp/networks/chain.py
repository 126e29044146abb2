"""A network as a chain of steps: what the command builds beside the MLP, and what an exact profile can follow."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from gradexp.choices import LYAPUNOV_ACTIVATIONS
from gradexp.networks.activations import Activation


class Step(NamedTuple):
    """One step of a chain, a row of its profile.

    Args:
        name: Name of the row: of the module whose output the state after the step is, if there is one, which lets
            the probe record the same rows in training. Several calls of one module have one name.
        run: The function from the state before the step to the state after it, both of shape ``(batch, ...)``.
    """

    name: str
    run: Callable[[Tensor], Tensor]


class Chain(nn.Module):
    """A network y = h_L, where h_l = f_l(h_(l-1)) and h_0 comes from the input.

    A family of networks says in ``unrolled`` what its steps are: layers of a plain network, blocks of a residual one,
    moments of a recurrent one. A step ends where the next one's activation begins, as the rows of the MLP do, so that
    h_l is a sum that nothing has cut yet.

    Attributes:
        scaling: Which states h may be multiplied by a power of two, with f_l(2ᵏ h) = 2ᵏ f_l(h), if all biases are
            0: ``"all"``, ``"small"`` ones (see ``scaling_of``), or ``"none"``.
        mixes_samples: Whether the state of a sample depends on other samples, as with batch norm.
        rules: What ``initialize`` must be told of the network: its ``skip``, ``branch_ends`` and ``scale``.
    """

    scaling: str = "none"
    mixes_samples: bool = False
    rules: Mapping[str, Any] = {}

    def unrolled(self, x: Tensor) -> tuple[Tensor, list[Step]]:
        """Return h_0 and the steps that follow it, for inputs of shape ``(batch, features)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return y = h_L, shape ``(batch, outputs)``, for inputs of shape ``(batch, features)``."""
        h, steps = self.unrolled(x)
        for step in steps:
            h = step.run(h)
        return h


def scaling_of(name: str, phi: Activation, normalization: str = "none") -> str:
    """Return the ``scaling`` of a chain whose only other operations are linear.

    Linear, relu and leaky_relu are positively homogeneous. Another activation with φ(0) = 0 is two straight lines
    to all digits of float64 for states below 1e-150.

    Args:
        name: Name of the activation.
        phi: The activation.
        normalization: What comes before it.
    """
    if normalization != "none" or float(phi(Tensor([0.0]))) != 0:
        return "none"
    return "all" if name in LYAPUNOV_ACTIVATIONS else "small"
