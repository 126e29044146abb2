"""The range of each number format."""

import math

# bits of the significand, exponent of the smallest subnormal, exponent of the largest number
_FORMATS = {
    "float64": (53, -1074, 1023),
    "float32": (24, -149, 127),
    "float16": (11, -24, 15),
    "bfloat16": (8, -133, 127),
}


def limits(dtype: str) -> tuple[float, float]:
    """Return log10 of the largest number that rounds to 0 in a format, and of the smallest that rounds to inf.

    Both are ties, which round out of the range.
    """
    bits, lowest, highest = _FORMATS[dtype]
    return (lowest - 1) * math.log10(2), math.log10(2 - 2**-bits) + highest * math.log10(2)


def smallest_normal(dtype: str) -> float:
    """Return log10 of the smallest number that has all digits of a format."""
    bits, lowest, _ = _FORMATS[dtype]
    return (lowest + bits - 1) * math.log10(2)
