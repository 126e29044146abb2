"""What an armed probe costs in a step that it watches and does not record, over a step without a probe.

    python benchmarks/alarm_cost.py [rounds] [--batch N]

A 12-layer ReLU network of width 256 trains by SGD; steps with and without the probe alternate in laps, and the median
ratio of their processor times is printed.
"""

import argparse
import gc
import statistics
import time
from datetime import date

import torch
from torch import nn

from gradexp import GradientProbe


def lap(batch: int, is_watched: bool, steps: int = 20) -> float:
    """Return the processor time of a step, in milliseconds."""
    torch.manual_seed(0)
    layers = [module for _ in range(12) for module in (nn.Linear(256, 256), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(batch, 256)
    probe = GradientProbe(model, every=10**9, optimizer=optimizer, quantities=("weight_grad",), alarm="raise")
    if is_watched:
        probe.attach()
    for step in range(steps + 1):
        if step == 1:  # the first one is recorded
            begin = time.process_time()
        model(x).square().mean().backward()
        if is_watched:
            probe.collect(step)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.process_time() - begin
    if is_watched:
        probe.remove()
    return 1e3 * seconds / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=30)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lap(options.batch, True)
    gc.freeze()
    laps = [(lap(options.batch, False), lap(options.batch, True)) for _ in range(options.rounds)]
    bare = statistics.median(bare for bare, _ in laps)
    low, ratio, high = statistics.quantiles([watched / bare for bare, watched in laps], n=4)
    print(f"{date.today()}, torch {torch.__version__}, 1 thread, batch {options.batch}, {options.rounds} rounds")
    print(f"bare: {bare:.2f} ms per step; watched: x{ratio:.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
