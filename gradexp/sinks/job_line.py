"""The outcome of a job of a sweep in one line."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from gradexp.choices import GROUPS
from gradexp.folder_names import folder_name
from gradexp.history.sentences import loss_text
from gradexp.runs.summary import metrics
from gradexp.sinks.badges import coloured

_NUMBER, _NARROW = 3, 72
_OPTIONS = 12  # letters that they have room for at least


def job_line(name: str, content: Mapping[str, Any], width: int = 80) -> Text:
    """Return the outcome of a complete job: number, options, gradient, training, factor per layer, loss, time.

    Args:
        name: Name of its folder, which holds its number and the options in which it differs from others.
        content: Content of its summary.json.
        width: Characters of the line; a narrow one is without the time.
    """
    numbers = metrics(content)
    slope, loss = numbers["log_chi"], numbers["loss_last"]
    number, texts = _number_and_options(name, content["overrides"])
    end = [
        f"{'' if slope is None else f'{_factor(slope)}/layer':>11}",
        f"{'-' if loss is None else loss_text(loss):>5}",
    ]
    if width >= _NARROW:
        end[-1] = f"loss {end[-1]}"
        end.append(f"{_seconds(numbers['seconds'] or 0.0):>5}")
    words = [coloured(str(numbers["gradient"]), 9), coloured(str(numbers["training"]), 8)]
    taken = _NUMBER + 2 + sum(2 + len(part) for part in [*end, *(word.plain for word in words)])
    room = max(_OPTIONS, width - taken)
    text = next((text for text in texts if len(text) <= room), f"{texts[0][: room - 1]}…")
    return Text("  ").join([Text(f"{number:>{_NUMBER}}"), Text(f"{text:<{room}}"), *words, *map(Text, end)])


def _number_and_options(name: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Return number and options of a job in words, from its folder's name and its command line.

    The names of options head the columns of a sweep's table: there is a text without any name left out, without the
    first one, and so on.
    """
    found = re.match(r"(\d+)_?(.*)$", name, re.DOTALL)
    if found is None:
        return "", [name]
    number, rest = found.groups()
    typed = [re.sub(r"\\(.)", r"\1", text) for text in overrides]  # Hydra's sweeper writes mine\:f for mine:f
    differing = [text.lstrip("+~") for text in typed if folder_name(text) in rest]
    options = dict(text.split("=", 1) for text in differing if "=" in text)
    words, values = [option_words({key: value}) for key, value in options.items()], [*options.values()]
    return number, [", ".join(values[:left] + words[left:]) or rest for left in range(len(words) + 1)]


def option_words(options: Mapping[str, Any]) -> str:
    """Return options in words.

    Examples:
        >>> option_words({"init": "normal", "init.std": 0.06, "depth": 50, "optimizer.lr": None})
        'normal, std 0.06, depth 50'
    """
    words = []
    for key, value in options.items():
        if value is None:
            continue
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        speaks = (key in GROUPS or key in ("activation", "experiment")) and isinstance(value, str)
        words.append(text if speaks else f"{key.rpartition('.')[2]} {text}")
    return ", ".join(words)


def _factor(log_chi: float) -> str:
    """Return what a layer multiplies the gradient's norm by."""
    log10 = log_chi / (2 * math.log(10))
    return f"x{10**log10:.2f}" if -1 <= log10 < 2 else f"x10^{log10:.1f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
