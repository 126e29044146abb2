"""Results of small runs, real and invented."""

import math

import numpy as np
import torch

from gradexp import MLP, exact_profile, initialize, theory
from gradexp.config import Config
from gradexp.history.history import History
from gradexp.history.step import STATUSES
from gradexp.history.verdict import Verdict
from gradexp.runs.result import Result
from gradexp.runs.training import Training

NAN = math.nan


def profile(networks=1, depth=6):
    """Measure a small real network."""
    model = MLP([4, *[8] * (depth - 1), 3], "tanh", networks=networks)
    initialize(model, "xavier", seed=0)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    return exact_profile(model, x, seeds=list(range(networks)))


def invented(output_grad, statuses=None, output=None, seeds=1, **options):
    """Return an initial profile with the given log10 of every size, the same in each network."""
    grad = np.broadcast_to(np.array(output_grad, float), (1, seeds, len(output_grad)))
    sizes = {"output": grad if output is None else np.broadcast_to(np.array(output, float), grad.shape)}
    sizes |= {"output_grad": grad, "weight_grad": grad}
    codes = {quantity: np.zeros(grad.shape, np.int8) for quantity in sizes}
    for quantity, names in (statuses or {}).items():
        codes[quantity][:] = [STATUSES.index(name) for name in names]
    names = [f"layers.{index}" for index in range(grad.shape[2])]
    largest = {quantity: sizes[quantity] for quantity in ("output", "output_grad")}
    return History("init", names, [0], list(range(seeds)), sizes, codes, largest, np.zeros(seeds), **options)


def gradients():
    """Return what a probe may have recorded at steps 0 and 2: layer 1 dies, layer 2 overflows, at step 2."""
    values = {
        quantity: np.array([[[-5.25, -2.0, -1.0]], [[NAN, NAN, 0.5]]]) for quantity in ("output_grad", "update")
    }
    codes = {quantity: np.zeros((2, 1, 3), np.int8) for quantity in values}
    codes["output_grad"][1, 0, :2] = [STATUSES.index("zero"), STATUSES.index("nonfinite")]
    return History("train", ["layers.0", "layers.1", "layers.2"], [0, 2], [0], values, codes)


def result(networks=1, status="complete", **options):
    given = {
        "initial": profile(networks),
        "gradients": gradients(),
        "training": Training([2.5, 1.5, 0.5], [0.1, 0.2, 0.9], [(0, 2.4, 0.1), (3, 0.6, 0.8)], None, 0.95),
        "verdict": Verdict("stable", "trained", "unavailable", "the gradient arrives: " + "as it should, " * 9),
        "building": "network   6 tanh layers\ninit      xavier (gain=1.0)",
        "seconds": 2.5,
        "seconds_by_part": {"weights": 0.25, "training": 1.25},
    }
    return Result(Config(depth=6, seeds=networks, batch_size=5), status=status, **(given | options))


def play(sink, run):
    """Tell a sink of a whole run in the order in which ``experiment.run`` does."""
    losses, accuracies, tests = run.training.losses, run.training.accuracies, run.training.tests
    final = run.training, run.gradients
    run.training, run.gradients = Training(), None
    for stage in ("start", "built", "initial"):
        sink.write(stage, run)
    for step, loss in enumerate(losses):
        run.training.tests += [test for test in tests if test[0] == step]
        run.training.losses.append(loss)
        run.training.accuracies += accuracies[step : step + 1]
        sink.write("step", run)
        sink.write("progress", run)
    run.training, run.gradients = final
    sink.write("end", run)
    sink.close()


def with_theory(networks=1, activation="relu", init="he", depth=6):
    """Return a run whose profile has theory beside it."""
    widths = [4, *[8] * (depth - 1), 3]
    mlp = MLP(widths, activation, networks=networks, dtype=torch.float64)
    initialize(mlp, init, seed=0)
    x = torch.randn(5, widths[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measured = exact_profile(mlp, x)
    prediction = theory.predict_layers(mlp.activation, theory.weight_laws(init, widths), widths, x)
    measured.theory = prediction.arrays
    comparison = theory.compare(prediction, measured)
    return result(networks, gradients=None, initial=measured, prediction=prediction, comparison=comparison)
