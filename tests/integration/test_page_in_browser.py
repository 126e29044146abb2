"""A page in a browser: sliders move lines, ticks hide them, keys work, names are text, a phone is wide enough."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from pages import EVIL
from sweep_processes import LIMIT

from gradexp.history.columns import power_of_ten
from gradexp.history.finding import Finding
from gradexp.page.lines import Line
from gradexp.page.page import Page
from gradexp.page.parts import layer_table

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from test_tensorboard import browser, keep, pytestmark  # noqa: E402

__all__ = ["browser", "pytestmark"]

DEPTH, STEPS = 50, 8
SLOPES = {"he": 0.0, "xavier": 0.15, EVIL: 1.0}
"""Powers of ten that each line loses per layer."""


def lines(**others: Any) -> list[Line]:
    """Three lines, whose gradient falls by half a power of ten from step to step."""
    below = np.arange(DEPTH, dtype=float)[::-1]
    made = []
    for name, slope in SLOPES.items():
        course = -slope * below - 0.5 * np.arange(STEPS)[:, None]
        made.append(
            Line(
                name,
                range(1, DEPTH + 1),
                initial={"output_grad": -slope * below, "weight_grad": -0.1 * below},
                theory={"output_grad": -slope * below},
                spread=0.01 * below,
                steps=range(STEPS),
                course={"output_grad": np.where(course < -45, -np.inf, course), "weight_grad": course},
                losses=[2.5 - 0.1 * step for step in range(STEPS)],
                guessing=2.3,
                words=("stable" if slope < 0.06 else "vanishing", "trained"),
                **others,
            )
        )
    return made


def page_of(shown: list[Line]) -> Page:
    finding = Finding("vanishing", f"10^-49.0 from {EVIL} to a", (EVIL, "a"), "initialize(model, 'he')", 3)
    rows = ([str(layer), EVIL, "1.00e+00"] for layer in range(50))
    return Page(
        f"50 layers of {EVIL}",
        ["vanishing"],
        "a long reason " * 12,
        [EVIL],
        shown,
        findings=[finding],
        sections=[layer_table("at initialisation", ["layer", "name", "size"], rows)],
    )


class Opened:
    """A page in the browser.

    Args:
        driver: The browser.
    """

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def script(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def element(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def paths(self) -> dict[int, str]:
        """The path of each line that is drawn, by its index."""
        drawn = self.driver.find_elements(By.CSS_SELECTOR, "#profile path[data-line]")
        return {int(path.get_attribute("data-line")): path.get_attribute("d") for path in drawn}

    def ends(self) -> list[str]:
        """What stands beside each tick."""
        return [end.text for end in self.driver.find_elements(By.CSS_SELECTOR, ".ticks .end")]

    def press(self, name: str, *keys: str) -> None:
        self.element(name).send_keys(*keys)

    def until(self, holds: Callable[[], bool]) -> None:
        WebDriverWait(self.driver, LIMIT).until(lambda _: holds())


@pytest.fixture
def open_file(browser: webdriver.Chrome) -> Iterator[Callable[..., Opened]]:
    """Opens a page on a screen of some size, with features such as ``prefers_color_scheme``."""

    def opened(path: Path, width: int = 1280, height: int = 900, **features: str) -> Opened:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        browser.get(f"file://{quote(str(path))}")
        return Opened(browser)

    yield opened
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.fixture
def open_page(open_file: Callable[..., Opened], tmp_path: Path) -> Callable[..., Opened]:
    def opened(page: Page, *size: int, **features: Any) -> Opened:
        return open_file(page.write(tmp_path / "report.html"), *size, **features)

    return opened


def test_the_step_slider_moves_the_lines_and_the_loss(open_page: Callable[..., Opened], tmp_path: Path) -> None:
    page = open_page(page_of(lines()))
    assert page.ends() == ["10^+0.0 at layer 1", "10^-7.3 at layer 1", "10^-49.0 at layer 1"]
    assert page.element("when").text == "at initialisation"
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#profile .theory")) == 3
    assert not page.driver.find_elements(By.ID, "now")
    before = page.paths()
    page.press("step", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.element("when").text == "training step 2"
    assert all(page.paths()[line] != path for line, path in before.items())
    assert page.ends() == ["10^-1.0 at layer 1", "10^-8.3 at layer 1", "exactly 0: layers 1-5"]
    assert page.element("now")
    assert not page.driver.find_elements(By.CSS_SELECTOR, "#profile .theory")
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#profile [data-size='0']")) == 5
    page.press("step", Keys.END)
    assert page.element("step").get_attribute("aria-valuetext") == f"training step {STEPS - 1}"
    keep(page.driver, tmp_path, "page_1280_light.png")


def test_play_runs_through_the_steps_and_stops(open_page: Callable[..., Opened]) -> None:
    page = open_page(page_of(lines()))
    page.press("play", Keys.SPACE)
    assert "pause" in page.element("play").text
    page.until(lambda: page.element("when").text == f"training step {STEPS - 1}")
    page.until(lambda: "play" in page.element("play").text)
    page.press("play", Keys.SPACE)  # from the beginning
    page.press("play", Keys.SPACE)
    assert "play" in page.element("play").text


def test_whoever_wants_less_motion_can_play_too(open_page: Callable[..., Opened]) -> None:
    page = open_page(page_of(lines()), prefers_reduced_motion="reduce")
    page.press("play", Keys.SPACE)
    page.until(lambda: page.element("when").text != "at initialisation")


def test_ticks_hide_lines_and_theory(open_page: Callable[..., Opened]) -> None:
    page = open_page(page_of(lines()))
    assert set(page.paths()) == {0, 1, 2}
    wide = page.paths()[0]
    tick = page.driver.find_elements(By.CSS_SELECTOR, ".ticks input")[2]
    tick.send_keys(Keys.SPACE)
    assert set(page.paths()) == {0, 1}
    assert page.paths()[0] != wide  # the scale is that of what is left
    assert page.ends()[2] == ""
    page.press("theory", Keys.SPACE)
    assert not page.driver.find_elements(By.CSS_SELECTOR, "#profile .theory")
    tick.send_keys(Keys.SPACE)
    assert set(page.paths()) == {0, 1, 2}


def test_another_quantity_can_be_chosen(open_page: Callable[..., Opened]) -> None:
    page = open_page(page_of(lines()))
    page.press("quantity", "weight")
    assert page.ends() == ["10^-4.9 at layer 1"] * 3
    assert not page.driver.find_elements(By.CSS_SELECTOR, ".stable-band")


def test_every_control_is_reached_by_the_keyboard_and_shows_it(open_page: Callable[..., Opened]) -> None:
    page = open_page(page_of(lines(factor=0.9)))
    reached = []
    body = page.driver.find_element(By.TAG_NAME, "body")
    body.click()
    for _ in range(20):
        webdriver.ActionChains(page.driver).send_keys(Keys.TAB).perform()
        state = page.script(
            "const a=document.activeElement,s=getComputedStyle(a);"
            "const name=a.labels?.[0]?.textContent||a.ariaLabel||a.textContent;"
            "return [a.id||a.dataset.line||a.tagName,s.outlineStyle,name]"
        )
        reached.append(state)
    names = {name for name, _, _ in reached}
    assert {"quantity", "theory", "0", "1", "2", "play", "step", "lambda", "SUMMARY"} <= names
    assert all(style != "none" for name, style, _ in reached if name != "BODY")
    assert all(label.strip() for name, _, label in reached if name != "BODY")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(
    scheme: str, open_page: Callable[..., Opened], tmp_path: Path
) -> None:
    page = open_page(page_of(lines(factor=0.9)), width=360, height=740, prefers_color_scheme=scheme)
    page.script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    wide, room = page.script("const d=document.documentElement;return [d.scrollWidth,d.clientWidth]")
    assert wide <= room <= 360  # less the scroll bar
    background, ink = page.script("const s=getComputedStyle(document.body);return [s.backgroundColor,s.color]")
    dark = [sum(json.loads(f"[{colour[4:-1]}]")) < 200 for colour in (background, ink)]
    assert dark == [scheme == "dark", scheme == "light"]
    keep(page.driver, tmp_path, f"page_360_{scheme}.png")


def test_names_are_text_and_nothing_is_asked_for(open_page: Callable[..., Opened]) -> None:
    page = open_page(page_of(lines()))
    page.script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert not page.driver.find_elements(By.TAG_NAME, "img")
    assert EVIL in page.driver.find_element(By.TAG_NAME, "h1").text
    assert page.script("return performance.getEntriesByType('resource').length") == 0
    webdriver.ActionChains(page.driver).move_to_element(page.element("profile")).perform()
    assert "layer" in page.element("tip").text
    assert not [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("factor", [1.5, 0.5, 1.0, 0.857])
def test_the_slider_of_lambda_gives_the_powers(factor: float, open_page: Callable[..., Opened]) -> None:
    log10 = math.log10(factor)
    sizes = (150 - np.arange(1, 151)) * log10
    line = Line("λ", range(1, 151), initial={"output_grad": sizes}, factor=factor)
    page = open_page(Page("lesson", lines=[line]))
    assert page.element("lambda-value").text == f"λ = {factor:.3f}: λ^149 = 10^{round(149 * log10, 1) + 0.0:+.1f}"
    cells = [cell.text for cell in page.driver.find_elements(By.CSS_SELECTOR, "#outputs td")]
    assert cells == [power_of_ten(layer * log10, "") for layer in (1, 2, 3, 10, 50, 150)]
    formats = page.element("formats").text
    if factor == 0.5:  # 2^-150 is the tie that rounds to 0
        assert "0 in float32 from layer 150 on" in formats
        assert "0 in float16 from layer 25 on" in formats
    if factor == 1.0:
        assert "fine in float32" in formats
    drawn = page.element("factor-line").get_attribute("d")
    page.press("lambda", Keys.ARROW_LEFT)
    assert page.element("lambda-value").text.startswith(f"λ = {factor - 0.001:.3f}" if factor > 0.5 else "λ = 0.500")
    assert (page.element("factor-line").get_attribute("d") != drawn) == (factor > 0.5)


def test_networks_of_several_depths_meet_at_their_outputs(open_page: Callable[..., Opened]) -> None:
    shown = [
        Line(str(depth), range(1, depth + 1), initial={"output_grad": -0.1 * np.arange(depth, dtype=float)[::-1]})
        for depth in (10, 40)
    ]
    page = open_page(Page("x", lines=shown))
    starts = {path.rpartition("L")[2] for path in page.paths().values()}
    assert len(starts) == 1
    assert "layers below the output" in page.element("profile").text
    assert page.ends() == ["10^-0.9 at layer 1", "10^-3.9 at layer 1"]


def test_a_line_that_nobody_saw_hides_no_other(open_page: Callable[..., Opened]) -> None:
    unseen = Line("attention", range(1, DEPTH + 1), initial={"output_grad": np.full(DEPTH, np.nan)})
    page = open_page(Page("x", lines=[lines()[0], unseen]))
    assert "he" in page.element("profile").text
    assert "attention" not in page.element("profile").text


def test_without_motion_or_training_there_is_no_slider(open_page: Callable[..., Opened]) -> None:
    sizes = np.array([-1.0, 0.0])
    page = open_page(Page("x", lines=[Line("measured", [1, 2], initial={"output_grad": sizes})]))
    for name in ("player", "loss-figure", "theory-tick", "many"):
        assert not page.element(name).is_displayed()


def test_a_print_leaves_out_what_cannot_be_pressed(open_page: Callable[..., Opened]) -> None:
    page = open_page(page_of(lines()))
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not page.element("play").is_displayed()
    assert page.element("profile").is_displayed()
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
