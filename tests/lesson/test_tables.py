"""The lesson's tables hold true powers, and what each number format makes of them."""

import math
import re
from html.parser import HTMLParser

import mpmath
import numpy as np
import pytest

from gradexp.lesson.tables import DEPTH, FORMATS, LAYERS, in_format, power_table, written


class Cells(HTMLParser):
    """Texts of a table's cells, row by row; an exponent begins with ^."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "sup":
            self.rows[-1][-1] += "^"

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1][-1] += data


def number(text: str) -> float:
    """Read a number as the page writes it."""
    head, _, exponent = text.replace("−", "-").partition(" · 10^")
    return float(head) * 10.0 ** int(exponent or 0)


def rounded(value: np.float32, name: str) -> np.float32:
    """Round a product of two numbers of a format, exact in float32 for the short ones, to that format."""
    if name == "float16":
        with np.errstate(over="ignore"):
            return np.float32(np.float16(value))
    if name == "bfloat16" and np.isfinite(value):
        bits = int(value.view(np.uint32))
        even = bits + 0x7FFF + (bits >> 16 & 1)
        return np.uint32(even & 0xFFFF0000).view(np.float32)
    return value


@pytest.mark.parametrize("factor", ["1.5", "0.5"])
def test_true_values_are_the_powers(factor: str) -> None:
    rows = Cells(power_table(factor)).rows
    assert [row[0] for row in rows[1:]] == [str(layer) for layer in (1, 2, 3, 10, 50, 150)]
    for layer, row in zip(LAYERS, rows[1:], strict=True):
        for text, exponent in ((row[1], layer), (row[-1], DEPTH - layer)):
            power = mpmath.mpf(factor) ** exponent
            assert number(text) == pytest.approx(float(power), rel=5e-4), text


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("factor", ["1.5", "0.5", "0.9"])
def test_a_format_rounds_every_product(factor: str, name: str) -> None:
    value, scale, outputs = np.float32(1), rounded(np.float32(factor), name), []
    for _ in range(DEPTH):
        value = rounded(np.float32(value * scale), name)
        outputs.append(float(value))
    assert in_format(factor, LAYERS, name) == [outputs[layer - 1] for layer in LAYERS]


def test_lost_numbers_are_marked() -> None:
    marked = {factor: re.findall(r'class="lost">([^<]*)', power_table(factor)) for factor in ("1.5", "0.5")}
    assert marked == {"1.5": ["inf", "inf"], "0.5": ["0", "0", "0", "0"]}
    assert Cells(power_table("0.5")).rows[-1][2:5] == ["0", "0", "0"]  # float32 too
    assert in_format("0.5", [149, 150], "float32") == [2.0**-149, 0.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (57.665, "57.665"), (0.0, "0"), (math.inf, "inf"), (2.0**-149, "1.401 · 10<sup>−45</sup>")],
)
def test_numbers_are_written_as_in_a_book(value: float, text: str) -> None:
    assert written(value) == text
