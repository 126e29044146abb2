"""Show, measure and explain vanishing and exploding gradients in very deep networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradexp._version import __version__

if TYPE_CHECKING:
    from gradexp import theory as theory
    from gradexp.config import Config as Config
    from gradexp.diagnosis.measure import measure as measure
    from gradexp.exact.profile import exact_profile as exact_profile
    from gradexp.history.history import History as History
    from gradexp.networks.initialize import initialize as initialize
    from gradexp.networks.mlp import MLP as MLP
    from gradexp.probe.alarm import AlarmError as AlarmError
    from gradexp.probe.probe import GradientProbe as GradientProbe

# Loaded on first use: `import gradexp` alone takes milliseconds and loads neither torch nor Hydra.
_HOMES = {
    "AlarmError": "probe.alarm",
    "Config": "config",
    "GradientProbe": "probe.probe",
    "History": "history.history",
    "MLP": "networks.mlp",
    "exact_profile": "exact.profile",
    "initialize": "networks.initialize",
    "measure": "diagnosis.measure",
}

__all__ = [
    "MLP",
    "AlarmError",
    "Config",
    "GradientProbe",
    "History",
    "__version__",
    "exact_profile",
    "initialize",
    "measure",
    "theory",
]


if not TYPE_CHECKING:  # or type checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "theory":
            return import_module("gradexp.theory")
        if name not in _HOMES:
            raise AttributeError(f"module 'gradexp' has no attribute '{name}'")
        return getattr(import_module(f"gradexp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
