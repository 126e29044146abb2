"""What to change in a run of another network than the MLP: options that have been tried out, not foretold."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from gradexp.choices import MODEL_TAKES, ConfigError
from gradexp.config import Config, InitConfig
from gradexp.history.history import History
from gradexp.history.step import mean
from gradexp.history.verdict import gradient_verdict
from gradexp.own_parts import OwnPart

Measure = Callable[[Config], History]
"""The profile at initialisation of a run with other options."""

_INITS = ("he", "orthogonal", "xavier", "lecun")
_RESIDUALS = ("depth", "zero")
_NORMALIZATIONS = ("layer", "batch")
_LARGE = 1.0  # log10 of their rms


def working_options(
    config: Config, measure: Measure, alike: float, foretold: Iterable[tuple[dict[str, str], Config]] = ()
) -> str | None:
    """Return the first change of options with which gradients reach the first row, as typed; None if none does.

    Outputs must then be of a size that a loss can begin with, and differ between samples.

    Args:
        config: The options of a run whose gradients vanish or explode, or that cannot tell inputs apart.
        measure: The function that measures a run.
        alike: Mean cosine between the outputs of two samples from which on a network cannot tell them apart.
        foretold: Options that theory names, and the run with them. They come first, as ``predict`` names them.
    """
    tried: list[dict[str, str]] = []
    for options, changed in chain(foretold, candidates(config)):
        if options in tried:
            continue
        tried.append(options)
        try:
            measured = measure(changed)
        except ConfigError:  # it does not go with the other options
            continue
        cosine = None if measured.output_cosine is None else mean(measured.output_cosine)
        is_stable = gradient_verdict(measured.at(), config.verdict.decades).gradient == "stable"
        if is_stable and (cosine or 0.0) < alike and not are_outputs_large(measured):
            return " ".join(f"{key}={value}" for key, value in options.items())
    return None


def are_outputs_large(measured: History) -> bool:
    """Return whether a network's outputs are so large that its loss begins far above that of guessing."""
    return bool(measured.profile("output")[-1] > _LARGE)


def candidates(config: Config) -> Iterator[tuple[dict[str, str], Config]]:
    """Yield options that may help a network that is no MLP and the run with them, the least change first."""
    for name in _INITS:
        if name != config.init.name or config.init != InitConfig(name):
            gain = {"init.gain": "1"} if config.init.gain not in (None, 1.0) else {}
            yield {"init": name, **gain}, replace(config, init=InitConfig(name))
    taken = {} if isinstance(config.model.name, OwnPart) else MODEL_TAKES[config.model.name]
    for key, values in (("residual", _RESIDUALS), ("normalization", _NORMALIZATIONS)):
        for value in values if key in taken else ():
            if value != getattr(config, key):
                change: Any = {key: value}
                yield change, replace(config, **change)
