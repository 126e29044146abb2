"""Wall time of a run and of its parts."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gradexp.runs.result import Result


class Clock:
    """Wall time of whole runs and of their parts. Runs that are made together share it equally."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results
        self.begin: float = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of a block to one part of the run."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            for result in self.results:
                seconds = result.seconds_by_part
                seconds[name] = seconds.get(name, 0) + self._share(begin)

    def stop(self) -> None:
        """Note the time of the whole run."""
        for result in self.results:
            result.seconds = self._share(self.begin)

    def _share(self, begin: float) -> float:
        return (time.perf_counter() - begin) / len(self.results)
