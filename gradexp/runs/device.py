"""Where a run computes.

torch is imported inside functions: it takes a second, and commands use this file before they need it.
"""

import os
import platform
from contextlib import suppress
from typing import TYPE_CHECKING

from gradexp.choices import ConfigError

if TYPE_CHECKING:
    import torch


def fix_order_of_sums() -> None:
    """Make a network's numbers the same bit for bit, alone and in a stack.

    MKL reads this at its first use, so that it comes too late for a program that has used torch before.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def find_device(name: str) -> "torch.device":
    """Return the device of that name, or for ``auto`` CUDA where there is one.

    Raises:
        ConfigError: If it is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device={name} is not there: this PyTorch finds no GPU of Apple's; use device=cpu or auto")
    number = int(name.partition(":")[2] or 0)  # torch keeps the last eight bits of it
    if device.type == "cuda" and number >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device={name} is not there: PyTorch finds {count} CUDA devices; use device=cpu or auto")
    return device


def device_name(device: "torch.device") -> str:
    """Return what the hardware calls itself."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123  no regular file
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
