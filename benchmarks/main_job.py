"""What recording costs in the main job: the default run's training against the same in plain PyTorch.

``python benchmarks/main_job.py [ROUNDS] [--width 128] [--depth 150] [--steps 100] [--against TREE]``

The plain script trains an ``nn.Sequential`` of the same weights with ``torch.optim.SGD`` on the same batches, and
evaluates it as often. Each round trains once in each way, in turn, so that all see the same machine. Printed are the
medians of the processor time, and of its ratio to that of plain PyTorch in the same round with quartiles. With
``--against`` another checkout of gradexp takes part in the rounds, in a process of its own.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from machine import machine
from other_tree import OtherTree, serve
from torch import nn

from gradexp import MLP, Config
from gradexp.config import RecordConfig
from gradexp.numerics.seeds import generator
from gradexp.runs import stages
from gradexp.runs.data import Dataset, batches, load
from gradexp.runs.result import Result
from gradexp.runs.training import Training

CPU = torch.device("cpu")


def drawn(config: Config, data: Dataset) -> MLP:
    return stages._draw(config, [config.seed], data, CPU, lambda *_: None)


def with_gradexp(config: Config, data: Dataset) -> Callable[[], float]:
    """Return a function that trains as ``gradexp.run`` does, and returns the last loss."""

    def train() -> float:
        result = Result(config, training=Training())
        stages._train([result], drawn(config, data), data, "cross_entropy", lambda _: None)
        assert result.training is not None
        return result.training.losses[-1]

    return train


def plain(config: Config, data: Dataset) -> Callable[[], float]:
    """Return a function that trains the same network as a script without gradexp does."""

    def train() -> float:
        mlp = drawn(config, data)
        layers: list[nn.Module] = []
        for stacked in mlp.layers:
            fan_out, fan_in = stacked.weight.shape[1:]
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
            layers[-2].load_state_dict({name: value[0] for name, value in stacked.state_dict().items()})
        model = nn.Sequential(*layers[:-1])
        optimizer = torch.optim.SGD(model.parameters(), lr=config.optimizer.lr)
        rows = batches(len(data.x_train), config.batch_size, generator(config.seed, "batches"))
        x, x_test = data.x_train.float(), data.x_test.float()

        @torch.no_grad()
        def evaluate(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
            output = model(x)
            return F.cross_entropy(output, y).item(), (output.argmax(1) == y).double().mean().item()

        losses, accuracies = [], []
        for step in range(config.steps):
            if step % max(1, config.steps // 10) == 0:
                evaluate(x_test, data.y_test)
            batch = next(rows)
            y = data.y_train[batch]
            output = model(x[batch])
            loss = F.cross_entropy(output, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            accuracies.append((output.argmax(1) == y).double().mean().item())
        evaluate(x_test, data.y_test)
        evaluate(x, data.y_train)
        return losses[-1]

    return train


def processor_seconds(function: Callable[[], float]) -> tuple[float, float]:
    begin = time.process_time()
    value = function()
    return time.process_time() - begin, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=7)
    for option, default in (("width", 128), ("depth", 150), ("steps", 100)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--against", help="folder of another checkout")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = Config(width=options.width, depth=options.depth, steps=options.steps)
    data = load(config.data, config.width)
    ways = {
        "plain PyTorch": plain(config, data),
        "gradexp, every step": with_gradexp(config, data),
        "gradexp, record.every=10": with_gradexp(replace(config, record=RecordConfig(every=10)), data),
    }
    laps = {name: partial(processor_seconds, way) for name, way in ways.items()}
    if options.serve:
        serve({name: lambda lap=lap: lap()[0] for name, lap in laps.items()})
        return
    if options.against is not None:
        other = OtherTree(
            options.against, [f"--{name}={vars(options)[name]}" for name in ("width", "depth", "steps")]
        )
        for name in [*laps][1:]:
            laps[f"{name}, other tree"] = lambda name=name: (other.lap(name), math.nan)
    for lap in laps.values():
        lap()  # not counted: torch loads on first use what it needs
    rounds = [[lap() for lap in laps.values()] for _ in range(options.rounds)]
    print(f"{date.today()}, torch {torch.__version__}, {machine('cpu')}, 1 thread")
    print(f"{config.depth} layers of {config.width}, {config.steps} steps; rounds: {options.rounds}")
    print(f"{'':<40}{'processor s':>12}   x plain   quartiles")
    for index, name in enumerate(laps):
        seconds = statistics.median(one[index][0] for one in rounds)
        low, middle, high = np.percentile([one[index][0] / one[0][0] for one in rounds], [25, 50, 75])
        print(f"{name:<40}{seconds:12.2f}   {middle:7.2f}   {low:.2f} to {high:.2f}")
    losses = [round(value, 3) for _, value in rounds[0][: len(ways)]]
    print(f"last losses, which are the same but for rounding: {losses}")


if __name__ == "__main__":
    main()
