"""``python -m gradexp.run``: build, measure and train one very deep network."""

from pathlib import Path

from gradexp.cli import Interruptions, command
from gradexp.config import Config


def job(config: Config, folder: Path, overrides: list[str], interruptions: Interruptions) -> None:
    """Run one experiment and leave its files in a folder."""
    from gradexp.experiment import run
    from gradexp.sinks import Console, Files, TensorBoard

    run(config, [interruptions, Files(folder), TensorBoard(folder), Console(folder, config.quiet)], overrides)


main = command(job)

if __name__ == "__main__":
    main()
