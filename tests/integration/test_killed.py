"""A training that is killed at a random moment has lost at most the last recorded step, and what it wrote opens."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from logged import (
    curve_of_csv,
    curve_of_mlflow,
    curve_of_tensorboard,
    curve_of_wandb,
    eventually,
    last_run_of_mlflow,
    rows_of_wandb,
)
from sweep_processes import LIMIT

from gradexp.history.history import History

# Trainings are forked from a process that has loaded what they need.
PROGRAM = """
import os, sys
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from gradexp import GradientProbe

kind = sys.argv[1]
if kind in ("mlflow", "wandb"):
    __import__(kind)

def options(folder):
    if kind == "save":
        return {"save": folder + "/record"}
    if kind == "csv":
        return {"log": folder + "/curves.csv"}
    if kind == "tensorboard":
        return {"log": SummaryWriter(folder)}
    if kind == "mlflow":
        import mlflow
        mlflow.set_tracking_uri("sqlite:///" + folder + "/mlflow.db")
        mlflow.start_run()
        return {"log": mlflow}
    import wandb
    settings = wandb.Settings(x_transaction_log_flush_interval=0.001, silent=True)
    run = wandb.init(mode="offline", dir=folder, settings=settings)
    print("file", run.settings.sync_file, flush=True)
    return {"log": run}

def train(options, steps=10**6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientProbe(model, optimizer=optimizer, **options) as probe:
        for step in range(steps):
            loss = model(torch.ones(2, 3)).square().mean()
            loss.backward()
            probe.collect(step, loss)
            optimizer.step()
            optimizer.zero_grad()
            os.write(1, b"step %d\\n" % step)  # whole or not at all, which wandb's print is not

train({"log": lambda step, numbers: None}, 2)  # loads the rest
print("begin", flush=True)
for line in sys.stdin:
    process = os.fork()
    if not process:
        train(options(line.strip()))
    print("process", process, flush=True)
    os.waitpid(process, 0)
    print("killed", flush=True)
"""


def killed(kind, folders, seed=0):
    """Yield, for a training in each folder, how many steps it had made, and the file that it named."""
    random_source = random.Random(seed)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, kind]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as program:

        def words():
            line = program.stdout.readline()
            assert line, "the program has ended"
            return line.split()

        while words() != ["begin"]:
            pass
        for folder in folders:
            program.stdin.write(f"{folder}\n")
            program.stdin.flush()
            known = {}
            wanted = random_source.randrange(1, 60)
            while int(known.get("step", -1)) < wanted or "process" not in known:
                known.update([words()])
            time.sleep(random_source.random() / 50)  # the moment within a step
            os.kill(int(known["process"]), signal.SIGKILL)
            while (line := words()) != ["killed"]:
                known.update([line])
            yield int(known["step"]) + 1, known.get("file")
        program.stdin.close()
        program.wait(LIMIT)


READ = {
    "save": lambda folder, _: History.load(folder / "record").steps,
    "csv": lambda folder, _: sorted(curve_of_csv(folder / "curves.csv")),
    "tensorboard": lambda folder, _: sorted(curve_of_tensorboard(folder)),
    "mlflow": lambda folder, _: sorted(
        curve_of_mlflow(folder / "mlflow.db", last_run_of_mlflow(folder / "mlflow.db"))
    ),
    "wandb": lambda _, file: sorted(curve_of_wandb(rows_of_wandb(file, has_end=False))),
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize(
    ("kind", "moments"), [("save", 10), ("csv", 10), ("tensorboard", 10), ("mlflow", 2), ("wandb", 3)]
)
def test_at_most_the_last_recorded_step_is_missing(kind, moments, tmp_path):
    if kind in ("mlflow", "wandb"):
        pytest.importorskip(kind, reason=f"{kind} is not installed")
    folders = [tmp_path / str(number) for number in range(moments)]
    for folder in folders:
        folder.mkdir()
    for folder, (made, file) in zip(folders, killed(kind, folders), strict=True):
        # What was handed over to a process of its own is written when that comes to it.
        least = made - 1 if kind == "wandb" else made
        found = eventually(lambda: READ[kind](folder, file), lambda steps: len(steps) >= least)  # noqa: B023
        assert found == [*range(len(found))]
