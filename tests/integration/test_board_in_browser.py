"""What ``gradexp.board`` shows in a browser, tab by tab, of four initialisations, and while a run trains."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from sweep_processes import LIMIT, until

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from test_tensorboard import browser, keep, line_heights, pytestmark  # noqa: E402

from gradexp.board.page import PINNED  # noqa: E402
from gradexp.config import Config, InitConfig, RecordConfig  # noqa: E402
from gradexp.runs.experiment import run  # noqa: E402
from gradexp.sinks.files import Files  # noqa: E402
from gradexp.sinks.tensorboard import TensorBoard  # noqa: E402

__all__ = ["browser", "pytestmark"]

# From the top of the chart to its bottom.
VERDICTS = {"normal_0.25": "exploding", "he": "stable", "xavier": "vanishing", "normal_0.06": "vanishing"}
INITS = {
    "he": InitConfig("he"),
    "xavier": InitConfig("xavier"),
    "normal_0.06": InitConfig("normal", std=0.06),
    "normal_0.25": InitConfig("normal", std=0.25),
}
# Everything of a kind on a page, also inside web components.
FIND = """
const found = [];
const walk = root => {
  for (const one of root.querySelectorAll('*')) {
    if (one.tagName.toLowerCase() === arguments[0]) found.push(one);
    if (one.shadowRoot) walk(one.shadowRoot);
  }
};
walk(document);
return found;
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the board says to look, of four runs of 150 layers."""
    folder = tmp_path_factory.mktemp("runs")
    for name, init in INITS.items():
        own = folder / name
        own.mkdir()
        asked = name == "xavier"
        record = RecordConfig(profile_steps=[9] if asked else [], histograms=asked)
        config = Config(depth=150, width=64, steps=10, init=init, record=record)
        run(config, [Files(own), TensorBoard(own, figures=True)], [f"init={init.name}", "depth=150"])
    with board(folder) as said:
        yield said


@contextmanager
def board(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "gradexp.board", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("showing ")
            yield server.stdout.readline().split()[1]
        finally:
            server.terminate()


def tab(browser, address: str, name: str) -> None:
    browser.set_window_size(1400, 1100)
    browser.get(f"{address}#{name}")


def wait(browser) -> WebDriverWait:
    stale = selenium.common.exceptions.StaleElementReferenceException
    return WebDriverWait(browser, LIMIT, ignored_exceptions=[stale])


def shown(browser, text: str) -> None:
    wait(browser).until(lambda _: text in browser.find_element(By.TAG_NAME, "body").text)


def every(browser, kind: str, count: int) -> list[Any]:
    """Return so many elements of a kind, once they are there."""
    wait(browser).until(lambda _: len(browser.execute_script(FIND, kind)) >= count)
    found: list[Any] = browser.execute_script(FIND, kind)
    return found


def rows(browser) -> dict[str, Any]:
    """Return the list of runs by name."""
    return {row.text.strip(): row for row in browser.find_elements(By.CSS_SELECTOR, "tb-data-table-content-row")}


def colours(browser) -> dict[str, tuple[int, int, int]]:
    """Return the colour that the list of runs shows beside each name."""
    found = {}
    for name, row in rows(browser).items():
        style = row.find_element(By.CSS_SELECTOR, "button").value_of_css_property("background-color")
        red, green, blue = map(int, re.findall(r"\d+", style)[:3])
        found[name] = (red, green, blue)
    return found


def test_each_init_has_a_colour_that_the_list_of_runs_shows_and_its_theory_the_same(
    browser, address: str, tmp_path: Path
) -> None:
    tab(browser, address, "timeseries")
    shown(browser, "he/theory")
    wait(browser).until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, PINNED_CHARTS)) == 2)
    pinned = browser.find_element(By.CSS_SELECTOR, "metrics-pinned-view")
    assert all(tag in pinned.text.replace("\n", "") for tag in PINNED)
    swatches = colours(browser)
    wait(browser).until(lambda _: {swatches[name] for name in INITS} <= heights(pinned).keys())
    keep(browser, tmp_path, "board.png")
    assert swatches.keys() == {*INITS, *(f"{name}/theory" for name in INITS), "xavier/step_000009"}
    for name in INITS:
        assert swatches[f"{name}/theory"] == swatches[name]
    assert len({swatches[name] for name in INITS}) == len(INITS)
    assert swatches["xavier/step_000009"] != swatches["xavier"]
    measured = heights(pinned)
    # At layer 1: which explodes lies above the others, which vanishes below. The loss's profile has another card.
    assert swatches["xavier/step_000009"] not in measured
    assert sorted(VERDICTS, key=lambda name: measured[swatches[name]]) == list(VERDICTS)
    assert min(np.diff([measured[swatches[name]] for name in VERDICTS])) > 20


PINNED_CHARTS = "metrics-pinned-view line-chart canvas"


def heights(card) -> dict[tuple[int, int, int], float]:
    return line_heights(card.find_element(By.CSS_SELECTOR, "line-chart").screenshot_as_png, least=200)


def test_the_address_has_settings_that_hide_no_run_and_leaves_other_addresses_alone(browser, address: str) -> None:
    tab(browser, address, "timeseries")
    shown(browser, "he/theory")
    kept = json.loads(browser.execute_script("return localStorage.getItem('_tb_global_settings')"))
    assert (kept["ignoreOutliers"], kept["scalarSmoothing"], kept["autoReload"]) == (False, 0, True)
    browser.get(f"{address}?runFilter=xav#timeseries")
    wait(browser).until(lambda _: rows(browser).keys() == {"xavier", "xavier/theory", "xavier/step_000009"})
    assert "smoothing=0" not in browser.current_url


def test_tabs_that_show_runs_in_other_colours_are_gone(browser, address: str) -> None:
    tab(browser, address, "timeseries")
    shown(browser, "HPARAMS")
    tabs = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "[role=tab]")]
    assert [name for name in tabs if name] == ["TIME SERIES", "TEXT", "HPARAMS"]


def test_time_series_has_a_card_for_every_scalar_picture_and_histogram(browser, address: str, tmp_path: Path) -> None:
    tab(browser, address, "timeseries")
    cards = {"gradient": 3, "layers": 8, "outputs": 5, "profile": 3, "profile_of_loss": 3, "test": 2, "train": 2}
    for group, count in cards.items():
        wait(browser).until(lambda _, said=f"{group}{count} cards": said in groups(browser))
    browser.get(f"{address}?tagFilter=layers#timeseries")
    wait(browser).until(lambda _: len(pictures(browser)) >= 2)  # those in sight
    sizes = pictures(browser)
    # Type of 10 points at 180 dots per inch is 25 dots high.
    assert all(25 * drawn / own > 10 for own, drawn in sizes), sizes
    keep(browser, tmp_path, "images.png")


def pictures(browser) -> list[tuple[int, int]]:
    """Return how wide each picture is, in its own dots and on the screen, once it is loaded."""
    found = browser.find_elements(By.CSS_SELECTOR, "image-card img")
    sizes = [(picture.get_property("naturalWidth"), picture.size["width"]) for picture in found]
    return [(own, drawn) for own, drawn in sizes if own]


def groups(browser) -> list[str]:
    return [head.text for head in browser.find_elements(By.CSS_SELECTOR, "metrics-card-group-toolbar")]


def test_hparams_begin_with_the_verdicts_and_show_only_options_that_differ(
    browser, address: str, tmp_path: Path
) -> None:
    tab(browser, address, "hparams")
    for name, verdict in VERDICTS.items():
        shown(browser, name)
        shown(browser, verdict)
    keep(browser, tmp_path, "hparams.png")
    heads = [head.text for head in every(browser, "vaadin-grid-cell-content", 20) if head.text]
    assert heads[:7] == ["Trial ID", "Show Metrics", "Gradient", "Learned", "init", "init.std", "Theory"]
    assert {"0.06", "0.25"} <= set(heads)  # not 0.060000
    body = browser.find_element(By.TAG_NAME, "body").text
    assert not {"depth", "steps", "width"} & set(body.split())
    for metric in ("log_chi", "log10_first_over_last", "verdict_code", "loss_last", "test_accuracy"):
        assert metric in body


def test_the_text_tab_shows_verdict_command_and_where_the_number_format_fails_without_a_colour_of_its_own(
    browser, address: str, tmp_path: Path
) -> None:
    tab(browser, address, "text")
    for verdict in VERDICTS.values():
        shown(browser, f"gradient: {verdict}, training: ")
    shown(browser, "python -m gradexp.run init=he depth=150")
    shown(browser, "gradients 0 from layer")
    [runs] = every(browser, "tf-multi-checkbox", 1)
    coloured = "return [...new Set(arguments[0].names.map(arguments[0].coloring.getColor))].length"
    wait(browser).until(lambda _: browser.execute_script(coloured, runs) == 1)
    keep(browser, tmp_path, "text.png")


def test_the_dashboard_follows_a_run_while_it_trains(browser, tmp_path: Path) -> None:
    options = ["depth=20", "width=16", "steps=1000000", f"hydra.run.dir={tmp_path / 'runs' / 'live'}"]
    with subprocess.Popen(
        [sys.executable, "-m", "gradexp.run", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        try:
            until(lambda: list(tmp_path.glob("runs/live/events.*")), run)
            with board(tmp_path / "runs") as address:
                tags = quote("train/loss|gradient/log10_first_over_last")
                tab(browser, address, "timeseries")
                shown(browser, "live")
                browser.get(f"{address}?tagFilter={tags}#timeseries")
                seen: dict[str, int] = {}
                for tag in ("train/loss", "gradient/log10_first_over_last"):
                    seen[tag] = last_step(browser, tag, 0)
                for tag, step in seen.items():  # without a touch
                    assert last_step(browser, tag, step) > step
                assert run.poll() is None
        finally:
            run.kill()


def last_step(browser, tag: str, more_than: int) -> int:
    """Return the largest number on the horizontal axis of a card, once it is large enough."""
    steps = [0]

    def grown(_: Any) -> bool:
        for card in browser.find_elements(By.CSS_SELECTOR, "scalar-card"):
            if tag in card.text.replace("\n", ""):
                labels = card.find_elements(By.CSS_SELECTOR, ".x-axis text")
                found = [number(label.text) for label in labels]
                steps[0] = max((step for step in found if step is not None), default=0)
        return steps[0] > more_than

    wait(browser).until(grown)
    return steps[0]


def number(text: str) -> int | None:
    """Read a label such as 400 or 1.2k."""
    match = re.fullmatch(r"([\d.,]+)(k?)", text.strip())
    return None if match is None else int(float(match[1].replace(",", "")) * (1000 if match[2] else 1))
