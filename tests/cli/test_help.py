"""The text of --help: what people use comes first, in the width of the terminal."""

import re

import pytest

from gradexp.choices import GROUPS
from gradexp.cli.about import RUN
from gradexp.cli.help import defaults, help_text
from gradexp.phase.__main__ import ABOUT as PHASE
from gradexp.predict.__main__ import ABOUT as PREDICT


@pytest.mark.parametrize("about", [RUN, PREDICT, PHASE], ids=lambda about: about.name)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_line_fits_and_no_word_is_broken(about, width):
    text = help_text(about, width)
    lines = [line for line in text.splitlines() if not line.startswith("  python -m")]  # to be pasted
    assert max(map(len, lines)) <= min(width, 100)
    words = set(help_text(about, 100).split())
    assert set(text.split()) == words


def test_what_people_use_comes_first_and_nothing_is_left_out():
    text = help_text(RUN, 80)
    first, _, rest = text.partition("Choices, ")
    for option in ("init=he", "depth=150", "width=128", "activation=relu", "steps=100", "optimizer=sgd", "seeds=1"):
        assert f"\n  {option} " in first
        assert f"\n  {option} " not in rest.partition("All other options")[2]
    for key in defaults():
        if not key.endswith((".name", ".own")):
            assert re.search(rf"^  {re.escape(key)}\b", text, re.MULTILINE), key
    for group, named in GROUPS.items():
        for name in named:
            assert f"\n  {group}={name}" in rest


def test_a_long_text_goes_on_below_itself():
    lines = help_text(RUN, 80).splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("  seeds=1"))
    assert lines[at + 1].startswith(" " * 27)
    assert not lines[at + 1].startswith(" " * 28)
