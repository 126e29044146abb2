"""What ``log=`` or ``save=`` costs: ``python benchmarks/log_cost.py [--blocks 56] [--steps 300] [--targets csv]``.

A residual network of 5 linear layers a block is trained by SGD, with the relative updates recorded, by one probe
without a log and one for each target, a step of one after a step of the other, in an order that rotates. Printed is
the processor time of all threads for a training step, from its forward pass to the optimizer's step, in mean and
median, and its ratio to the probe without a log. The mean holds the steps that are judged for findings, which are
rarer the longer a training goes on, and pictures, which wait until the time of their own training pays for them, 25 s
for the first one. A library's own time is in it, but for what is done by a process of its own, as with wandb and
MLflow: "function" is what this library needs, and "save" is ``save=`` with ``keep=100``. Target: a ratio of
at most 1.10.
"""

import argparse
import gc
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import machine
from torch import Tensor, nn

from gradexp import GradientProbe
from gradexp.probe import log as log_module

WIDTH, BATCH = 64, 64
TARGETS = ("save", "function", "csv", "tensorboard", "wandb", "mlflow")


class Block(nn.Module):
    """Five linear layers beside an identity."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "k", "v", "up", "down"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Return x and a tenth of what the layers make of it."""
        mixed = x + self.v(torch.tanh(self.q(x) * self.k(x)))
        return x + self.down(torch.relu(self.up(mixed))) / 10


class Model(nn.Module):
    """Blocks, with a layer before and after them."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def target(name: str, folder: Path) -> Any:
    """Return what a probe is to log to."""
    if name == "function":
        return lambda step, numbers: None  # noqa: ARG005
    if name == "csv":
        return folder / "curves.csv"
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder / "events"))
    if name == "wandb":
        import wandb

        return wandb.init(mode="offline", dir=str(folder), settings=wandb.Settings(silent=True))
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.start_run()
    return mlflow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=56)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--targets", default=",".join(TARGETS))
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Model(options.blocks)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    inputs = torch.randn(BATCH, WIDTH)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        names = [name for name in options.targets.split(",") if name]
        probes = {"none": GradientProbe(model, optimizer=optimizer)}
        for name in names:
            how = (
                {"save": Path(folder) / "record", "keep": 100}
                if name == "save"
                else {"log": target(name, Path(folder))}
            )
            probes[name] = GradientProbe(model, optimizer=optimizer, **how)
        times: dict[str, list[float]] = {name: [] for name in probes}
        log_module.time = SimpleNamespace(monotonic=lambda: sum(times[name]))  # what a picture must wait for
        gc.disable()
        for step in range(options.steps):
            order = [*probes]
            for name in order[step % len(order) :] + order[: step % len(order)]:
                probe = probes[name].attach()
                begin = time.process_time()
                loss = model(inputs).square().mean()
                loss.backward()
                probe.collect(step, loss)
                optimizer.step()
                optimizer.zero_grad()
                times[name].append(time.process_time() - begin)
                probe.remove()
            gc.collect()
        for probe in probes.values():
            probe.close()
        if "mlflow" in names:  # while its store is there
            import mlflow

            mlflow.end_run()
    rows = len(probes["none"].history.names)
    print(f"{machine('cpu')}, {date.today()}: {rows} rows, {options.steps} steps, one thread")
    print(f"{'log':<12} {'mean ms':>8} {'ratio':>6} {'median ms':>10} {'ratio':>6}")
    mean, median = (f(times["none"]) for f in (statistics.fmean, statistics.median))
    for name, own in times.items():
        a, b = statistics.fmean(own), statistics.median(own)
        print(f"{name:<12} {1e3 * a:8.1f} {a / mean:6.3f} {1e3 * b:10.1f} {b / median:6.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
