"""One bar for all jobs of a sweep."""

import io
import re
from pathlib import Path

import pytest
from results import result
from rich.console import Console

from gradexp.runs.progress import Progress
from gradexp.runs.sweep_bar import SweepBar, bar_of_sweep, count_job, sweep_bar
from gradexp.sinks.console import Line


def terminal(out, **options):
    return Console(file=out, width=80, force_terminal=True, highlight=False, **options)


def shown(bar, out):
    out.truncate(0)
    bar.console.print(bar.bar.get_renderable())
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())


def test_it_counts_jobs_and_tells_the_time_that_is_left():
    out, clock = io.StringIO(), [0.0]
    bar = SweepBar(40, terminal(out, get_time=lambda: clock[0]))
    for second in range(1, 11):
        clock[0] = float(second)
        bar.count()
    bar.show("he, depth 50: training", 0.5, 1)
    text = shown(bar, out)
    assert re.search(r"sweep .* 10/40 0:00:(2|3)\d he, depth 50: training", text)
    assert len(text.splitlines()[0].rstrip()) <= 80


def test_a_stack_of_networks_counts_while_it_trains_and_never_backwards():
    bar = SweepBar(10, terminal(io.StringIO()))
    seen = []
    for share in (0.1, 0.9):
        bar.show("8 networks: training", share, 8)
        seen.append(bar.bar.tasks[0].completed)
    for _ in range(8):
        bar.count()
        seen.append(bar.bar.tasks[0].completed)
    assert seen == pytest.approx([0.8, *[7.2] * 8, 8])


def test_lines_of_jobs_stand_above_it_and_it_is_gone_at_the_end():
    out = io.StringIO()
    with sweep_bar(2, terminal(out)):
        line, run = Line(Path("0_init=he")), result(overrides=["init=he"])
        run.progress = ("training", 1, 2)
        line.write("progress", run)
        assert bar_of_sweep().bar.tasks[0].completed == 0.5
        line.write("end", run)
        line.close()
        count_job()
        assert bar_of_sweep().bar.tasks[0].completed == 1
    assert bar_of_sweep() is None
    text = out.getvalue()
    assert "  0  he" in text
    assert text.rindex("sweep") > text.index("  0  he")
    assert text.endswith("\x1b[2K")
    count_job()  # of a job without a bar


@pytest.mark.parametrize("why", ["pipe", "quiet"])
def test_there_is_none_in_a_pipe_or_if_nobody_wants_it(why):
    out = io.StringIO()
    console = Console(file=out) if why == "pipe" else terminal(out)
    with sweep_bar(2, console, is_shown=why != "quiet"):
        assert bar_of_sweep() is None
        progress = Progress(quiet=why == "quiet", console=console)
        progress.advance("training", 1, 2)
        progress.close()
    assert out.getvalue() == ""
