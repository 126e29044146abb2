"""What a benchmark ran on."""

import platform
from pathlib import Path

import torch


def machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
