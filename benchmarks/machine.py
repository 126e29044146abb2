"""What a benchmark ran on."""

import torch

from gradexp.runs.device import device_name


def machine(device: str) -> str:
    return device_name(torch.device(device))
