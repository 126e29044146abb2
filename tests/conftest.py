"""Fixtures that several test files share."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# As the commands do, before torch reads it: a network in a stack has bit for bit the numbers that it has alone.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# What goes wrong in an observer of measure is a failure here.
os.environ.setdefault("GRADEXP_STRICT", "1")

import torch

# Small tensors gain nothing from more threads, and where another program needs a core these wait for each other.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what is loaded for all tests out of the collector's walks, which take a tenth of the processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Each device that a test should hold on."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True, scope="session")
def signals_arrive() -> Iterator[None]:
    """Ctrl-C and SIGTERM as in a terminal, also for the processes that tests start.

    A shell lets the jobs that it starts in the background ignore Ctrl-C, as do nohup and many runners of tests, and
    whatever such a job starts ignores it too.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ignored = [signum for signum in usual if signal.getsignal(signum) is signal.SIG_IGN]
    for signum in ignored:
        signal.signal(signum, usual[signum])
    yield
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)


@pytest.fixture(autouse=True, scope="session")
def no_wishes_from_outside() -> Iterator[None]:
    """None of the variables with which a person sets the width, colours, encoding or errors of commands."""
    wishes = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS")
    with pytest.MonkeyPatch.context() as environment:
        for name in (*wishes, "PYTHONIOENCODING", "HYDRA_FULL_ERROR"):
            environment.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def few_objects() -> None:
    """Leave what earlier tests have made to no collector, each of whose walks takes a tenth of a second over them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def on_one_thread() -> Iterator[None]:
    """One CPU thread for torch, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current directory that is empty."""
    monkeypatch.chdir(tmp_path)
