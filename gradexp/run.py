"""``python -m gradexp.run``: build, measure and train one very deep network."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from gradexp.cli.command import command
from gradexp.cli.interruptions import Interruptions
from gradexp.config import Config


def job(config: Config, folder: Path, overrides: list[str], interruptions: Interruptions) -> None:
    """Run one experiment and leave its files in a folder."""
    from gradexp.runs import stacks
    from gradexp.runs.experiment import deliver, run
    from gradexp.runs.result import Sink
    from gradexp.sinks.console import Console, Line
    from gradexp.sinks.files import Files
    from gradexp.sinks.tensorboard import TensorBoard
    from gradexp.sweeps.folder import alone_in, clear

    of_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    # In a sweep three further runs for each job would fill TensorBoard's list, and pictures take longer than a stack.
    subruns, figures = (
        not of_sweep if asked is None else asked for asked in (config.record.subruns, config.record.figures)
    )
    shown = Line(folder, config.quiet) if of_sweep else Console(folder, config.quiet)
    sinks: list[Sink] = [TensorBoard(folder, subruns, figures), Files(folder, figures), shown]
    with alone_in(folder / ".hydra", "run", "wait for its end, or choose another folder with hydra.run.dir=FOLDER"):
        clear(folder)
        if (result := stacks.take(config)) is not None:
            deliver(result, sinks, overrides)
        else:
            run(config, [interruptions, *sinks], overrides)


main = command(job)

if __name__ == "__main__":
    main()
