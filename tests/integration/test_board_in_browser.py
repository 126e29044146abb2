"""What ``gradexp.board`` shows in a browser: the profile above all, charts side by side, and words."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from test_tensorboard import browser, pytestmark  # noqa: E402

from gradexp.board import PINNED  # noqa: E402
from gradexp.dashboard import CHARTS  # noqa: E402

__all__ = ["browser", "pytestmark"]

RUNS = {"he": "stable", "xavier": "vanishing"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the board says to look, of two runs of 150 layers."""
    folder = tmp_path_factory.mktemp("runs")
    for init in RUNS:
        options = [f"init={init}", "depth=150", "width=32", "steps=5", f"hydra.run.dir={folder / init}"]
        subprocess.run([sys.executable, "-m", "gradexp.run", *options], check=True, capture_output=True, timeout=120)
    command = [sys.executable, "-m", "gradexp.board", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[1]
        finally:
            server.kill()


def shown(browser, text: str) -> None:
    WebDriverWait(browser, 60).until(lambda _: text in browser.find_element(By.TAG_NAME, "body").text)


def keep(browser, tmp_path: Path, name: str) -> None:
    assert browser.save_screenshot(str(Path(os.environ.get("GRADEXP_SCREENSHOTS", tmp_path)) / name))


def test_the_profile_is_pinned_with_outliers_and_without_smoothing(browser, address: str, tmp_path: Path) -> None:
    browser.get(address)
    wait = WebDriverWait(browser, 60)
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "metrics-pinned-view line-chart canvas"))
    assert PINNED in browser.find_element(By.CSS_SELECTOR, "metrics-pinned-view").text.replace("\n", "")
    assert "smoothing=0" in browser.current_url
    for run in (*RUNS, "he/theory", "xavier/theory"):
        shown(browser, run)
    kept = json.loads(browser.execute_script("return localStorage.getItem('_tb_global_settings')"))
    assert (kept["ignoreOutliers"], kept["scalarSmoothing"], kept["autoReload"]) == (False, 0, True)
    keep(browser, tmp_path, "board.png")


def test_custom_scalars_show_every_chart_of_the_layout(browser, address: str, tmp_path: Path) -> None:
    browser.get(address.partition("/data/")[0] + "/#custom_scalars")
    for title in CHARTS:
        shown(browser, title)
    keep(browser, tmp_path, "custom_scalars.png")


def test_the_text_tab_shows_the_verdict_of_every_run(browser, address: str, tmp_path: Path) -> None:
    browser.get(address.partition("/data/")[0] + "/#text")
    for verdict in RUNS.values():
        shown(browser, f"gradient: {verdict}, training: ")
    shown(browser, "python -m gradexp.run init=he depth=150")
    keep(browser, tmp_path, "text.png")
