"""Inputs as a sequence: what recurrent networks read one after another, and transformers all at once."""

from torch import Tensor
from torch.nn.functional import pad

from gradexp.architecture import token_size


def tokens(x: Tensor, context: int) -> Tensor:
    """Cut features into tokens of equal size, the last filled up with zeros; digits are 8 rows of 8 pixels.

    Args:
        x: Inputs, shape ``(batch, features)``.
        context: Number of tokens.

    Returns:
        Shape ``(batch, context, ceil(features / context))``.

    Raises:
        ValueError: If a token would hold nothing but zeros.

    Examples:
        >>> import torch
        >>> tokens(torch.arange(5.0).unsqueeze(0), 2)
        tensor([[[0., 1., 2.],
                 [3., 4., 0.]]])
    """
    features = x.shape[1]
    size = token_size(features, context)
    return pad(x, (0, context * size - features)).reshape(len(x), context, size)
