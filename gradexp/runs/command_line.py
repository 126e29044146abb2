"""The command of a run."""

import shlex
from collections.abc import Sequence

from gradexp.choices import is_sweep


def command_with(overrides: Sequence[str], remedy: str) -> str:
    """Return the command of a run with a remedy's options in place of those it was typed with.

    Args:
        overrides: The options of the run, as typed.
        remedy: The options of the remedy, as typed.

    Examples:
        >>> command_with(["depth=100", "init=normal", "init.std=0.1"], "init=orthogonal activation=tanh")
        'python -m gradexp.run depth=100 init=orthogonal activation=tanh'
    """
    options = shlex.split(remedy)
    keys = {option.partition("=")[0] for option in options}

    def stays(override: str) -> bool:
        key = override.lstrip("+~").partition("=")[0]
        return key not in keys and key.partition(".")[0] not in keys

    kept = [override for override in overrides if stays(override)]
    typed = dict(override.lstrip("+~").split("=", 1) for override in kept if "=" in override)
    alone = ["hydra.mode=RUN"] if "experiment" in typed and is_sweep(typed["experiment"]) else []
    return shlex.join(["python", "-m", "gradexp.run", *kept, *options, *alone])
