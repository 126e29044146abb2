"""``python -m gradexp.run``: build, measure and train one very deep network."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from gradexp.cli import Interruptions, command
from gradexp.config import Config


def job(config: Config, folder: Path, overrides: list[str], interruptions: Interruptions) -> None:
    """Run one experiment and leave its files in a folder."""
    from gradexp import ensemble
    from gradexp.experiment import Sink, deliver, run
    from gradexp.sinks import Console, Files, TensorBoard

    # In a sweep three further runs for each job would fill TensorBoard's list.
    subruns = config.record.subruns and HydraConfig.get().mode is not RunMode.MULTIRUN
    tensorboard = TensorBoard(folder, subruns)
    sinks: list[Sink] = [interruptions, Files(folder), tensorboard, Console(folder, config.quiet)]
    if (result := ensemble.take(config)) is not None:
        deliver(result, sinks, overrides)
    else:
        run(config, sinks, overrides)


main = command(job)

if __name__ == "__main__":
    main()
