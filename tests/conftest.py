"""Fixtures that several test files share."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Small tensors gain nothing from more threads, and where another program needs a core these wait for each other.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what is loaded for all tests out of the collector's walks, which take a tenth of the processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


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
