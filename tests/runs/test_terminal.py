"""What is printed: no line ends in a space, unless the space is seen."""

import io

import pytest
from command_line import call
from rich.table import Table
from rich.text import Text

from gradexp import run as run_module
from gradexp.cli.about import RUN
from gradexp.cli.help import help_text
from gradexp.predict import __main__ as predict
from gradexp.runs.terminal import Terminal


def printed(*shown, **options):
    out = io.StringIO()
    console = Terminal(file=out, width=20, **options)
    for each in shown:
        console.print(each)
    return out.getvalue()


def test_spaces_at_the_ends_of_lines_are_left_out():
    table = Table(box=None, pad_edge=False)
    for head in ("a", "wide"):
        table.add_column(head)
    table.add_row("1", "2")
    assert printed(table) == "a  wide\n1  2\n"
    assert printed("a text that is broken into lines") == "a text that is\nbroken into lines\n"
    assert printed(Text("a \n b  ")) == "a\n b\n"


def test_a_space_that_is_seen_stays():
    badge = Text.assemble(("word", ""), (" ok ", "reverse"))
    assert printed(badge, force_terminal=True, color_system="standard") == "word\x1b[7m ok \x1b[0m\n"


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_no_line_of_a_run_a_sweep_a_forecast_and_their_help_ends_in_a_space(monkeypatch, capsys):
    small = ["depth=3", "width=4", "steps=2", "batch_size=8", "record.figures=false"]
    swept = ["model=rnn", "model.cell=rnn,gru", "seed=0,1"]
    assert call(run_module.main, monkeypatch, *small) == 0
    assert call(run_module.main, monkeypatch, "-m", *small, *swept) == 0
    assert call(predict.main, monkeypatch, "depth=5", "dtype=float16") == 0
    shown = capsys.readouterr().out + help_text(RUN) + help_text(predict.ABOUT)
    assert "before training" in shown
    assert "first/last" in shown
    assert [line for line in shown.splitlines() if line != line.rstrip()] == []
