"""Theory for the network of a run."""

import hashlib
from typing import Any

from torch import Tensor

from gradexp import theory
from gradexp.choices import ConfigError
from gradexp.config import Config
from gradexp.networks.activations import activation
from gradexp.own_parts import OwnPart
from gradexp.runs.models import MODELS
from gradexp.theory import Prediction
from gradexp.theory.prediction import no_prediction
from gradexp.theory.weight_laws import UnknownLawError


def predict_run(
    config: Config,
    x: Tensor,
    outputs: int,
    *,
    batch: int | None = None,
    input_variance: float | None = None,
    dropout: float = 0.0,
) -> Prediction:
    """Return theory's prediction for the network that a run builds; one without numbers where no law is known.

    Args:
        config: The options of the run.
        x: Inputs of the profile, shape ``(sample, n_0)``, float64.
        outputs: Width of the last layer.
        batch: The argument of that name of ``theory.predict_layers``.
        input_variance: The argument of that name of ``theory.predict_layers``.
        dropout: The same. The config's own has no part in the profile at initialisation.

    Raises:
        ConfigError: If an option cannot work.
    """
    if config.model.name != "mlp":
        return _predicted_family(config, x, outputs)
    widths = [x.shape[1], *config.hidden_widths, outputs]
    content = hashlib.sha256(x.contiguous().numpy().tobytes()).digest()
    law = (config.init.name, config.init.options, config.sigma_b2, config.bias)
    phi = (config.activation, config.negative_slope, config.normalization, config.residual)
    facts = repr((law, phi, widths, batch, input_variance, dropout, x.dtype, content))
    key = (config.init.name, config.activation, facts)  # names of own parts also tell functions apart
    if key not in _known:
        if len(_known) >= _MOST:
            _known.clear()
        options: dict[str, Any] = {"batch": batch, "input_variance": input_variance, "dropout": dropout}
        _known[key] = _predicted(config, x, widths, **options)
    return _known[key]


# The jobs of a sweep share predictions, above all of the remedies that each would try anew.
_known: dict[tuple[str, str, str], Prediction] = {}
_MOST = 200


def _predicted_family(config: Config, x: Tensor, outputs: int) -> Prediction:
    """Return theory's prediction for a network that is no MLP."""
    name = config.model.name
    family = None if isinstance(name, OwnPart) else MODELS[name]
    config.check_sizes(x.shape[1])
    try:
        if family is None or family.predict is None:
            raise UnknownLawError(f"no law is known for model '{name}'")
        return family.predict(config, x, outputs)
    except UnknownLawError as error:
        return no_prediction(str(error), [x.shape[1], outputs], config.sigma_b2 or 0.0)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _predicted(config: Config, x: Tensor, widths: list[int], **options: Any) -> Prediction:
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
        options |= {"normalization": config.normalization, "residual": config.residual}
        return theory.predict_layers(phi, laws, widths, x, **options)
    except UnknownLawError as error:
        return no_prediction(str(error), widths, config.sigma_b2 or 0.0)
    except ValueError as error:
        raise ConfigError(str(error)) from error
