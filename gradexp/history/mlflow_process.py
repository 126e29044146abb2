"""A process of its own that writes to MLflow's store, as Weights & Biases has one.

A store takes some 15 ms for the numbers of a step, most of it the same for one step or ten. So the training hands
each step to the process, in a fifth of a millisecond, and that writes all that has come meanwhile at once. What was
handed over is in the pipe: a training that is killed loses none of it, since the process writes it and then ends.

This file is the program of the process too. It imports nothing of this library.
"""

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_MOST_AT_ONCE = 1000  # metrics that MLflow takes in a batch


class MlflowProcess:
    """The process, which ends when this does.

    Args:
        uri: Of the store.
    """

    def __init__(self, uri: str) -> None:
        # Without the folder of this file in its path; a Ctrl-C is for the training.
        command = [sys.executable, "-P", __file__, uri]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        self._process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            pipesize=1 << 20,  # for the steps that are made until it is ready
        )
        self._sent = self._done = 0
        self._answers = b""
        self._end = weakref.finalize(self, _end, self._process)

    def send(self, run: str, step: int, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Hand over a step.

        Raises:
            OSError: If an earlier one could not be written, or this cannot be handed over.
        """
        now = int(1000 * time.time())
        line = json.dumps({"run": run, "step": step, "time": now, "metrics": metrics, "tags": tags}) + "\n"
        self._send(line.encode())
        self._read(is_waiting=False)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: If something could not be.
        """
        while self._done < self._sent:
            self._read(is_waiting=True)

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise OSError("the process that writes to MLflow has ended") from None
        self._sent += 1

    def _read(self, is_waiting: bool) -> None:
        """Read what the process has answered: how many steps it has written, or why it could not."""
        assert self._process.stdout is not None
        answers = self._process.stdout.fileno()
        os.set_blocking(answers, is_waiting)
        try:
            answer = os.read(answers, 1 << 16)
        except BlockingIOError:
            return
        if not answer:
            raise OSError("the process that writes to MLflow has ended")
        *lines, self._answers = (self._answers + answer).split(b"\n")
        errors = []
        for line in lines:
            count, error = json.loads(line)
            self._done += count
            errors += [error] if error else []
        if errors:
            raise OSError(errors[0])


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Let the process write what it has, and end."""
    for stream in (process.stdin, process.stdout):
        with suppress(OSError):  # it has ended already
            if stream is not None:
                stream.close()
    process.wait()


def main(uri: str) -> None:
    """Write what comes in, a line for each step, until there is no more."""
    rest, client = b"", None
    while arrived := os.read(0, 1 << 20):
        *lines, rest = (rest + arrived).split(b"\n")
        error = ""
        try:
            if client is None:
                from mlflow import MlflowClient

                client = MlflowClient(uri)
            _write(client, [json.loads(line) for line in lines])
        except Exception as mistake:
            error = f"{type(mistake).__name__}: {' '.join(str(mistake).split())}"
        _answer(len(lines), error)


def _answer(count: int, error: str) -> None:
    with suppress(OSError):  # nobody reads it any more
        os.write(1, json.dumps([count, error]).encode() + b"\n")


def _write(client: Any, steps: list[dict[str, Any]]) -> None:
    from mlflow.entities import Metric, RunTag

    for run in dict.fromkeys(step["run"] for step in steps):
        own = [step for step in steps if step["run"] == run]
        metrics = [Metric(k, v, step["time"], step["step"]) for step in own for k, v in step["metrics"].items()]
        tags = [RunTag(key, text) for step in own for key, text in step["tags"].items()]
        for begin in range(0, max(len(metrics), 1), _MOST_AT_ONCE):
            client.log_batch(run, metrics[begin : begin + _MOST_AT_ONCE], tags=tags)
            tags = []


if __name__ == "__main__":
    main(sys.argv[1])
