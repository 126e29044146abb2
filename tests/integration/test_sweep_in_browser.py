"""The runs of a sweep in TensorBoard: their names, and the table of hyperparameters."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from sweep_processes import LIMIT

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from test_tensorboard import browser, keep, pytestmark, tensorboard  # noqa: E402

__all__ = ["browser", "pytestmark"]

OPTIONS = ["init=he,xavier,orthogonal", "depth=10,30,60,100", "activation=relu,tanh", "seed=range(0,5)"]
JOBS = 3 * 4 * 2 * 5


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    small = ["width=16", "steps=2", "batch_size=16", "hydra/launcher=ensemble", "quiet=true"]
    command = [sys.executable, "-m", "gradexp.run", "-m", *OPTIONS, *small, f"hydra.sweep.dir={folder}"]
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
    return folder


def test_tensorboard_lists_the_runs_by_their_options(browser, sweep: Path, tmp_path: Path) -> None:
    with tensorboard(sweep, JOBS) as address:
        browser.get(f"{address}/?runFilter={quote('init=he.*seed=0')}#timeseries")
        wait = WebDriverWait(browser, LIMIT)
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "card-view line-chart canvas"))
        text = browser.find_element(By.TAG_NAME, "body").text
        for depth in (10, 30, 60, 100):
            assert f"depth={depth},init=he" in text
        keep(browser, tmp_path, "tensorboard_sweep.png")
        browser.get(f"{address}/#hparams")
        wait.until(lambda _: "log_chi" in browser.find_element(By.TAG_NAME, "body").text)
        keep(browser, tmp_path, "hparams_sweep.png")
