"""The page of 300 jobs in a real browser: pictures are there, columns sort as numbers, the filter finds words."""

import itertools
from pathlib import Path
from urllib.parse import quote

import pytest
from sweep_folders import leave

from gradexp.config import Config, InitConfig
from gradexp.sweeps.compare import compare
from gradexp.sweeps.page import write_page
from gradexp.sweeps.report import write_figures

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from test_tensorboard import browser, keep, pytestmark  # noqa: E402

__all__ = ["browser", "pytestmark"]

SLOPES = {"he": 0.0, "xavier": -0.7, "lecun": -0.7, "orthogonal": 0.02, "normal": 0.5}


def test_300_jobs_are_shown_sorted_and_filtered(browser, tmp_path: Path) -> None:
    every = itertools.product(SLOPES, (10, 30, 50, 100, 150), ("relu", "tanh", "linear"), range(4))
    for number, (init, depth, activation, seed) in enumerate(every):
        config = Config(depth=depth, activation=activation, seed=seed, init=InitConfig(init))
        given = [f"init={init}", f"depth={depth}", f"activation={activation}", f"seed={seed}"]
        leave(tmp_path, f"{number}_{','.join(given)}", config, given, SLOPES[init] + seed / 1000)
    comparison = compare(tmp_path)
    browser.set_window_size(1280, 900)
    browser.get(f"file://{quote(str(write_page(comparison, write_figures(comparison))))}")
    widths = [image.get_property("naturalWidth") for image in browser.find_elements(By.TAG_NAME, "img")]
    assert len(widths) == 1  # log_chi; nothing was trained, and the profiles are drawn by the page
    assert all(width > 500 for width in widths)
    size = browser.execute_script("const d=document.documentElement;return [d.scrollWidth,d.clientWidth]")
    assert size[0] <= size[1]  # nothing to scroll sideways

    browser.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#profile path[data-line]")) == 75  # four seeds each

    def column(name: str) -> list[str]:
        heads = [head.get_property("textContent") for head in browser.find_elements(By.CSS_SELECTOR, ".jobs th")]
        cells = f".jobs tbody tr:not([hidden]) td:nth-child({heads.index(name) + 1})"
        script = "return [...document.querySelectorAll(arguments[0])].map(c => c.dataset.value || c.textContent)"
        return browser.execute_script(script, cells)

    def click(name: str) -> None:
        (head,) = (
            h for h in browser.find_elements(By.CSS_SELECTOR, ".jobs th") if h.get_property("textContent") == name
        )
        browser.execute_script("arguments[0].click()", head)

    assert len(column("depth")) == 300
    for name in ("depth", "log_chi", "job"):
        for turn in (1, -1):
            click(name)
            numbers = [turn * float(text) for text in column(name)]
            assert numbers == sorted(numbers)
    browser.find_element(By.ID, "filter").send_keys("init=he depth=10 vanishing")
    assert set(column("depth")) == {"10"}  # and not 100
    assert set(column("init")) == {"he"}
    browser.find_element(By.ID, "only").send_keys("normal depth 10")  # and not 100
    assert len(browser.find_elements(By.CSS_SELECTOR, "#profile path[data-line]")) == 3
    assert "12 of 300 jobs" in browser.find_element(By.TAG_NAME, "body").text
    keep(browser, tmp_path, "report_300.png")
