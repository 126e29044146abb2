"""TensorBoard in a real browser: four initialisations give four clearly different lines over layers."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from sweep_processes import LIMIT, until

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")), reason="chromium or chromedriver is missing"
    ),
]

RUNS = {
    "he": ["init=he"],
    "xavier": ["init=xavier"],
    "normal_0.06": ["init=normal", "init.std=0.06"],
    "normal_0.25": ["init=normal", "init.std=0.25"],
}


WITH_THEORY = ("he", "he/theory")


def measure(folder: Path, *overrides: str) -> None:
    """Measure 150 layers at initialisation."""
    command = [
        sys.executable,
        "-m",
        "gradexp.run",
        "depth=150",
        "steps=0",
        "record.figures=false",
        f"hydra.run.dir={folder}",
    ]
    subprocess.run([*command, *overrides], check=True, capture_output=True, timeout=LIMIT)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Four initialisations, without theory."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in RUNS.items():
        measure(folder / name, *overrides, "record.subruns=false")
    with tensorboard(folder, len(RUNS)) as url:
        yield url


@pytest.fixture(scope="module")
def address_with_theory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One initialisation of 16 networks, with theory."""
    folder = tmp_path_factory.mktemp("theory")
    measure(folder / "he", "init=he", "seeds=16")
    with tensorboard(folder, len(WITH_THEORY)) as url:
        yield url


@contextmanager
def tensorboard(logdir: Path, runs: int) -> Iterator[str]:
    """TensorBoard on a free port of the loopback interface, once it has found so many runs."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--host=127.0.0.1", "--port=0"]
    with tempfile.NamedTemporaryFile("r") as printed, Path(printed.name).open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, text=True)
        try:
            address = re.compile(r"(http://127\.0\.0\.1:\d+)/")
            until(lambda: address.search(Path(printed.name).read_text()), server)
            (url,) = address.findall(Path(printed.name).read_text())
            until(lambda: len(json.load(urlopen(f"{url}/data/runs", timeout=LIMIT))) == runs, server)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=LIMIT)


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a profile of its own, 1400 x 900."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "force-device-scale-factor=1",
            "window-size=1400,900",
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def keep(browser: webdriver.Chrome, tmp_path: Path, name: str) -> None:
    """Save a screenshot where the environment says, to be looked at."""
    assert browser.save_screenshot(str(Path(os.environ.get("GRADEXP_SCREENSHOTS", tmp_path)) / name))


def line_heights(picture: bytes, least: int = 500) -> dict[tuple[int, int, int], float]:
    """Return where each coloured line of a chart starts, in pixels from the top, by colour, if it has enough dots."""
    with Image.open(io.BytesIO(picture)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    coloured = np.ptp(pixels, axis=2) > 25
    starts = {}
    for colour, count in Counter(map(tuple, pixels[coloured])).items():
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        if count > least and np.ptp(columns) > 200:  # a line across the chart, not its soft edge
            starts[colour] = rows[columns < columns.min() + 10].mean()
    return starts


def test_time_series_shows_four_different_lines_over_layers(
    browser: webdriver.Chrome, address: str, tmp_path: Path
) -> None:
    starts = open_profile(browser, address, RUNS)
    WebDriverWait(browser, LIMIT).until(lambda _: len(starts()) == len(RUNS))
    assert min(np.diff(starts())) > 20
    keep(browser, tmp_path, "tensorboard_four_inits.png")


def test_theory_is_drawn_into_the_card_of_the_measurement(
    browser: webdriver.Chrome, address_with_theory: str, tmp_path: Path
) -> None:
    starts = open_profile(browser, address_with_theory, WITH_THEORY)
    WebDriverWait(browser, LIMIT).until(lambda _: len(starts()) == len(WITH_THEORY))
    # At layer 1 they are 0.1 powers of ten apart, of the 0.6 that the chart is high.
    assert abs(np.diff(starts())) < 100
    keep(browser, tmp_path, "tensorboard_theory.png")


def open_profile(browser: webdriver.Chrome, address: str, runs: Iterable[str]) -> Callable[[], list[float]]:
    """Show the profile of the output gradient at full size; return what measures where its lines start."""
    pinned = quote(json.dumps([{"plugin": "scalars", "tag": "profile/log10_output_grad"}]))
    browser.get(f"{address}/?pinnedCards={pinned}&smoothing=0#timeseries")
    wait = WebDriverWait(browser, LIMIT)
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "card-view line-chart canvas"))
    text = browser.find_element(By.TAG_NAME, "body").text
    for name in (*runs, *(f"log10_{quantity}" for quantity in ("output", "output_grad", "weight_grad"))):
        assert name in text
    # TensorBoard cuts runs that lie far from the others off the chart unless told not to.
    browser.find_element(By.XPATH, "//label[contains(., 'Ignore outliers')]").click()
    browser.find_element(By.CSS_SELECTOR, "card-view button[aria-label='Toggle full size mode']").click()
    buttons = browser.find_elements(By.CSS_SELECTOR, "tb-data-table-content-row button")
    styles = [button.value_of_css_property("background-color") for button in buttons]
    swatches = {tuple(map(int, re.findall(r"\d+", style)[:3])) for style in styles}

    def starts() -> list[float]:
        found = line_heights(browser.find_element(By.CSS_SELECTOR, "line-chart").screenshot_as_png, least=200)
        return sorted(found[colour] for colour in found.keys() & swatches)

    return starts


def test_step_axis_is_the_layer(address: str) -> None:
    with urlopen(f"{address}/data/plugin/scalars/tags", timeout=LIMIT) as reply:
        tags = json.load(reply)
    for run in RUNS:
        assert "profile/log10_output_grad" in tags[run]
        url = f"{address}/data/plugin/scalars/scalars?run={quote(run)}&tag={quote('profile/log10_output_grad')}"
        with urlopen(url, timeout=LIMIT) as reply:
            steps = [step for _, step, _ in json.load(reply)]
        assert steps == list(range(1, 151))
