"""What the probe costs in an eager, a compiled and a captured step: bare and recorded steps in turn.

``python benchmarks/probe_modes.py [--device cuda] [--backend inductor] [--width 512] [--depth 50] [ROUNDS]``

A captured step is a CUDA graph that is replayed, with the norms taken inside of it (``gradexp.probe.captured``). On
the CPU there are no graphs: there the same step is called instead, which tests the path and measures nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from itertools import count

import numpy as np
import torch
from machine import machine
from torch import Tensor, nn

from gradexp import GradientProbe
from gradexp.probe.captured import CapturedProbe

BATCH, STEPS = 128, 10
QUANTITIES = ("output", "output_grad", "weight_grad")

Step = Callable[[], object]


class Task:
    """A model in training, with learning rate 0 so that every step costs the same."""

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(given.depth):
            layers += [nn.Linear(given.width, given.width), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
        self.model = nn.Sequential(*layers[:-1]).to(given.device)
        self.x = torch.randn(BATCH, given.width, device=given.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)

    def train(self, forward: Callable[[Tensor], Tensor], after_backward: Step = lambda: None) -> None:
        forward(self.x).square().mean().backward()
        after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)


def captured(step: Step, device: str) -> Step:
    """Return a function that replays a step."""
    if device == "cpu":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def add_pair(
    steps: dict[str, Step],
    name: str,
    given: argparse.Namespace,
    hooked: ExitStack,
    wrap: Callable[[nn.Module], Callable[[Tensor], Tensor]],
) -> None:
    """Add a step without and with the probe, each of a model of its own."""
    bare, recorded = Task(given), Task(given)
    probe = hooked.enter_context(GradientProbe(recorded.model, quantities=QUANTITIES))
    forward, own = wrap(bare.model), wrap(recorded.model)
    steps[name] = lambda: bare.train(forward)
    steps[f"{name}, probe"] = lambda: recorded.train(own, probe.collect)


def add_captured(steps: dict[str, Step], given: argparse.Namespace, hooked: ExitStack) -> None:
    bare, recorded = Task(given), Task(given)
    steps["captured"] = captured(lambda: bare.train(bare.model), given.device)
    with ExitStack() as while_capturing:
        probe = (hooked if given.device == "cpu" else while_capturing).enter_context(CapturedProbe(recorded.model))
        replay = captured(lambda: recorded.train(recorded.model, probe.measure), given.device)
    label = count()

    def step() -> None:
        replay()
        probe.collect(next(label))

    steps["captured, probe"] = step


def milliseconds(step: Step, device: str) -> float:
    finish = torch.cuda.synchronize if device != "cpu" else lambda: None
    finish()
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    finish()
    return 1e3 * (time.perf_counter() - begin) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=50)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, torch {torch.__version__}, {machine(given.device)}")
    print(f"{given.depth} layers of {given.width}, batch {BATCH}; rounds: {given.rounds}", flush=True)
    steps: dict[str, Step] = {}
    with ExitStack() as hooked:
        add_pair(steps, "eager", given, hooked, lambda model: model)
        add_pair(steps, "compiled", given, hooked, lambda model: torch.compile(model, backend=given.backend))
        add_captured(steps, given, hooked)
        for step in steps.values():
            milliseconds(step, given.device)  # not timed: kernels are loaded, and models compiled
        laps = [{name: milliseconds(step, given.device) for name, step in steps.items()} for _ in range(given.rounds)]
    print(f"{'':<24} {'ms per step':>11}   {'x bare':>6}   quartiles")
    for name in steps:
        bare = name.partition(",")[0]
        low, ratio, high = np.percentile([lap[name] / lap[bare] for lap in laps], [25, 50, 75])
        middle = statistics.median(lap[name] for lap in laps)
        print(f"{name:<24} {middle:11.2f}   {ratio:6.2f}   {low:.2f} to {high:.2f}")
    if given.device == "cpu":
        print("On a CPU a captured step is called, not replayed: the last two lines say nothing of a GPU.")


if __name__ == "__main__":
    main()
