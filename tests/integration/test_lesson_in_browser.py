"""The lesson in a browser: sliders move lines, the page computes what the library does, a student finds answers."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mpmath
import pytest
from sweep_processes import LIMIT

from gradexp.lesson.page import ACTIVATIONS, laws_data
from gradexp.theory import MeanField

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402
from test_page_in_browser import Opened, open_file  # noqa: E402
from test_tensorboard import browser, keep, pytestmark  # noqa: E402

__all__ = ["browser", "open_file", "pytestmark"]

# Where the sliders of sigma_w2 and sigma_b2 end, and what lies between.
VARIANCES = [(0.02, 0.0), (5.0, 0.0), (0.02, 1.0), (5.0, 1.0), (1.0, 0.0), (2.0, 0.0), (1.76, 0.05), (1 / 3, 1 / 192)]
DEEPEST = 300  # of the slider of the depth


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real one, with networks that are really trained."""
    path = tmp_path_factory.mktemp("lesson") / "lesson.html"
    command = [sys.executable, "-m", "gradexp.lesson", "--no-open", "--out", str(path)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT).stdout
    assert f"lesson: {path}" in shown
    return path


@pytest.fixture
def open_lesson(
    open_file: Callable[..., Opened], browser: webdriver.Chrome, lesson: Path
) -> Iterator[Callable[..., Opened]]:
    yield partial(open_file, lesson)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def move(page: Opened, name: str, value: float) -> None:
    """Move a slider, as a pointer does."""
    page.script(
        "const e=document.getElementById(arguments[0]);e.value=arguments[1];e.dispatchEvent(new Event('input'))",
        name,
        value,
    )


def paths(page: Opened, place: str) -> list[str]:
    """What is drawn in a picture, the last on top."""
    return [path.get_attribute("d") for path in page.driver.find_elements(By.CSS_SELECTOR, f"#{place} .run")]


def said(page: Opened, name: str) -> str:
    """The text of an element, in which an exponent begins with ^."""
    markup = page.element(name).get_attribute("innerHTML")
    raised = re.sub(r"<sup>(.*?)</sup>", r"^\1", markup).replace("−", "-")
    return re.sub(r"<[^>]*>", "", raised).strip()


def power(factor: float, exponent: int) -> str:
    """A power in three digits, as the page writes it."""
    value = mpmath.mpf(str(factor)) ** exponent
    if 1e-3 <= value < 1e4:
        return f"{float(value):.3g}"
    digits = int(mpmath.floor(mpmath.log10(value)))
    return f"{float(value / mpmath.mpf(10) ** digits):.2f} · 10^{digits}"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_page_computes_what_the_library_computes(activation: str, open_lesson: Callable[..., Opened]) -> None:
    page = open_lesson()
    cases = [
        {"activation": activation, "sigma_w2": sigma_w2, "sigma_b2": sigma_b2, "depth": depth}
        for depth, variances in ((60, VARIANCES), (DEEPEST, VARIANCES[-1:]))
        for sigma_w2, sigma_b2 in variances
    ]
    found = page.script("return arguments[0].map(laws.meanField)", cases)
    for case, computed in zip(cases, found, strict=True):
        point = MeanField(activation, case["sigma_w2"], case["sigma_b2"])
        lengths = point.lengths(case["sigma_w2"] + case["sigma_b2"], case["depth"] - 1)
        gradient = [0.0]
        for q in reversed(lengths):
            gradient.append(gradient[-1] + math.log10(point.chi(q)) / 2)
        assert computed["gradients"] == pytest.approx(gradient[::-1], abs=1e-6), case
        assert computed["chis"] == pytest.approx([point.chi(q) for q in lengths], rel=1e-8), case
        assert computed["lengths"] == pytest.approx(lengths, rel=1e-8), case
    # A network of fewer layers passes the first of these.
    for depth in (2, 3, 30):
        shorter = page.script("return laws.meanField(arguments[0])", {**cases[-1], "depth": depth})
        assert len(shorter["gradients"]) == depth
        assert shorter["chis"] == pytest.approx(found[-1]["chis"][: depth - 1], rel=1e-12)


def test_very_deep_networks_have_numbers_too(open_lesson: Callable[..., Opened]) -> None:
    page = open_lesson()
    for case, slope2 in (
        ({"activation": "relu", "sigma_w2": 5.0, "sigma_b2": 0.0}, 2.5),
        ({"activation": "relu", "sigma_w2": 0.02, "sigma_b2": 0.0}, 0.01),
        ({"activation": "linear", "sigma_w2": 0.02, "sigma_b2": 0.0}, 0.02),
    ):
        first = page.script("return laws.meanField(arguments[0]).gradients[0]", {**case, "depth": 10_000})
        assert first == pytest.approx(9999 * math.log10(slope2) / 2, abs=1e-6)
    # tanh loses its length as a power law, and its gradient with it: a tenfold depth costs a half power of ten.
    tanh = {"activation": "tanh", "sigma_w2": 1.0, "sigma_b2": 0.0}
    shallow, deep = (
        page.script("return laws.meanField(arguments[0]).gradients[0]", {**tanh, "depth": depth})
        for depth in (1000, 10_000)
    )
    assert shallow - deep == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("factor", "depth", "verdict"),
    [
        (0.5, 150, "vanishing"),
        (1.5, 150, "exploding"),
        (1.0, 300, "stable"),
        (0.857, 150, "vanishing"),
        (0.5, 300, "vanishing"),
        (1.5, 2, "stable"),
    ],
)
def test_the_slider_of_lambda_gives_the_powers(
    factor: float, depth: int, verdict: str, open_lesson: Callable[..., Opened]
) -> None:
    page = open_lesson()
    before = paths(page, "powers")
    move(page, "lambda", factor)
    move(page, "power-depth", depth)
    facts = said(page, "power-facts")
    assert f"At layer 1 the gradient is λ^{depth - 1} = {power(factor, depth - 1)}." in facts
    assert f"The output of the last layer is λ^{depth} = {power(factor, depth)}." in facts
    assert verdict in facts
    assert (paths(page, "powers") != before) == ((factor, depth) != (0.5, 150))
    assert page.element("power-depth-number").get_attribute("value") == str(depth)
    formats = page.element("power-formats").text
    if factor == 0.5:
        assert "0 in float32 from layer 150 on, 0 in float16 from layer 25 on" in formats
    if factor == 1.0:
        assert "fine in float32" in formats


def test_a_student_finds_where_ten_powers_of_ten_are_lost(open_lesson: Callable[..., Opened]) -> None:
    """Moves the slider by keys until the page reads 10^-10.0, and compares with the answer."""
    page = open_lesson()
    page.press("lambda", Keys.END)
    assert said(page, "lambda-value") == "1.500, so λ^149 = 10^26.2"
    move(page, "lambda", 0.84)
    for _ in range(100):
        if said(page, "lambda-value").endswith("= 10^-10.0"):
            break
        page.press("lambda", Keys.ARROW_RIGHT)
    found = float(said(page, "lambda-value").partition(",")[0])
    assert found == pytest.approx(10 ** (-10 / 149), abs=0.0006)
    questions = page.driver.find_elements(By.CSS_SELECTOR, "#questions summary")
    (question,) = [each for each in questions if "lose ten powers of ten" in each.text]
    question.send_keys(Keys.ENTER)
    assert "At λ = 0.857." in page.element("questions").text


def test_presets_and_the_field_of_the_depth(open_lesson: Callable[..., Opened]) -> None:
    page = open_lesson()
    for button in page.driver.find_elements(By.CSS_SELECTOR, ".preset"):
        button.send_keys(Keys.SPACE)
        assert said(page, "lambda-value").startswith(f"{float(button.get_attribute('data-lambda')):.3f},")
    field = page.element("power-depth-number")
    field.send_keys(everything := Keys.CONTROL + "a" + Keys.CONTROL, "1001")
    assert f"λ^1000 = {power(1.5, 1000)}." in said(page, "power-facts")
    # What is no depth changes nothing, and the last that was one comes back: of 10001 that is 1000.
    for wrong, last in (("1", "1001"), ("", "1001"), ("10001", "1000"), ("2.5", "2")):
        field.send_keys(everything, wrong or Keys.BACKSPACE)
        assert field.get_attribute("aria-invalid") == "true"
        assert f"λ^{last} =" in said(page, "power-facts")
        field.send_keys(Keys.TAB)
        assert field.get_attribute("value") == last
        assert field.get_attribute("aria-invalid") == "false"


def test_each_initialisation_is_the_librarys(open_lesson: Callable[..., Opened]) -> None:
    page = open_lesson()
    inits = laws_data()["inits"]
    for activation in ("relu", "tanh"):
        Select(page.element("activation")).select_by_value(activation)
        for key, init in inits.items():
            Select(page.element("init")).select_by_value(key)
            lengths = MeanField(activation, init["sigma_w2"], init["sigma_b2"])
            q, log10 = init["sigma_w2"] + init["sigma_b2"], 0.0
            for _ in range(149):
                q, log10 = lengths.length_map(q), log10 + math.log10(lengths.chi(q)) / 2
            facts = said(page, "field-facts")
            verdict = "vanishing" if log10 < -3 else "exploding" if log10 > 3 else "stable"
            assert verdict in facts
            if abs(log10) >= 0.05:
                assert f"10^{log10:.1f}" in facts
            else:
                assert "All of it arrives" in facts
            assert float(page.element("sigma-w2-value").text) == pytest.approx(init["sigma_w2"], abs=1e-4)
            assert float(page.element("sigma-b2-value").text) == pytest.approx(init["sigma_b2"], abs=1e-4)


def test_what_is_just_right_keeps_the_gradient(open_lesson: Callable[..., Opened]) -> None:
    page = open_lesson()
    critical = laws_data()["critical"]
    init = Select(page.element("init"))
    for activation in ACTIVATIONS:
        Select(page.element("activation")).select_by_value(activation)
        option = page.element("init").find_element(By.CSS_SELECTOR, "[value=critical]")
        reached = critical.get(activation, math.inf) <= 5
        assert option.is_enabled() == reached, activation
        if not reached:
            assert option.text == (
                "just right (there is none)" if activation not in critical else "just right (takes σ_w² = 103)"
            )
            continue
        init.select_by_value("critical")
        assert said(page, "field-facts").startswith("→ stable"), activation
        init.select_by_value("he")
    # One that has none takes the sliders as they are.
    Select(page.element("activation")).select_by_value("tanh")
    init.select_by_value("critical")
    Select(page.element("activation")).select_by_value("gelu")
    assert init.first_selected_option.get_attribute("value") == "own"


def test_sliders_of_the_variances_move_the_line(open_lesson: Callable[..., Opened], tmp_path: Path) -> None:
    page = open_lesson()
    drawn = paths(page, "field")
    page.press("sigma-w2", Keys.ARROW_LEFT)
    assert Select(page.element("init")).first_selected_option.get_attribute("value") == "own"
    assert page.element("sigma-w2-value").text == "1.99"
    assert paths(page, "field")[-1] != drawn[-1]
    assert len(paths(page, "field")) == 4  # three for comparison, and one's own on top
    Select(page.element("activation")).select_by_value("tanh")
    for sigma_b2 in (0.0, 0.5):
        move(page, "sigma-w2", 2.25)
        move(page, "sigma-b2", sigma_b2)
        assert ("10^4.1" in said(page, "field-facts")) == (sigma_b2 == 0)
    assert said(page, "field-facts").startswith("↘ vanishing")
    before = said(page, "field-facts")
    page.press("field-depth", Keys.HOME)
    assert said(page, "field-facts") != before
    keep(page.driver, tmp_path, "lesson_1280_light.png")


def test_the_tables_are_read_as_written(open_lesson: Callable[..., Opened]) -> None:
    page = open_lesson()
    for factor, last in (("1.5", "2.592 · 1026"), ("0.5", "7.006 · 10−46")):
        rows = page.driver.find_elements(By.CSS_SELECTOR, f"table[data-factor='{factor}'] tbody tr")
        assert [row.text.split()[0] for row in rows] == ["1", "2", "3", "10", "50", "150"]
        cells = [cell.text for cell in rows[-1].find_elements(By.TAG_NAME, "td")]
        assert cells[0] == last
        assert cells[1] == ("0" if factor == "0.5" else last)
        assert cells[-1] == "1"


def test_a_training_moves_by_its_slider(open_lesson: Callable[..., Opened]) -> None:
    page = open_lesson()
    assert page.element("when").text == "at initialisation"
    before, ends = page.paths(), page.ends()
    page.press("step", Keys.END)
    assert page.element("when").text == "training step 199"
    assert all(page.paths()[line] != path for line, path in before.items())
    assert page.ends() != ends
    assert page.ends()[3] == "inf or nan: layers 1-30"  # He × 1.5
    ticks = [tick.text for tick in page.driver.find_elements(By.CSS_SELECTOR, ".ticks .tick")]
    expected = [("stable", "trained"), ("vanishing", "stuck"), ("vanishing", "stuck"), ("exploding", "diverged")]
    for tick, words in zip(ticks, expected, strict=True):
        assert all(word in tick for word in words), tick


def test_a_loss_that_explodes_leaves_the_others_their_scale(open_lesson: Callable[..., Opened]) -> None:
    page = open_lesson()
    (beyond,) = page.driver.find_elements(By.CSS_SELECTOR, "#loss .beyond")
    assert re.fullmatch(r"↑ He × 1\.5: \d\.\d\de\+0[4-6]", beyond.text)
    heights = page.script("return [...document.querySelectorAll('#loss .run')].map((e) => e.getBBox().height)")
    whole = page.script("return document.querySelector('#loss svg').getBBox().height")
    assert heights[0] > 0.25 * whole  # that of He falls
    # Alone it has a scale of its own.
    for tick in page.driver.find_elements(By.CSS_SELECTOR, ".ticks input")[:3]:
        tick.send_keys(Keys.SPACE)
    assert not page.driver.find_elements(By.CSS_SELECTOR, "#loss .beyond")


def test_whoever_wants_less_motion_can_play_too(open_lesson: Callable[..., Opened]) -> None:
    page = open_lesson(prefers_reduced_motion="reduce")
    page.press("play", Keys.SPACE)
    page.until(lambda: page.element("when").text != "at initialisation")
    page.press("play", Keys.SPACE)


def test_every_control_is_reached_by_the_keyboard_and_shows_it(open_lesson: Callable[..., Opened]) -> None:
    page = open_lesson()
    page.driver.find_element(By.TAG_NAME, "h1").click()
    reached: list[Any] = []
    for _ in range(40):
        webdriver.ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.append(
            page.script(
                "const a=document.activeElement,s=getComputedStyle(a);"
                "const name=a.ariaLabel||a.labels?.[0]?.textContent||a.textContent;"
                "return [a.id||a.dataset.line||a.dataset.lambda||a.tagName,s.outlineStyle,name]"
            )
        )
    names = {name for name, _, _ in reached}
    assert names >= {
        "lambda",
        "power-depth",
        "power-depth-number",
        "0.5",
        "activation",
        "init",
        "sigma-w2",
        "sigma-b2",
    }
    assert names >= {"field-depth", "field-depth-number", "theory", "0", "3", "play", "step", "SUMMARY"}
    assert all(style != "none" for name, style, _ in reached if name != "BODY")
    assert all(label.strip() for name, _, label in reached if name != "BODY")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(
    scheme: str, open_lesson: Callable[..., Opened], tmp_path: Path
) -> None:
    page = open_lesson(width=360, height=740, prefers_color_scheme=scheme)
    page.script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    move(page, "lambda", 1.5)
    move(page, "power-depth", 300)
    wide, room = page.script("const d=document.documentElement;return [d.scrollWidth,d.clientWidth]")
    assert wide <= room <= 360  # less the scroll bar
    for legend, names in (("powers", ["gradient", "output"]), ("field", ["He", "Xavier", "PyTorch’s default"])):
        items = page.driver.find_elements(By.CSS_SELECTOR, f"#{legend}-legend .name")
        assert [item.text for item in items] == names
    background, ink = page.script("const s=getComputedStyle(document.body);return [s.backgroundColor,s.color]")
    dark = [sum(json.loads(f"[{colour[4:-1]}]")) < 200 for colour in (background, ink)]
    assert dark == [scheme == "dark", scheme == "light"]
    keep(page.driver, tmp_path, f"lesson_360_{scheme}.png")


def test_the_lesson_is_small_and_asks_for_nothing(open_lesson: Callable[..., Opened], lesson: Path) -> None:
    page = open_lesson()
    assert lesson.stat().st_size < 400_000
    assert page.script("return performance.getEntriesByType('resource').length") == 0
    described = page.script(
        "return [...document.querySelectorAll('figure svg[role=img]')].map((e) => e.getAttribute('aria-label'))"
    )
    assert len(described) == 4
    assert all(described)
