"""The table of docs/networks.md: what one block of a 152-layer network does to the square of the gradient.

python benchmarks/resnet_rates.py: mean over 75 blocks of log ‖δ‖², 4 networks of width 16 on 4 digits, float64.
"""

import math
from itertools import product

import torch

from gradexp.config import Config
from gradexp.runs.data import load
from gradexp.runs.image_theory import predict_resnet
from gradexp.runs.models import build
from gradexp.runs.profiles import profile

SEEDS = 4


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    data = load(Config().data, 0)
    x = data.x_train[:4]
    print("| `residual` | `normalization` | measured | theory | of ‖δ‖² over 75 blocks, measured |")
    print("|---|---|---|---|---|")
    for normalization, residual in product(("none", "layer", "batch"), ("none", "plain", "depth", "zero", "fixup")):
        config = Config(model="resnet", depth=152, width=16, residual=residual, normalization=normalization)
        rates = []
        for seed in range(SEEDS):
            history = profile(build(config, x, data.output_width, seed), x, seed)
            logs = 2 * math.log(10) * history.profile("output_grad")
            rates.append((logs[0] - logs[-2]) / 75)
        mean = sum(rates) / SEEDS
        prediction = predict_resnet(config, x, data.output_width)
        of_theory = "none"
        if prediction.valid:
            logs = 2 * math.log(10) * prediction.log10_output_grad
            of_theory = f"{(logs[0] - logs[-2]) / 75:+.4f}"
        decades = 75 * mean / math.log(10)
        print(f"| {residual} | {normalization} | {mean:+.4f} | {of_theory} | 10^{decades:+.1f} |", flush=True)


if __name__ == "__main__":
    main()
