"""Random numbers: one generator per purpose, so that no choice shifts the draws of another."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator for one purpose of one network.

    The generator's own seed is the first 63 bits of sha256("seed purpose"), so that weights, batch order and
    cotangents of one network, and those of networks with neighbouring seeds, are independent.

    Args:
        seed: The network's seed.
        purpose: The use of the numbers, for example ``"weights"``.

    Returns:
        A generator on the CPU: the same numbers whatever device and dtype they are then copied to.

    Examples:
        >>> generator(0, "weights").initial_seed() == generator(0, "biases").initial_seed()
        False
    """
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def steady(source: torch.Generator | None) -> Iterator[None]:
    """Let torch's, numpy's and Python's global generators begin alike for alike sources, and put them back.

    For functions that are not ours and draw from those; None lets them draw from where they are.
    """
    if source is None:
        yield
        return
    states = np.random.get_state(), random.getstate()
    seed = int(torch.randint(2**31, (), generator=source))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
