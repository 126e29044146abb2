"""What measuring many networks as one stack saves, and whether 1,000 of them take less than a minute.

``python benchmarks/stack.py [--device cuda] [--threads 2] [--sizes 1,4,16,64,256] [ROUNDS]``

With ``--sizes`` stacks of so many of the small networks of split 1 are measured, and nothing else.

Split 1 measures 32 small networks (width 16, depth 150, batch 16) at initialisation, as one stack and one at a time,
in turn. Printed are the medians over ROUNDS of the time per network and of the ratio, with its quartiles.

Split 2 draws and measures 1,000 networks as ``python -m gradexp.run seeds=1000 depth=60 width=100 activation=tanh
init=mean_field dtype=float64 steps=0`` does, once between the rounds of part 1, so that both see the same machine.
"""

import argparse
import resource
import statistics
import time
from datetime import date

import numpy as np
import torch
from machine import machine

from gradexp import MLP, Config, exact_profile, initialize
from gradexp.config import InitConfig
from gradexp.runs.experiment import run

NETWORKS, WIDTH, DEPTH, BATCH = 32, 16, 150, 16
LARGE = Config(
    seeds=1000, depth=60, width=100, activation="tanh", init=InitConfig("mean_field"), dtype="float64", steps=0
)


def clock(device: str) -> float:
    """Return the seconds on a clock, once the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def small_stack(device: str, networks: int = NETWORKS) -> tuple[MLP, list[MLP], torch.Tensor]:
    """Return a stack, its networks as stacks of one, and inputs."""
    stack = MLP([WIDTH] * (DEPTH + 1), "tanh", networks=networks, device=device)
    initialize(stack, "mean_field", seed=0)
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    return stack, [stack.network(index) for index in range(networks)], x


def milliseconds_per_network(networks: list[MLP], x: torch.Tensor, device: str) -> float:
    begin = clock(device)
    for network in networks:
        exact_profile(network, x)
    return 1e3 * (clock(device) - begin) / sum(network.networks for network in networks)


def compare_sizes(sizes: list[int], rounds: int, device: str) -> None:
    """Print what a network costs in stacks of several sizes, measured in turn."""
    stacks = {size: small_stack(device, size) for size in sizes}
    for stack, _, x in stacks.values():
        exact_profile(stack, x)  # not timed: a GPU's first call loads its kernels
    laps = [
        {size: milliseconds_per_network([stack], x, device) for size, (stack, _, x) in stacks.items()}
        for _ in range(rounds)
    ]
    print(f"\nnetworks of width {WIDTH}, depth {DEPTH}, batch {BATCH}; rounds: {rounds}")
    print(f"{'in a stack of':<24} {'ms per network':>14}   {'ms in all':>9}")
    for size in sizes:
        each = statistics.median(lap[size] for lap in laps)
        print(f"{size:<24} {each:14.3f}   {each * size:9.1f}")


def compare(rounds: int, device: str, threads: int) -> None:
    stack, alone, x = small_stack(device)
    exact_profile(stack, x)  # not timed: a GPU's first call loads its kernels
    times: list[tuple[float, ...]] = []
    found = None
    for index in range(rounds):
        times.append(tuple(milliseconds_per_network(networks, x, device) for networks in ([stack], alone)))
        if index == rounds // 2:
            LARGE.device, LARGE.threads = device, threads
            found = run(LARGE)
    together, separate = (statistics.median(pair[i] for pair in times) for i in range(2))
    low, middle, high = np.percentile([pair[1] / pair[0] for pair in times], [25, 50, 75])
    print(f"\n{NETWORKS} networks of width {WIDTH}, depth {DEPTH}, batch {BATCH}; rounds: {rounds}")
    print(f"{'':<24} {'ms per network':>14}   {'x stack':>7}   quartiles")
    print(f"{'one stack':<24} {together:14.2f}   {1:7.1f}")
    print(f"{'one network at a time':<24} {separate:14.2f}   {middle:7.1f}   {low:.1f} to {high:.1f}")
    assert found is not None
    assert found.initial is not None
    parts = found.seconds_by_part
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{LARGE.seeds} networks of width {LARGE.width}, depth {LARGE.depth}, batch {LARGE.batch_size}, float64")
    print(f"{'drawing the weights':<24} {parts['weights']:8.1f} s")
    print(f"{'measuring':<24} {parts['profile']:8.1f} s")
    print(f"{'the whole run':<24} {found.seconds:8.1f} s   {memory:.1f} GB at most")
    print(f"{'log_chi':<24} {found.initial.log_chi():8.4f} ± {found.initial.log_chi_se():.4f} per layer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", type=lambda text: list(map(int, text.split(","))))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    print(f"{date.today()}, torch {torch.__version__}, {machine(options.device)}, {threads}")
    if options.sizes:
        compare_sizes(options.sizes, options.rounds, options.device)
    else:
        compare(options.rounds, options.device, options.threads)


if __name__ == "__main__":
    main()
