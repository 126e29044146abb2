"""How long a model has been trained, as far as its weights show."""

from statistics import median

from torch import nn

from gradexp.numerics.torch_internals import version_of

STARTED = 20
"""More changes than initialisations make."""


def changes(model: nn.Module) -> int:
    """Return how often the weights of a model were changed in place in this process: about once a step, or twice.

    An initialisation makes a few changes, and a loaded checkpoint one, however long it was trained.
    """
    versions = [version_of(parameter) for parameter in model.parameters() if parameter.requires_grad]
    return int(median(versions)) if versions else 0
