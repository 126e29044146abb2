"""A run's files: summary.json, layers.csv and weights.pt."""

import io
import json
from pathlib import Path
from typing import Any

from gradexp.atomic_write import replacing
from gradexp.history.history import write_csv
from gradexp.runs.result import Result, Stage
from gradexp.runs.summary import summary
from gradexp.sinks.pictures import write_pictures


class Files:
    """Write summary.json, layers.csv and, if asked for, weights.pt and pictures.

    summary.json is there from the start, with status ``running``, and is replaced whole each time.

    Args:
        folder: The run's own folder.
        figures: Whether to draw pictures.

    Raises:
        OSError: If the folder cannot be written to.
    """

    def __init__(self, folder: Path, figures: bool = False) -> None:
        self.folder = folder
        self.figures = figures

    def write(self, stage: Stage, result: Result) -> None:
        """Bring the files up to date."""
        if stage not in ("start", "initial", "end") or (stage == "initial" and result.gradients is not None):
            return  # of a result that is delivered the end comes at once
        try:
            if stage != "start":
                with replacing(self.folder / "layers.csv") as path:
                    write_csv(path, [history for history in (result.initial, result.gradients) if history])
            if stage == "end" and result.weights is not None:
                _write_weights(self.folder / "weights.pt", result.weights)
            if stage == "end" and self.figures:
                write_pictures(self.folder, result)
            # Last, so that a summary that says "complete" stands beside files that are.
            write_summary(self.folder, summary(result))
        except Exception as error:  # also of an import that an interruption has cut short
            if isinstance(error, OSError) and error.errno:
                error.filename = error.filename or str(self.folder)  # a full disk has none
            failed = {"status": "failed", "error": str(error)} if result.status != "interrupted" else {}
            try:
                write_summary(self.folder, {**summary(result), **failed})
            except OSError:
                error.add_note("not even its summary.json could be brought up to date")
            raise

    def close(self) -> None:
        """Nothing is held open."""


def _write_weights(path: Path, weights: dict[str, Any]) -> None:
    """Write weights.pt; torch itself makes a RuntimeError of a full disk."""
    import torch  # is loaded by now, but not when a run starts

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with replacing(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def write_summary(folder: Path, content: dict[str, Any]) -> None:
    """Write summary.json."""
    with replacing(folder / "summary.json") as path:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
