"""``python -m gradexp.phase``: draw where in the plane of variances gradients vanish, explode and survive."""

from gradexp.cli.interruptions import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # before the imports, which take half a second

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gradexp.choices import ACTIVATIONS, ConfigError
from gradexp.cli.about import Command
from gradexp.cli.command import command
from gradexp.cli.interruptions import Interruptions

if TYPE_CHECKING:
    from rich.console import Console

    from gradexp.phase.plane import Progress


@dataclass
class PhaseConfig:
    """A phase diagram, and how gradients depend on the scale of the weights."""

    activation: str = "tanh"
    """what is applied after every layer but the last"""
    negative_slope: float = 0.01
    """slope of leaky_relu below 0"""
    sigma_w2: list[float] = field(default_factory=lambda: [0.2, 5.0])
    """weight variances fan_in * Var(W) of the plane: from, to"""
    sigma_b2: list[float] = field(default_factory=lambda: [0.0, 0.5])
    """bias variances Var(b) of the plane: from, to"""
    columns: int = 49
    """points of the plane along sigma_w2"""
    rows: int = 29
    """points of the plane along sigma_b2"""
    measure: bool = False
    """measure networks in the plane too, and colour their dots like the plane"""
    dots: list[int] = field(default_factory=lambda: [4, 3])
    """dots along sigma_w2 and along sigma_b2"""
    weight_scale: list[float] = field(default_factory=lambda: [0.4, 2.5])
    """weight scales lambda of the second picture, whose sigma_w2 is lambda²: from, to"""
    depth: int = 150
    """number of weight matrices L of measured networks"""
    width: int = 100
    """units in every layer of measured networks"""
    seeds: int = 4
    """networks that are measured at each point"""
    seed: int = 0
    """seed of the first of them"""

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            ConfigError: For the first option whose value cannot work.
        """
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        for key, low in (("sigma_w2", 0.0), ("sigma_b2", 0.0), ("weight_scale", 1e-6)):
            ends = getattr(self, key)
            if len(ends) != 2 or not low <= ends[0] < ends[1] <= 1e6:
                raise ConfigError(f"{key} must be [from, to] with {low:g} <= from < to <= 1e6, got {ends}")
        if len(self.dots) != 2 or min(self.dots) < 1:
            raise ConfigError(f"dots must be two numbers of at least 1, got {self.dots}")
        lowest = {"columns": 2, "rows": 2, "depth": 2, "width": 1, "seeds": 1, "seed": 0}
        for key, least in lowest.items():
            if getattr(self, key) < least:
                raise ConfigError(f"{key} must be at least {least}, got {getattr(self, key)}")
        if not abs(self.negative_slope) <= 1e6:
            raise ConfigError(f"negative_slope must be at most 1e6 in size, got {self.negative_slope}")


ABOUT = Command(
    "phase",
    summary="Draw the phase diagram of an activation, and the critical region of its weight scale.",
    example="activation=tanh measure=true",
    sweep="activation=tanh,relu,erf",
    schema=PhaseConfig,
)


_DPI = 150


def job(config: PhaseConfig, folder: Path, _overrides: list[str], _interruptions: Interruptions) -> None:
    """Compute, draw and write both pictures."""
    import torch  # slow to load, as are the other imports here; --help does not wait for them

    torch.set_num_threads(1)  # tensors are small
    import numpy as np

    from gradexp.phase import plane
    from gradexp.phase.figures import phase_figure, weight_scale_figure
    from gradexp.plotting import save
    from gradexp.runs.terminal import Terminal

    console = Terminal()
    seeds = range(config.seed, config.seed + config.seeds)
    size = (config.width, config.depth, seeds, config.negative_slope)
    with _progress(console, "mean field") as progress:
        w2 = np.linspace(config.sigma_w2[0], config.sigma_w2[1], config.columns)
        # Denser at the lower end, where the edge runs flat into the axis.
        low, high = config.sigma_b2
        b2 = low + (high - low) * np.linspace(0, 1, config.rows) ** 2
        diagram = plane.phase_plane(config.activation, w2, b2, config.negative_slope, progress)
    plane.write_plane(folder / "phase.csv", diagram)
    console.print(f"edge      {_edge(config)}", markup=False)
    dots = []
    if config.measure:
        across, up = _inside(config.sigma_w2, config.dots[0]), _inside(config.sigma_b2, config.dots[1])
        points = [(w2, b2) for b2 in up for w2 in across]
        with _progress(console, "networks in the plane") as progress:
            dots = plane.measure_dots(config.activation, points, *size, progress)
        plane.write_rows(folder / "dots.csv", dots)
    current = Path.cwd()
    path = folder.relative_to(current) if folder.is_relative_to(current) else folder
    save(phase_figure(diagram, dots), folder / "phase", _DPI)
    console.print(f"picture   {path}/phase.png", markup=False, soft_wrap=True)
    with _progress(console, "weight scales") as progress:
        ends: tuple[float, float] = (config.weight_scale[0], config.weight_scale[1])
        lines = np.geomspace(*ends, 33)
        names = dict.fromkeys(("linear", config.activation))
        scales = plane.weight_scales(list(names), lines, lines[::2], *size, progress)
    plane.write_rows(folder / "critical_region.csv", scales)
    save(weight_scale_figure(scales), folder / "critical_region", _DPI)
    console.print(f"picture   {path}/critical_region.png", markup=False, soft_wrap=True)
    console.print("          each also as .svg, with its numbers as .csv", markup=False)


def _edge(config: PhaseConfig) -> str:
    """Return where chi_1 = 1, at three variances of the biases, in words."""
    from gradexp import theory

    low, high = config.sigma_b2
    places = [low + share * (high - low) for share in (0.0, 0.1, 0.4)]
    found = []
    for sigma_b2 in places:
        try:
            weight = theory.critical_sigma_w2(config.activation, sigma_b2, negative_slope=config.negative_slope)
        except ValueError:  # there is none
            found.append("none")
        else:
            found.append(f"{weight:.2f}")
    biases = ", ".join(f"{sigma_b2:.3g}" for sigma_b2 in places)
    return f"of chaos: sigma_w2 = {', '.join(found)} at sigma_b2 = {biases}"


def _inside(ends: list[float], count: int) -> list[float]:
    """Return the middles of equal parts of a range."""
    low, high = ends
    return [low + (index + 0.5) / count * (high - low) for index in range(count)]


@contextmanager
def _progress(console: "Console", activity: str) -> "Iterator[Progress | None]":
    """Show a bar on a terminal."""
    if not console.is_terminal:
        yield None
        return
    from gradexp.runs.bar import Bar  # loads rich

    with Bar(console) as bar:
        task = bar.add_task(activity, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


main: Callable[[], None] = command(job, ABOUT)

if __name__ == "__main__":
    main()
