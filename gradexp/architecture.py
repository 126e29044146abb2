"""What the architecture of a family of networks allows: which options it takes, and which sizes go together.

The options of a run and the networks themselves have the same rules; a network also knows the width of its inputs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradexp.choices import MODEL_TAKES, NORMALIZATIONS, RESIDUALS, ConfigError, check_choice

LOWEST_SIZES = {"depth": 1, "width": 1, "kernel": 1, "heads": 1, "context": 1}
"""Size -> the lowest number that any family can work with."""

# What stands for the sizes of a model of one's own, which are its own affair.
_OF_NO_FAMILY = {"depth": 1, "width": 1}


def options_of_network(family: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a network; those that are None take the family's defaults.

    Args:
        family: The family, or the name of a model of somebody's own, which takes none of them.
        given: Option -> value, for all that an MLP takes.

    Raises:
        ConfigError: For one that the family does not take.
    """
    taken = MODEL_TAKES.get(family, {})
    options = {}
    for key, usual in MODEL_TAKES["mlp"].items():
        neutral = _OF_NO_FAMILY.get(key, usual)
        if key not in taken and given[key] not in (None, neutral):
            takes = (
                f"it takes {', '.join(taken)}" if taken else f"write model.{key}=VALUE if yours has such an option"
            )
            raise ConfigError(f"model '{family}' takes no {key}; {takes}")
        options[key] = taken.get(key, neutral) if given[key] is None else given[key]
    return options


def check_sizes(
    family: str,
    *,
    depth: int,
    width: int,
    features: int | None = None,
    kernel: int | None = None,
    heads: int | None = None,
    context: int | None = None,
) -> None:
    """Check that the sizes of a network go together.

    Args:
        family: The family.
        depth: Its depth, as the family counts it.
        width: Units or channels of a hidden layer.
        features: Number of inputs; None: not known, and only what does not depend on it is checked.
        kernel: Height and width of a kernel.
        heads: Heads of attention.
        context: Number of tokens.

    Raises:
        ValueError: For the first size that cannot work.
    """
    sizes = {"depth": depth, "width": width, "kernel": kernel, "heads": heads, "context": context}
    for name, value in sizes.items():
        if value is not None and value < LOWEST_SIZES[name]:
            raise ValueError(f"{name} must be at least {LOWEST_SIZES[name]}, got {value}")
    if family == "resnet":
        blocks_of(depth)
    if family == "rnn" and depth < 2:
        raise ValueError(f"depth must be at least 2, a time step and the readout, got {depth}")
    if heads is not None and width % heads:
        raise ValueError(f"width must be a multiple of heads={heads}, got {width}")
    if kernel is not None:
        side = None if features is None else image_shape(features)[1]
        _check_kernel(kernel, None if depth == 1 else side)  # one layer is the readout
    if context is not None and features is not None:
        token_size(features, context, depth - 1 if family == "rnn" else None)


def check_additions(
    normalization: str,
    residual: str,
    hidden: Sequence[int],
    affine: bool = False,
    residuals: Sequence[str] = RESIDUALS,
) -> None:
    """Check that normalisation and skip connections are known ones and fit the hidden layers.

    Args:
        normalization: The normaliser.
        residual: The skip connections.
        hidden: Width of each hidden layer.
        affine: Whether the normaliser has a learnable scale.
        residuals: The skip connections that the family has.

    Raises:
        ValueError: If one is unknown, widths differ in a residual network, or nothing has a scale.
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("residual", residual, residuals)
    if affine and normalization == "none":
        raise ValueError("affine needs a normalization (batch, layer or rms), whose scale and shift they are")
    if residual != "none" and len(set(hidden)) > 1:
        raise ValueError(f"residual={residual!r} needs hidden layers of equal width, got {list(hidden)}")


def blocks_of(depth: int) -> int:
    """Return how many blocks of two layers are between the first layer and the last of a residual network.

    Raises:
        ValueError: If they do not come out even.

    Examples:
        >>> blocks_of(152)
        75
    """
    if depth < 2 or depth % 2:
        nearest = f"{depth - 1} or {depth + 1}" if depth > 2 else "2"
        raise ValueError(f"depth must be even, a stem, blocks of two layers and a readout: {nearest}, got {depth}")
    return (depth - 2) // 2


def image_shape(features: int) -> tuple[int, int]:
    """Return channels and side of the square images that some features are: of one channel, or of three.

    Raises:
        ValueError: If they are none.

    Examples:
        >>> image_shape(64), image_shape(3 * 32 * 32)
        ((1, 8), (3, 32))
    """
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if channels * side**2 == features:
            return channels, side
    raise ValueError(f"images are channels · side · side features with 1 or 3 channels, got {features} features")


def token_size(features: int, context: int, most: int | None = None) -> int:
    """Return how many features a token has when they are cut into tokens of equal size.

    Args:
        features: Number of features.
        context: Number of tokens.
        most: The largest number of tokens, to which ``context`` is cut: the time steps of an rnn; None: any.

    Raises:
        ValueError: If a token would hold nothing but zeros.

    Examples:
        >>> token_size(64, 8), token_size(5, 2), token_size(64, 100, most=2)
        (8, 3, 32)
    """
    count = context if most is None else min(context, most)
    size = math.ceil(features / count)
    if size * (count - 1) >= features:
        filled = math.ceil(features / size)
        cut = f" (cut to {count}, one per time step)" if count < context else ""
        raise ValueError(
            f"context must be smaller, such as {filled}: {features} features make {filled} tokens of {size}, "
            f"so that others are empty, got {context}{cut}"
        )
    return size


def _check_kernel(kernel: int, side: int | None) -> None:
    """Check that a kernel has a centre, and fits into an image, if its side is known."""
    if kernel % 2 == 0 or (side is not None and kernel > side):
        fits = "" if side is None else f" and at most {side}, the side of the images"
        raise ValueError(f"kernel must be odd{fits}, got {kernel}")
