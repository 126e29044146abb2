"""``python -m gradexp.run``: build, measure and train one very deep network."""

from gradexp.cli.interruptions import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # before the imports, which take half a second

from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from gradexp.cli.command import command
from gradexp.cli.interruptions import Interruptions
from gradexp.config import Config


def job(config: Config, folder: Path, overrides: list[str], interruptions: Interruptions) -> float | None:
    """Run one experiment and leave its files in a folder; return its objective, if there is one."""
    # Here, since they load numpy and rich, which --help does without.
    from gradexp.cli.objective import check_objective, handed_over
    from gradexp.runs import stacks
    from gradexp.runs.experiment import deliver, run
    from gradexp.runs.result import Sink
    from gradexp.runs.summary import summary
    from gradexp.sinks.console import Console, Line
    from gradexp.sinks.curves import curves_for
    from gradexp.sinks.files import Files
    from gradexp.sinks.folder import keep_until_replaced
    from gradexp.sinks.page import PageFile
    from gradexp.sinks.tensorboard import TensorBoard
    from gradexp.sweeps.folder import alone_in

    if config.objective is not None:
        check_objective(config.objective)
    of_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    # In a sweep three further runs for each job would fill TensorBoard's list, pictures take longer than a stack, and
    # one page shows all jobs.
    record = config.record
    subruns, figures, report = (
        not of_sweep if asked is None else asked for asked in (record.subruns, record.figures, record.report)
    )
    screen = Line(folder, config.quiet) if of_sweep else Console(folder, config.quiet)
    pages: list[Sink] = [PageFile(folder)] if report else []
    sweep = folder.parent.name if of_sweep else ""
    curves: list[Sink] = [] if config.log is None else [curves_for(config.log, folder, sweep, figures)]
    files: list[Sink] = [TensorBoard(folder, subruns, figures), *curves, *pages, Files(folder, figures)]
    remedy = "wait for its end, or choose another folder with hydra.run.dir=FOLDER"
    with alone_in(folder / ".hydra", "run", remedy, wait=_REPORT_LOOKS):
        sinks = [*keep_until_replaced(folder, files), screen]
        if (result := stacks.take(config)) is not None:
            with interruptions.held():
                deliver(result, sinks, overrides)
        else:
            result = run(config, [interruptions, *sinks], overrides)
    content = {} if config.objective is None else summary(result)
    return handed_over(config.objective, content, HydraConfig.get().sweeper)


# Seconds. A report that looks whether a job is at work holds its lock for a moment.
_REPORT_LOOKS = 1.0

main: Callable[[], None] = command(job)

if __name__ == "__main__":
    main()
