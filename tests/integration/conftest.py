"""Sweeps by the basic launcher, with which those on clusters are compared."""

from pathlib import Path

import pytest
from sweep_processes import EIGHT_JOBS, SLOW, finish, start


@pytest.fixture(scope="session")
def eight_jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return basic(tmp_path_factory.mktemp("basic") / "eight", EIGHT_JOBS)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return basic(tmp_path_factory.mktemp("basic") / "slow", SLOW)


def basic(folder: Path, options: list[str]) -> Path:
    code, _, err = finish(start(folder, options))
    assert code == 0, err
    return folder
