"""What a run leaves in TensorBoard's Custom Scalars and Text tabs: charts side by side, and the run in words."""

import shlex
from typing import TYPE_CHECKING

from gradexp.hparams import options
from gradexp.result import Result

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

# Title of a chart -> tags of its scalars, as regular expressions. Theory has the tags of the profile in runs of its
# own, so that it is drawn into the same charts.
CHARTS = {
    "output gradient over layers, at initialisation (log10)": ["profile/log10_output_grad$"],
    "output rms over layers, at initialisation (log10)": ["profile/log10_output$"],
    "gradient at layer 1 over the last, in training (log10)": ["gradient/log10_first_over_last$"],
    "loss": ["train/loss$", "test/loss$"],
}


def layout() -> "Summary":
    """Return the layout of the Custom Scalars tab; those of several runs are merged into one."""
    from torch.utils.tensorboard.summary import custom_scalars

    found: Summary = custom_scalars({"gradexp": {title: ["Multiline", tags] for title, tags in CHARTS.items()}})
    return found


def texts(result: Result) -> "list[Summary]":
    """Return what the Text tab says of a run: its verdict, its options, and the command that repeats it.

    Args:
        result: A run at its end.
    """
    from torch.utils.tensorboard.summary import text

    given = {key: value for key, value in options(result.config).items() if value is not None}
    table = ["| option | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in given.items())]
    command = shlex.join(["python", "-m", "gradexp.run", *result.overrides])
    verdict = result.verdict
    said = "none: the run was not completed"
    if verdict is not None:
        said = f"**{verdict.words}**\n\n{verdict.text}"
    # TensorBoard orders them by name.
    parts = {"run/1 verdict": said, "run/2 command": f"    {command}", "run/3 options": "\n".join(table)}
    return [text(tag, content) for tag, content in parts.items()]
