"""A cell of a notebook has a small picture of its own, and leaves the rest of the notebook as it is."""

import re
from itertools import pairwise

import numpy as np
import pytest
from pages import EVIL, Parsed

from gradexp.history.finding import Finding
from gradexp.page.cell import cell
from gradexp.page.document import source
from gradexp.page.lines import Line
from gradexp.page.page import Page
from gradexp.page.parts import layer_table

# Backgrounds of JupyterLab and Colab, light, of JupyterLab, dark, of VS Code, dark, and of Colab, dark.
BACKGROUNDS = ("#ffffff", "#111111", "#1e1e1e", "#383838")


def page(text: str = "x", rows: int = 3, **others) -> Page:
    line = Line(text, range(1, rows + 1), initial={"output_grad": np.zeros(rows)}, losses=[2.0, 1.0])
    fields = {
        "words": ["vanishing", text],
        "text": text,
        "facts": [text],
        "lines": [line],
        "first": text,
        "findings": [Finding(text, text, (text,), text, 3)],
        "sections": [layer_table(text, [text], [[text]] * rows)],
    }
    return Page(text, **{**fields, **others})


def test_no_text_becomes_markup() -> None:
    parsed = Parsed(cell(page(EVIL)))
    assert parsed.tags == Parsed(cell(page())).tags
    assert not {"onerror", "onload"} & {key for key, _ in parsed.attributes}
    assert EVIL in parsed.words
    assert not {"script", "link", "img"} & set(parsed.tags)


def test_its_style_names_nothing_outside_and_loads_nothing() -> None:
    rules = re.findall(r"([^{}]+)\{[^{}]*\}", source("cell.css"))
    selectors = [selector.strip() for rule in rules for selector in rule.split(",")]
    assert len(selectors) > 30
    assert {selector.split()[0] for selector in selectors} <= {".gradexp", ".gradexp.gradexp"}
    assert not re.search(r"url|@import|:root|#[a-z-]+\{", source("cell.css"))
    assert not any(key == "id" for key, _ in Parsed(cell(page())).attributes)  # a cell may be there twice


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_lines_stand_out_from_light_and_dark_notebooks(background: str) -> None:
    colours = set(re.findall(r"#[0-9a-f]{6}\b", source("cell.css")))
    assert len(colours) == 7
    for colour in colours:
        dark, light = sorted((luminance(colour), luminance(background)))
        assert (light + 0.05) / (dark + 0.05) >= 3  # what WCAG 2.2 asks of graphics


def test_texts_have_the_colour_of_the_notebook() -> None:
    fills = re.findall(r"([^{}]+)\{[^{}]*(?:fill|(?<![-\w])color):([^;}]+)", source("cell.css"))
    texts = {value for selector, value in fills if "text" in selector or "code" in selector or "label" in selector}
    assert texts == {"currentColor", "inherit"}


def test_the_verdict_comes_first_in_bold_then_picture_then_table() -> None:
    text = cell(page())
    places = [text.index(part) for part in ("<strong>", "↘ vanishing", "</strong>", "<svg", "<details>")]
    assert all(before < after for before, after in pairwise(places))
    assert "open" not in {key for key, _ in Parsed(text).attributes}


def test_the_worst_finding_is_said_once_with_its_remedy_before_the_picture() -> None:
    worst, other = Finding("cut", "by detach()", (), "remove it", 3), Finding("updates", "too small", (), "more", 1)
    line = Line("he", [1, 2], initial={"output_grad": np.zeros(2)})
    text = cell(Page("2 layers", ["dead"], "cut: by detach()", lines=[line], findings=[worst, other]))
    assert text.count("by detach()") == 1
    assert text.index("remove it") < text.index("<svg") < text.index("too small")


def test_many_findings_long_names_and_500_rows_stay_small() -> None:
    findings = [Finding("dead units", "<" * 5000, (), "&" * 5000, 2)] * 100
    rows = [[str(row), "<" * 1000 + str(row), *["1.00e+00"] * 4] for row in range(500)]
    table = layer_table("sizes", ["layer", "name", "a", "b", "c", "d"], rows)
    lines = [Line("x" * 1000, range(1, 501), initial={"output_grad": np.zeros(500)}, losses=[1.0] * 10**4)] * 20
    text = cell(page(rows=500, findings=findings, sections=[table], lines=lines))
    assert len(text) < 400_000
    assert "93 more" in text or "92 more" in text or "91 more" in text
    assert ">499<" in text


def test_outputs_alone_and_nothing_at_all_are_shown() -> None:
    outputs = Line("x", [1, 2], initial={"output": np.array([0.0, -np.inf])})
    text = cell(page(lines=[outputs]))
    assert "Root mean square of the output z" in text
    assert "▼: exactly 0" in text
    assert "stable, within" not in text
    assert "<svg" not in cell(Page("3 layers"))
    assert "<strong>3 layers</strong>" in cell(Page("3 layers"))


def test_a_lone_surrogate_can_be_sent() -> None:
    assert cell(page("\ud800")).encode("utf-8")
