"""The law of one layer's weights under the init of a run."""

from gradexp.config import Config
from gradexp.theory.weight_laws import WeightLaw, weight_laws


def layer_law(config: Config, fan_in: int, fan_out: int) -> WeightLaw:
    """Return the law of the weights and biases of a layer.

    Raises:
        UnknownLawError: If none is known.
    """
    [law] = weight_laws(
        config.init.name,
        [fan_in, fan_out],
        sigma_b2=config.sigma_b2,
        bias=config.bias,
        activation=config.activation,
        negative_slope=config.negative_slope,
        **config.init.options,
    )
    return law
