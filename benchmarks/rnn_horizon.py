"""How many steps back the gradient of a recurrent network reaches over 300 steps, measured and foretold.

``python benchmarks/rnn_horizon.py`` prints the table of docs/networks.md: 1 / |log_chi| of 8 networks of 128 units at
initialisation, on the handwritten digits read row by row, and then nothing.
"""

from gradexp.config import Config, InitConfig
from gradexp.runs.experiment import run
from gradexp.runs.summary import summary

CASES = (
    ("identity", 0.98, "linear"),
    ("orthogonal", 0.98, "linear"),
    ("lecun", 0.98, "linear"),
    ("identity", 1.0, "relu"),
    ("orthogonal", 1.0, "tanh"),
    ("orthogonal", 1.2, "tanh"),
    ("lecun", 1.5, "tanh"),
    ("lecun", 2.5, "tanh"),
)


def main() -> None:
    """Print the table."""
    print("| recurrence | activation | measured log_chi | theory | steps, measured | theory | verdict |")
    print("|---|---|---|---|---|---|---|")
    for init, gain, activation in CASES:
        options = {"activation": activation, "depth": 301, "seeds": 8, "batch_size": 8, "steps": 0}
        result = run(Config(model="rnn", init=InitConfig(init, gain=gain), **options))
        initial = summary(result)["initial"]
        measured, error = initial["log_chi"], initial["log_chi_se"]
        foretold = result.prediction.log_chi
        theory = ("-", "-") if foretold is None else (f"{foretold:+.4f}", _steps(foretold))
        cells = [f"`{init}`, gain {gain:g}", activation, f"{measured:+.4f} ± {error:.4f}", theory[0]]
        print(f"| {' | '.join([*cells, _steps(measured), theory[1], result.comparison.verdict])} |", flush=True)


def _steps(log_chi: float) -> str:
    return f"{1 / abs(log_chi):.3g}" if abs(log_chi) > 1e-4 else "all"


if __name__ == "__main__":
    main()
