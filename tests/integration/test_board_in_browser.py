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
from test_tensorboard import RUNS, browser, keep, line_heights, pytestmark  # noqa: E402

from gradexp.board import PINNED  # noqa: E402
from gradexp.sinks.cards import CHARTS  # noqa: E402

__all__ = ["browser", "pytestmark"]

# From the top of the chart to its bottom.
VERDICTS = {"normal_0.25": "exploding", "he": "stable", "xavier": "vanishing", "normal_0.06": "vanishing"}
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
    for name, init in RUNS.items():
        options = [*init, "depth=150", "width=64", "steps=10", f"hydra.run.dir={folder / name}"]
        if name == "xavier":
            options += ["record.profile_steps=[9]", "record.histograms=true"]
        subprocess.run(
            [sys.executable, "-m", "gradexp.run", *options], check=True, capture_output=True, timeout=LIMIT
        )
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
            server.kill()


def tab(browser, address: str, name: str) -> None:
    browser.set_window_size(1400, 1100)
    browser.get(address)  # which leaves its settings
    WebDriverWait(browser, LIMIT).until(lambda _: browser.current_url.endswith("#timeseries"))
    browser.get(address.partition("/data/")[0] + f"/#{name}")


def shown(browser, text: str) -> None:
    WebDriverWait(browser, LIMIT).until(lambda _: text in browser.find_element(By.TAG_NAME, "body").text)


def every(browser, kind: str, count: int) -> list[Any]:
    """Return so many elements of a kind, once they are there."""
    WebDriverWait(browser, LIMIT).until(lambda _: len(browser.execute_script(FIND, kind)) >= count)
    found: list[Any] = browser.execute_script(FIND, kind)
    return found


def colours(browser) -> dict[str, tuple[int, int, int]]:
    """Return the colour that the list of runs shows beside each name."""
    found = {}
    for row in browser.find_elements(By.CSS_SELECTOR, "tb-data-table-content-row"):
        circle = row.find_element(By.CSS_SELECTOR, "button")
        style = circle.value_of_css_property("background-color")
        red, green, blue = map(int, re.findall(r"\d+", style)[:3])
        found[row.text.strip()] = (red, green, blue)
    return found


def test_each_init_has_a_colour_that_the_list_of_runs_shows_and_its_theory_the_same(
    browser, address: str, tmp_path: Path
) -> None:
    tab(browser, address, "timeseries")
    shown(browser, "he/theory")
    browser.get(address)
    wait = WebDriverWait(browser, LIMIT)
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "metrics-pinned-view line-chart canvas"))
    pinned = browser.find_element(By.CSS_SELECTOR, "metrics-pinned-view")
    assert PINNED in pinned.text.replace("\n", "")
    wait.until(lambda _: len(heights(pinned)) >= 5)  # four inits, and a profile in training
    keep(browser, tmp_path, "board.png")
    swatches = colours(browser)
    for name in RUNS:
        assert {swatches[f"{name}/theory{line}"] for line in ("", "/lower", "/upper")} == {swatches[name]}
    assert len({swatches[name] for name in RUNS}) == len(RUNS)
    assert swatches["xavier/step_000009"] != swatches["xavier"]
    measured = heights(pinned)
    # At layer 1: which explodes lies above the others, which vanishes below.
    assert sorted(RUNS, key=lambda name: measured[swatches[name]]) == list(VERDICTS)
    assert min(np.diff([measured[swatches[name]] for name in VERDICTS])) > 20


def heights(card) -> dict[tuple[int, int, int], float]:
    return line_heights(card.find_element(By.CSS_SELECTOR, "line-chart").screenshot_as_png)


def test_the_address_shows_outliers_and_does_not_smooth(browser, address: str) -> None:
    tab(browser, address, "timeseries")
    shown(browser, "he/theory")
    kept = json.loads(browser.execute_script("return localStorage.getItem('_tb_global_settings')"))
    assert (kept["ignoreOutliers"], kept["scalarSmoothing"], kept["autoReload"]) == (False, 0, True)


def test_time_series_has_a_card_for_every_scalar(browser, address: str) -> None:
    tab(browser, address, "timeseries")
    wait = WebDriverWait(browser, LIMIT)
    for group, cards in (("gradient", 3), ("layers", 8), ("outputs", 5), ("profile", 3), ("test", 2), ("train", 2)):
        wait.until(lambda _, said=f"{group}{cards} cards": said in groups(browser))


def groups(browser) -> list[str]:
    return [head.text for head in browser.find_elements(By.CSS_SELECTOR, "metrics-card-group-toolbar")]


def test_custom_scalars_show_every_chart_of_the_layout_as_it_was_measured(
    browser, address: str, tmp_path: Path
) -> None:
    tab(browser, address, "custom_scalars&_smoothingWeight=0")
    for title in CHARTS:
        shown(browser, title)
    every(browser, "vz-line-chart2", len(CHARTS))
    boxes = {box.text: box.get_attribute("checked") for box in every(browser, "paper-checkbox", 2)}
    assert boxes["Ignore outliers in chart scaling"] is None
    [slider] = every(browser, "tf-smoothing-input", 1)
    assert browser.execute_script("return arguments[0].weight", slider) == 0
    keep(browser, tmp_path, "custom_scalars.png")


def test_images_are_legible_in_their_cards(browser, address: str, tmp_path: Path) -> None:
    tab(browser, address, "images")
    pictures = every(browser, "img", 2 * len(RUNS))
    wait = WebDriverWait(browser, LIMIT)
    wait.until(lambda _: all(picture.get_property("complete") for picture in pictures))
    sizes = [(picture.get_property("naturalWidth"), picture.size["width"]) for picture in pictures]
    assert len(sizes) == 2 * len(RUNS)
    # Type of 10 points at 180 dots per inch is 25 dots high.
    assert all(25 * drawn / own > 10 for own, drawn in sizes), sizes
    keep(browser, tmp_path, "images.png")


def test_hparams_list_every_run_with_its_options_verdicts_and_numbers(browser, address: str, tmp_path: Path) -> None:
    tab(browser, address, "hparams")
    for column in ("init", "depth", "verdict.gradient", "verdict.training", "verdict.theory"):
        shown(browser, column)
    for metric in ("log_chi", "log10_first_over_last", "verdict_code", "loss_last", "test_accuracy"):
        shown(browser, metric)
    for name, verdict in VERDICTS.items():
        shown(browser, name)
        shown(browser, verdict)
    keep(browser, tmp_path, "hparams.png")


def test_the_text_tab_shows_verdict_command_and_where_the_number_format_fails(
    browser, address: str, tmp_path: Path
) -> None:
    tab(browser, address, "text")
    for verdict in VERDICTS.values():
        shown(browser, f"gradient: {verdict}, training: ")
    shown(browser, "python -m gradexp.run init=he depth=150")
    shown(browser, "in float32 output gradients would underflow to 0 from layer")
    keep(browser, tmp_path, "text.png")


@pytest.mark.parametrize(
    ("name", "chart"), [("histograms", "vz-histogram-timeseries"), ("distributions", "vz-distribution-chart")]
)
def test_histograms_of_five_layers_are_there_of_the_run_that_asked(
    browser, address: str, tmp_path: Path, name: str, chart: str
) -> None:
    tab(browser, address, name)
    assert len(every(browser, chart, 5)) == 5
    for layer in (1, 38, 76, 113, 150):
        shown(browser, f"outputs/layer_{layer:03}")
    keep(browser, tmp_path, f"{name}.png")


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
                browser.get(f"{address.partition('/data/')[0]}/?tagFilter={tags}#timeseries")
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

    WebDriverWait(
        browser, LIMIT, ignored_exceptions=[selenium.common.exceptions.StaleElementReferenceException]
    ).until(grown)
    return steps[0]


def number(text: str) -> int | None:
    """Read a label such as 400 or 1.2k."""
    match = re.fullmatch(r"([\d.,]+)(k?)", text.strip())
    return None if match is None else int(float(match[1].replace(",", "")) * (1000 if match[2] else 1))
