"""What tells one command from another."""

from dataclasses import dataclass

from gradexp.config import Config


@dataclass(frozen=True)
class Command:
    """What tells one command line from another.

    Args:
        name: What follows ``python -m gradexp.``.
        summary: What it does, the first line of its help.
        example: Options to begin with.
        sweep: Options of a sweep.
        schema: Dataclass of its options. Those of ``Config`` are composed from the config folder.
        unused: Options and groups that the help leaves out, since they change nothing here.
        keeps_files: Whether a job leaves files in a folder of its own.
    """

    name: str
    summary: str
    example: str
    sweep: str
    schema: type = Config
    unused: tuple[str, ...] = ()
    keeps_files: bool = True

    @property
    def compares(self) -> bool:
        """Whether a sweep can be gone on with and ends with a comparison: of runs, which leave a summary."""
        return self.keeps_files and self.schema is Config


RUN = Command(
    "run",
    summary="Build, measure and train one very deep network.",
    example="init=he depth=150",
    sweep="init=he,xavier depth=10,50,150",
)
