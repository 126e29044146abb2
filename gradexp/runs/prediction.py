"""Theory for the network of a run."""

from torch import Tensor

from gradexp import theory
from gradexp.choices import ConfigError
from gradexp.config import Config
from gradexp.networks.activations import activation
from gradexp.theory import Prediction


def predict_run(
    config: Config, x: Tensor, outputs: int, *, batch: int | None = None, spread: float | None = None
) -> Prediction:
    """Return theory's prediction for the network that a run builds.

    Args:
        config: The options of the run.
        x: Inputs of the profile, shape ``(sample, n_0)``, float64.
        outputs: Width of the last layer.
        batch: As in ``theory.predict_layers``.
        spread: As in ``theory.predict_layers``.

    Raises:
        ConfigError: If an option cannot work.
    """
    widths = [x.shape[1], *config.hidden_widths, outputs]
    try:
        laws = theory.weight_laws(
            config.init.name,
            widths,
            sigma_b2=config.sigma_b2,
            bias=config.bias,
            activation=config.activation,
            negative_slope=config.negative_slope,
            **config.init.options,
        )
        phi = activation(config.activation, config.negative_slope)
        architecture = {"normalization": config.normalization, "residual": config.residual}
        return theory.predict_layers(phi, laws, widths, x, batch=batch, spread=spread, **architecture)
    except ValueError as error:
        raise ConfigError(str(error)) from error
