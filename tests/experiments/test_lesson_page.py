"""The numbers on the page for students, against exact powers of rational numbers."""

import re
from fractions import Fraction
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "experiments" / "lesson.md"
ROWS = re.findall(r"^\| (\S+)\^(\d+) \| (\S+) \| (\S+) \| (\w+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_page_has_all_numbers_of_the_lesson() -> None:
    powers = {(base, int(power)) for base, power, *_ in ROWS}
    tables = {(base, power) for base in ("1.5", "0.5") for power in (1, 2, 3, 10, 50, 150)}
    assert powers == tables | {("1.5", 149)} | {(base, power) for base in ("1.1", "0.9") for power in (150, 152)}


@pytest.mark.parametrize(("base", "power", "printed", "exact", "judged"), ROWS)
def test_each_number_is_exact_and_the_printed_one_rightly_judged(
    base: str, power: str, printed: str, exact: str, judged: str
) -> None:
    value = Fraction(base) ** int(power)
    assert abs(Fraction(exact) / value - 1) < Fraction(1, 10**9)
    digits = len(printed.partition("e")[0].replace(".", "").lstrip("0"))
    rounded = abs(Fraction(printed) / value - 1) < Fraction(5, 10**digits)
    assert judged == ("right" if rounded else "wrong")


def test_every_figure_of_the_page_is_there() -> None:
    figures = re.findall(r"!\[.*\]\((\S+)\)", PAGE.read_text(encoding="utf-8"))
    assert figures
    assert [path for path in figures if not (PAGE.parent / path).is_file()] == []
