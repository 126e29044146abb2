"""A page holds everything, asks for nothing, shows what it is given as text, and stays small."""

import re
from pathlib import Path

import numpy as np
import pytest
from pages import EVIL, Parsed, unpacked

from gradexp.history.finding import Finding
from gradexp.page.document import as_json, source
from gradexp.page.lines import Line
from gradexp.page.page import Page
from gradexp.page.parts import badges, layer_table


def slope(depth: int, name: str = "he", steps: int = 0, **others) -> Line:
    """A line whose gradient falls by a tenth of a power of ten per layer, and by a hundredth per step."""
    sizes = -0.1 * np.arange(depth, dtype=float)[::-1]
    course = {"course": {"output_grad": sizes - 0.01 * np.arange(steps)[:, None]}, "steps": range(steps)}
    return Line(name, range(1, depth + 1), initial={"output_grad": sizes}, **(course if steps else {}), **others)


def test_a_page_asks_for_nothing_and_allows_nothing_but_its_own_scripts() -> None:
    text = Page("he", lines=[slope(10, steps=5)]).html()
    assert not re.search(r"https?://|(src|href)=\"?//|@import|url\(", text)
    assert "default-src 'none'" in text
    (allowed,) = re.findall(r"script-src ([^;\"]*)", text)
    assert len(re.findall(r"'sha256-[^']{44}'", allowed)) == 4
    assert "unsafe" not in allowed


def test_no_text_becomes_markup() -> None:
    def page_of(text: str) -> Page:
        return Page(
            text,
            words=[text],
            text=text,
            facts=[text],
            lines=[slope(3, text, words=(text,))],
            names=[text] * 3,
            first=text,
            findings=[Finding(text, text, (text,), text, 3)],
            sections=[layer_table(text, [text], [[text]])],
        )

    parsed = Parsed(page_of(EVIL).html())
    assert parsed.tags == Parsed(page_of("x").html()).tags
    assert not {"onerror", "onload"} & {key for key, _ in parsed.attributes}
    assert parsed.words.count(EVIL) == 12  # title twice, text, fact, line, finding 4, table 3
    assert parsed.data["names"] == [EVIL] * 3
    assert parsed.data["lines"][0]["name"] == EVIL
    assert "<" not in as_json({EVIL: EVIL})


def test_a_lone_surrogate_can_be_written(tmp_path: Path) -> None:
    path = Page("\ud800", lines=[slope(3, "\ud800")]).write(tmp_path / "report.html")
    assert Parsed(path.read_text(encoding="utf-8")).data["lines"]
    assert not list(tmp_path.glob("*.part"))


def test_numbers_are_those_of_the_line() -> None:
    (line,) = Parsed(Page("x", lines=[slope(20, steps=7)]).html()).data["lines"]
    assert line["initial"]["output_grad"] == pytest.approx(-0.1 * np.arange(20)[::-1], abs=1e-4)
    expected = -0.1 * np.arange(20)[::-1] - 0.01 * np.arange(7)[:, None]
    assert unpacked(line, "output_grad") == pytest.approx(expected, abs=0.0051)


def test_sizes_without_a_number_stay_apart() -> None:
    sizes = np.array([-np.inf, np.inf, np.nan, -400.0, 1.0])
    line = Line("x", range(1, 6), initial={"output_grad": sizes}, steps=[4], course={"output_grad": sizes[None]})
    (shown,) = Parsed(Page("x", lines=[line]).html()).data["lines"]
    assert shown["initial"]["output_grad"] == ["0", "inf", None, -400.0, 1.0]
    assert np.isnan(unpacked(shown, "output_grad")[0]).tolist() == [True, True, True, False, False]
    assert unpacked(shown, "output_grad")[0, 3] == -327.66  # the smallest that is packed


@pytest.mark.parametrize(
    ("lines", "depth", "steps", "most"),
    [(1, 150, 100, 4e5), (1, 20_000, 3, 4e5), (1, 50, 100_000, 4e5), (300, 150, 20, 1.5e6)],
)
def test_a_page_stays_small(lines: int, depth: int, steps: int, most: float) -> None:
    each = slope(depth, steps=min(steps, 2000), losses=[1.0] * steps, theory={"output_grad": -0.1 * np.arange(depth)})
    page = Page("x", lines=[each] * lines, names=[f"layers.{layer}" for layer in range(depth)])
    text = page.html()
    assert len(text.encode()) < most
    shown = Parsed(text).data["lines"][-1]
    assert shown["layers"][0] == shown["courseLayers"][0] == 1
    assert shown["layers"][-1] == shown["courseLayers"][-1] == depth
    assert shown["lossSteps"][-1] == steps - 1


def test_a_long_table_leaves_out_its_middle() -> None:
    text = layer_table("x", ["layer", "name"], ([str(row), "a"] for row in range(5000)))
    assert text.count("<tr>") == 1002
    assert "… 4000 layers more" in text


def test_a_verdict_that_says_nothing_has_no_badge() -> None:
    assert badges(["none", "unavailable"]) == ""
    assert Parsed(badges(["stable", "agrees"])).words.split() == ["→", "stable", "✓", "theory", "agrees"]


def test_the_slider_of_lambda_is_there_for_its_networks_only() -> None:
    assert 'id="lambda"' not in Page("x", lines=[slope(150)]).html()
    text = Page("x", lines=[slope(150, factor=1.5)]).html()
    assert 'id="lambda"' in text
    assert re.findall(r"layer (\d+)</th>", text) == ["1", "2", "3", "10", "50", "150"]


def test_the_scripts_fit_into_their_elements() -> None:
    for name in ("drawing.js", "axes.js", "chart.js", "table.js", "page.css", "cell.css"):
        assert "</" not in source(name)
        assert "<!--" not in source(name)


def test_a_page_without_lines_has_no_chart() -> None:
    parsed = Parsed(Page("failed", text="no such file").html())
    assert parsed.data is None
    assert "No such file" in parsed.words


def test_without_scripts_there_is_a_picture() -> None:
    text = Page("x", lines=[slope(150, theory={"output_grad": np.zeros(150)}), slope(150, EVIL)]).html()
    (picture,) = re.findall(r"<noscript>(.*?)</noscript>", text, re.DOTALL)
    tags = Parsed(picture).tags
    assert tags.count("path") == 3
    assert "img" not in tags
    assert "10^-14.9 at layer 1" in picture
    unseen = np.array([np.nan, np.nan])
    assert "<path" not in Page("x", lines=[Line("x", [1, 2], initial={"output_grad": unseen})]).html()


@pytest.mark.parametrize("word", ["nonfinite", "unknown", "stable", "vanishing", "exploding", "dead"])
def test_every_verdict_on_a_gradient_has_a_badge_with_a_colour(word: str) -> None:
    [shown] = re.findall(r'<span class="badge (\w+)">', badges([word]))
    assert shown == word
    assert re.search(rf"\.{word}\b[^{{}}]*{{color:", source("page.css"))
