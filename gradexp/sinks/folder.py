"""The files of a run in its folder: which they are, whose they are, and when an earlier run's make room."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gradexp.choices import ConfigError
from gradexp.runs.result import Result, Sink, Stage
from gradexp.runs.summary_file import NAME, read_summary
from gradexp.sinks.event_file import event_files
from gradexp.sinks.page import NAME as PAGE

CURVES = "curves.csv"
# The summary last: without it the others would be those of another program.
_FILES = (PAGE, CURVES, "layers.csv", "weights.pt", NAME)
_PICTURES = ("output_gradient_*.png", "output_gradient_*.svg")
_SUBRUNS = ("", "theory", "theory/lower", "theory/upper", "step_*")


def written_by_a_run(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that are named as those that a run writes, its summary last."""
    # No deeper: runs of their own may lie below this one.
    for subrun in _SUBRUNS:
        for path in folder.glob(subrun) if subrun else (folder,):
            yield from event_files(path)
    for pattern in (*_PICTURES, *(f"{name}.*.part" for name in (*_FILES, *_PICTURES)), *_FILES):
        yield from folder.glob(pattern)


def clear(folder: Path) -> None:
    """Remove what an earlier attempt at a run left in its folder, and nothing else."""
    if (folder / NAME).exists():
        for path in written_by_a_run(folder):
            path.unlink()


def earlier_status(folder: Path) -> str | None:
    """Return the status of the run that a folder holds, None if there is none.

    Raises:
        ConfigError: If it holds files that this run would replace and no run of this version has written.
    """
    summary = read_summary(folder)
    if summary is not None:
        return str(summary["status"])
    others = [*written_by_a_run(folder), *folder.glob("events.out.tfevents.*")]
    if others:
        raise ConfigError(
            f"{folder} holds {others[0].name}, which no run of gradexp has left there; "
            "choose another folder with hydra.run.dir=FOLDER"
        )
    return None


def keep_until_replaced(folder: Path, sinks: Sequence[Sink]) -> list[Sink]:
    """Return the sinks of a run's files, so that they write nothing before there are results to replace old ones.

    A mistake that shows only when the data are loaded then leaves a complete run as it was. What is no complete run
    makes room at once.

    Args:
        folder: The run's folder.
        sinks: The sinks that write into it.

    Raises:
        ConfigError: If the folder holds files of another program.
    """
    if earlier_status(folder) == "complete":
        gate = _Gate(folder)
        return [_Gated(gate, sink) for sink in sinks]
    clear(folder)
    return list(sinks)


class _Gate:
    """Opens when there are results; then the old ones are removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_open = False

    def let(self, result: Result) -> bool:
        if not self.is_open and result.initial is not None:
            clear(self.folder)
            self.is_open = True
        return self.is_open


class _Gated:
    """A sink behind a gate."""

    def __init__(self, gate: _Gate, sink: Sink) -> None:
        self.gate = gate
        self.sink = sink

    def write(self, stage: Stage, result: Result) -> None:
        """Pass on what comes once the gate is open."""
        if self.gate.let(result):
            self.sink.write(stage, result)

    def close(self) -> None:
        """Pass it on."""
        self.sink.close()
