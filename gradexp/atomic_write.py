"""Atomic writes: a file is replaced as a whole or left alone."""

import errno
import os
from pathlib import Path
from typing import Any


class replacing:  # noqa: N801  reads as a verb: with replacing(path)
    """A context that yields a file beside ``path`` to write to, which then takes its place in one step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.neighbour: Path = path.with_name(f"{path.name}.{os.getpid()}.part")  # others may write the same

    def __enter__(self) -> Path:
        # Else errors name the neighbour, which nobody knows.
        code = errno.EISDIR if self.path.is_dir() else 0 if self.path.parent.exists() else errno.ENOENT
        if code:
            raise OSError(code, os.strerror(code), str(self.path))
        return self.neighbour

    def __exit__(self, error: Any, *_: object) -> None:
        try:
            if error is None:
                os.replace(self.neighbour, self.path)  # noqa: PTH105  the name says what it is for
        finally:
            self.neighbour.unlink(missing_ok=True)
