"""What a benchmark runs on: the machine, and the sources as an installer leaves them."""

import compileall
from pathlib import Path

import torch

from gradexp.runs.device import device_name


def machine(device: str) -> str:
    return device_name(torch.device(device))


def compile_sources() -> None:
    """Write bytecode as an installer does, also where Python itself may write none."""
    for package in ("gradexp", "hydra_plugins"):
        compileall.compile_dir(Path(__file__).parents[1] / package, quiet=1)
