"""Where trainings in 16 bits give out, beside where theory and the profile in float64 expect it.

    python benchmarks/number_formats.py [--depth N] [--width N] [--device cuda]

Each row is a run of one step: the layer that ``gradexp.predict`` names without a network, the layer that the profile
of the real loss names for the very network, and the layer in which the recorded step has only zeros, inf or nan.
"""

import argparse
from datetime import date

import torch
from machine import machine

from gradexp.cli.composing import compose
from gradexp.predict.forecast import forecast
from gradexp.runs import run
from gradexp.runs.device import find_device
from gradexp.runs.number_format import Failure

SETTINGS = (
    "init=xavier activation=sigmoid",
    "init=normal init.std=0.25",
    "init=normal init.std=0.25 activation=tanh",
    "init=normal init.std=0.05 activation=tanh",
    "init=identity init.gain=0.5 activation=linear",
    "init=xavier",
    "residual=plain",
    "init=orthogonal activation=tanh",
)
FORMATS = ("dtype=float16", "dtype=bfloat16", "precision=amp_float16", "precision=amp_bfloat16")


def _short(failure: Failure | None) -> str:
    if failure is None:
        return "none"
    quantity = "gradient" if failure.quantity == "output_grad" else failure.quantity
    return f"{quantity} {'inf' if failure.overflow else '0'} {failure.layer}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=150)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    shape = [f"depth={options.depth}", f"width={options.width}", f"device={options.device}", "steps=1"]
    device = str(find_device(options.device))
    print(f"{date.today()}, torch {torch.__version__}, {machine(device)}, {options.depth} layers of {options.width}")
    print(f"{'setting':46}{'format':23}{'predicted':22}{'expected':16}measured")
    for setting in SETTINGS:
        for choice in FORMATS:
            (config,) = compose([*shape, *setting.split(), choice])
            predicted, check = forecast(config).in_training, run(config).format_check
            assert check is not None
            theory = "no formula"
            if predicted is not None:
                theory = _short(predicted.failure) + f" ± {predicted.layers:.1f}" * bool(predicted.layers)
            seen = f"{_short(check.expected):16}{_short(check.measured)}"
            print(f"{setting:46}{choice:23}{theory:22}{seen}", flush=True)


if __name__ == "__main__":
    main()
