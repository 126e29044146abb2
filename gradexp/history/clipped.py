"""That recorded gradients are those after clipping."""

from gradexp.history.finding import Finding


def clipped(by: str, max_norm: float) -> Finding:
    """Return that somebody has clipped the weights' gradients before they were recorded.

    Args:
        by: Who has.
        max_norm: The norm of all gradients above which they were made smaller.
    """
    text = f"{by} has clipped gradients to a norm of {max_norm:g} before they were recorded: weight gradients are as "
    text += "clipped, ∂L/∂z as it came"
    return Finding("clipped", text, (), "record a training without clipping (max_grad_norm=0 of a Trainer)", 1)
