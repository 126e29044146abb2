"""A run's files: summary.json, layers.csv and weights.pt."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradexp.atomic_write import replacing
from gradexp.history.history import write_csv
from gradexp.runs.result import Result
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

    def write(self, stage: str, result: Result) -> None:
        """Bring the files up to date."""
        if stage not in ("start", "initial", "end"):
            return
        try:
            if stage != "start":
                with replacing(self.folder / "layers.csv") as path:
                    write_csv(path, [history for history in (result.initial, result.gradients) if history])
            if stage == "end" and result.weights is not None:
                import torch

                with replacing(self.folder / "weights.pt") as path:
                    torch.save(result.weights, path)
            if stage == "end" and self.figures:
                write_pictures(self.folder, result)
        except OSError as error:
            with suppress(OSError):
                write_summary(self.folder, {**summary(result), "status": "failed", "error": str(error)})
            raise
        # Last, so that a summary that says "complete" stands beside files that are.
        write_summary(self.folder, summary(result))

    def close(self) -> None:
        """Nothing is held open."""


def write_summary(folder: Path, content: dict[str, Any]) -> None:
    """Write summary.json."""
    with replacing(folder / "summary.json") as path:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
