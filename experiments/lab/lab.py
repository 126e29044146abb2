"""Where an experiment gets its networks from: the preset of its name, with some options changed."""

from collections.abc import Sequence

from gradexp import MLP, initialize
from gradexp.cli.composing import compose
from gradexp.config import Config
from gradexp.runs.experiment import run_stack
from gradexp.runs.progress import Progress
from gradexp.runs.result import Result, Sink
from gradexp.runs.stacks import chunks, stackable_groups


class Lab:
    """Runs networks of one experiment, as ``python -m gradexp.run experiment=NAME`` would.

    Args:
        preset: Name of a file in ``configs/experiment/``.
        quick: Options of the quick version; none for the full one.
        overrides: Options that have the last word, as on the command line.
        device: The device of all networks, as the option of that name has it.
        progress: The bar that shows what is going on.
        sinks: Further receivers of every stage of every run.
    """

    def __init__(
        self,
        preset: str,
        quick: Sequence[str] = (),
        overrides: Sequence[str] = (),
        device: str = "auto",
        progress: Progress | None = None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.preset = preset
        self.quick = list(quick)
        self.overrides = list(overrides)
        self.device = device
        self.done = 0  # networks
        self.device_name = device  # known in full once something has run
        self.progress = progress or Progress(quiet=True)
        self.sinks = [self.progress, *sinks]

    def configs(self, *overrides: str, most: int | None = None) -> list[Config]:
        """Return the options of each network of the preset, or of the first ``most``, with some changed."""
        options = [f"experiment={self.preset}", f"device={self.device}", *self.quick, *overrides, *self.overrides]
        return compose(options, most)

    def hidden_layers(self, *overrides: str) -> MLP:
        """Return the preset's first network, or its ``seeds``, without the first and the last layer's own widths.

        All layers are those of the options; inputs and outputs are as wide as the hidden layers.
        """
        [config] = self.configs(*overrides, most=1)
        hidden = config.hidden_widths
        network = MLP([hidden[0], *hidden], config.activation, bias=config.bias, networks=config.seeds)
        return initialize(
            network, config.init.name, seed=config.seed, sigma_b2=config.sigma_b2, **config.init.options
        )

    def run(self, *overrides: str) -> Result:
        """Run the one network that these options describe."""
        [result] = self.runs(*overrides)
        return result

    def runs(self, *overrides: str) -> list[Result]:
        """Run all networks of the preset, those of equal shape as stacks, and return their results in order.

        Each has the numbers that ``gradexp.runs.run`` gives it alone.
        """
        configs = self.configs(*overrides)
        results: dict[int, Result] = {}
        for stack in stackable_groups(configs):
            for chunk in chunks(stack, configs[stack[0]]):
                self.progress.label = f"{self.done} networks done, {len(chunk)} at work: "
                results.update(zip(chunk, run_stack([configs[index] for index in chunk], self.sinks), strict=True))
                self.done += len(chunk)
        first = results[0]
        threads = f", {first.threads} thread{'s' if first.threads != 1 else ''}" if first.device == "cpu" else ""
        self.device_name = f"{first.device} ({first.device_name}{threads})"
        return [results[index] for index in range(len(configs))]
