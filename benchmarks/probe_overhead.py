"""What the probe costs: ``python benchmarks/probe_overhead.py [--device cuda] [ROUNDS]``.

A 150-layer relu MLP with batch 64 is trained with SGD bare, with the probe on every 10th step and on every step, in
interleaved rounds on one thread; printed are medians of the time per step and the ratio to the bare loop.
"""

import argparse
import statistics
import time

import torch

from gradexp import MLP, GradientProbe, initialize


def milliseconds_per_step(width: int, every: int | None, device: str, steps: int = 20) -> float:
    model = initialize(MLP([width] * 151, "relu", device=device), "he", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(64, width, device=device)
    # A probe that records the first collect only stands for no probe at all.
    with GradientProbe(model, every=every or 10**9, optimizer=optimizer if every else None) as probe:
        for step in range(-1, steps):
            if step == 0:
                if device != "cpu":
                    torch.cuda.synchronize()
                begin = time.perf_counter()
            model(x).square().mean().backward()
            probe.collect(step)
            optimizer.step()
            optimizer.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plans = {"bare": None, "every 10th step": 10, "every step": 1}
    for width in (64, 128, 512):
        times: dict[str, list[float]] = {name: [] for name in plans}
        for _ in range(options.rounds):
            for name, every in plans.items():
                times[name].append(milliseconds_per_step(width, every, options.device))
        bare = statistics.median(times["bare"])
        for name, values in times.items():
            median = statistics.median(values)
            print(f"width {width:<4} {name:<16} {median:7.1f} ms per step   x{median / bare:.2f}")


if __name__ == "__main__":
    main()
