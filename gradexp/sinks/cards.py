"""TensorBoard cards other than scalars: text, figures, histograms.

Functions import torch and TensorBoard, which are slow to load, when they are called.
"""

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gradexp.runs.result import Result
from gradexp.sinks.hparams import options
from gradexp.sinks.lines import format_lines, range_lines, slope_lines, theory_lines
from gradexp.sinks.pictures import encoded

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from tensorboard.compat.proto.summary_pb2 import Summary

    from gradexp.runs.result import Distribution


def text_cards(result: Result) -> "list[Summary]":
    """Return the texts of the Text tab: a run's verdict, where its number format fails, its command and its options.

    Args:
        result: A run at its end.
    """
    from torch.utils.tensorboard.summary import text

    values = {key: value for key, value in options(result.config).items() if value is not None}
    table = ["| option | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in values.items())]
    command = shlex.join(["python", "-m", "gradexp.run", *result.overrides])
    verdict = result.verdict
    verdict_text = "none: the run was not completed"
    if verdict is not None:
        lines: list[str] = []
        if (initial := result.initial) is not None:
            lines = slope_lines(initial.at()) + theory_lines(result)
            lines += range_lines(initial.at(), result.config.number_format) + format_lines(result)
        text_lines = "\n".join(lines).replace("\n" + " " * 10, "; ").split("\n")  # indented it would be code
        verdict_text = "\n\n".join([f"**{verdict.words}**", verdict.text, *text_lines])
    # TensorBoard orders them by name.
    cards = {"run/1 verdict": verdict_text, "run/2 command": f"    {command}", "run/3 options": "\n".join(table)}
    return [text(tag, content) for tag, content in cards.items()]


def picture(tag: str, figure: "Figure") -> "Summary":
    """Return a figure as a picture of the Images tab."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    content, width, height = encoded(figure)
    image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def histograms(outputs: "Mapping[int, Distribution]") -> "list[Summary]":
    """Return the histograms of some layers, for the Histograms and Distributions tabs.

    Args:
        outputs: Layer -> distribution of its outputs z over samples and units.
    """
    from torch.utils.tensorboard.summary import histogram_raw

    return [
        histogram_raw(
            f"outputs/layer_{layer:03}",
            min=float(distribution.edges[0]),
            max=float(distribution.edges[-1]),
            num=int(distribution.counts.sum()),
            sum=distribution.total,
            sum_squares=distribution.squares,
            bucket_limits=distribution.edges.tolist(),
            bucket_counts=[0, *distribution.counts.tolist()],  # the first reaches up to the smallest number
        )
        for layer, distribution in outputs.items()
    ]
