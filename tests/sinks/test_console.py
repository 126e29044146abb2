"""What a run prints: on a terminal, to a file, in a narrow window, at every way to end."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from results import NAN, gradients, invented, play, with_theory
from results import result as result_of
from rich.console import Console as RichConsole

from gradexp.history.verdict import Verdict
from gradexp.runs import progress
from gradexp.runs.bar import Bar
from gradexp.runs.result import Result
from gradexp.runs.training import Training
from gradexp.sinks.console import Console
from gradexp.sinks.lines import range_lines, slope_lines, theory_lines


@pytest.fixture
def plain(monkeypatch):
    """Make standard output's width and colours those of a pipe, whatever the environment says."""
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def printed(run, quiet=False, folder=Path("outputs"), width=80, **options):
    out = io.StringIO()
    console = RichConsole(file=out, width=width, highlight=False, **options)
    play(Console(folder, quiet, console), run)
    return out.getvalue()


def result(networks=1, **options):
    """Return a run without recorded gradients, unless they are given: the usual ones are of three layers."""
    return result_of(networks, **({"gradients": None} | options))


def row(text, label):
    return next(line for line in text.splitlines() if line.startswith(label))


def flat(text):
    return " ".join(text.split())


def test_quiet_prints_the_verdict_and_nothing_else():
    assert [line.rstrip() for line in printed(result(), quiet=True).splitlines()] == [
        "gradient: stable, training: trained, theory: unavailable",
        ("the gradient arrives: " + "as it should, " * 9).rstrip(),
    ]


def test_output_to_a_pipe_has_no_ansi_codes_and_fits_80_columns(plain, capsys, tmp_path):
    run = result(networks=3, guessing=2.3026, guessing_accuracy=0.1)
    play(Console(tmp_path), run)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    lines = [line for line in text.splitlines() if not line.startswith(("files", "look"))]
    assert max(len(line) for line in lines) <= 80
    assert f"files     {tmp_path}\n" in text  # a path is never broken
    assert f"look      python -m gradexp.board {tmp_path}\n" in text
    for part in (
        "gradexp ",
        "network 6 tanh layers init xavier (gain=1.0) gradient: stable, training: trained, theory: unavailable",
        "training loss 2.500 to 0.500 in 3 steps (guessing: 2.303)",
        "accuracy 95% in training, 80% in test (guessing: 10%)",
        "seconds 2.5, of which training 1.2, weights 0.2",
    ):
        assert part in flat(text), part


@pytest.mark.parametrize("networks", [1, 9])
def test_the_verdict_is_at_the_top_of_what_stays_on_a_screen_of_24_lines(networks):
    run = with_theory(networks, depth=12)
    run.verdict = Verdict("vanishing", "stuck", "agrees", "vanishing: " + "far too small " * 11, remedy="init=he")
    lines = printed(run).splitlines()
    at = lines.index("gradient: vanishing, training: stuck, theory: agrees")
    assert len(lines) - at <= 22  # and the prompt, and perhaps a further line
    assert lines[at + 1].startswith("vanishing: far too small")


def test_the_end_of_a_run_fits_but_for_commands_and_paths():
    finished = result(initial=invented(np.linspace(-15.1, 0, 150)))
    finished.seconds_by_part = {"importing torch": 2.0, "training": 1.0, "profile": 0.5}
    lines = printed(finished, width=40).splitlines()
    assert max(len(line) for line in lines[lines.index("files     outputs") + 2 :]) <= 40


@pytest.mark.parametrize("width", [60, 80, 132])
def test_a_terminal_of_any_width_shows_first_and_last_layer_and_all_in_between(width):
    text = printed(result(initial=invented(np.linspace(-15.1, 0, 150))), width=width)
    head, output = row(text, "before training"), row(text, "output rms")
    assert ("layer 75" in head) == (width > 60)
    assert ("layer 1 " in head, "layer 150" in head) == (True, True)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines() if not line.startswith(("look", "files"))) <= width
    bars = [word for word in output.split() if set(word) <= set("▁▂▃▄▅▆▇█")]
    assert len(bars[0]) >= 10


def test_the_words_of_a_verdict_are_badges_on_a_terminal_with_colours_and_without(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    run = result(verdict=Verdict("vanishing", "none", "agrees", "vanishing: lost"))
    terminal = {"force_terminal": True, "legacy_windows": False, "color_system": "standard"}
    text = printed(run, **terminal)
    assert "gradient \x1b[1;7;34m vanishing \x1b[0m" in text
    assert "theory \x1b[1;7;32m agrees \x1b[0m" in text
    plain = printed(run, no_color=True, **terminal)
    assert "gradient \x1b[1;7m vanishing \x1b[0m" in plain
    assert not re.search(r"\x1b\[[\d;]*3\d", plain)


def test_the_table_shows_first_middle_and_last_layer_the_change_and_the_slope():
    run = result(initial=invented([-4.0, -1.0, -1.5, math.log10(2)], output=[0.0, 1.0, 2.0, 3.0]))
    text = printed(run)
    assert row(text, "before training").split()[2:] == [
        "layer",
        "1",
        "layer",
        "2",
        "layer",
        "4",
        "1-4",
        "change",
    ]
    assert row(text, "output rms").split() == [
        "output",
        "rms",
        "1.00e+00",
        "1.00e+01",
        "1.00e+03",
        *["▂▃▅▆", "→", "10^+3.0"],
    ]
    grad = row(text, "gradient ∂L/∂z").split()
    assert grad[:5] == ["gradient", "∂L/∂z", "1.00e-04", "1.00e-01", "2.00e+00"]
    assert grad[-2:] == ["←", "10^-4.3"]
    slope = 2 * math.log(10) * (-4 - math.log10(2)) / 3
    assert f"log_chi   {slope:+.3f} per layer towards the input, depth scale {-1 / slope:.3g} layers\n" in text


def test_a_healthy_and_a_broken_network_look_different_at_a_glance():
    def bars(first):
        history = invented(np.linspace(first, 0, 150))
        return row(printed(result(initial=history)), "gradient ∂L/∂z").split()[5]

    healthy, steep, lost = bars(-0.4), bars(-6.0), bars(-44.9)
    assert len(set(healthy)) <= 2
    assert (steep[0], steep[-1]) == (lost[0], lost[-1]) == ("▁", "█")


def test_the_gradient_of_the_last_step_is_below_that_at_initialisation_with_odd_layers_marked():
    history = gradients()
    text = printed(result(gradients=history, initial=invented([-1.0, -0.5, 0.0])))
    found = row(text, f"  after {history.steps[-1]} steps").split()
    assert found[3] == "zero"
    assert "0x" in found[-1]
    lines = text.splitlines()
    at = lines.index(row(text, "gradient ∂L/∂z"))
    assert lines[at + 1].startswith("  after 2 steps")


@pytest.mark.parametrize(
    ("depth", "head"), [(2, "change"), (3, "1-3 change"), (5, "1-5 change"), (6, "1 to 6 change")]
)
def test_the_heading_of_a_short_profile_is_left_out_rather_than_cut(depth, head):
    heading = row(printed(result(initial=invented([0.0] * depth))), "before training")
    assert " ".join(heading.split()).partition(f"layer {depth} ")[2] == head


def test_one_step_is_no_steps():
    text = printed(result(training=Training([2.5], [0.1], [(0, 2.4, 0.1)])))
    assert "loss 2.500 to 2.500 in 1 step\n" in text


def test_theory_has_a_row_only_where_it_is_a_factor_of_2_away():
    run = with_theory()
    assert "  theory" not in printed(run)
    run.initial.theory["log10_output"] = run.initial.profile("output") + 0.31
    lines = printed(run).splitlines()
    at = lines.index(row("\n".join(lines), "output rms"))
    assert lines[at + 1].startswith("  theory")
    assert sum(line.startswith("  theory") for line in lines) == 1


def test_several_networks_have_a_standard_error():
    run = result(networks=4)
    slopes = run.initial.at().log_chi_per_network()
    assert f"{slopes.mean():+.3f} ± {slopes.std(ddof=1) / 2:.2g} per layer" in printed(run)
    assert "±" not in printed(result(networks=1))


def test_many_networks_have_a_median_and_its_quantiles():
    run = with_theory(networks=9)
    low, middle, high = np.quantile(run.initial.at().log_chi_per_network(), [0.05, 0.5, 0.95])
    told = f"median over 9 networks {middle:+.3f} (5 to 95 %: {low:+.3f} to {high:+.3f})"
    assert told in flat(" ".join(slope_lines(run.initial.at())))
    assert told in flat(printed(run))


def test_sizes_beyond_any_number_format_are_shown_right_and_fit():
    text = printed(result(initial=invented([-46.0, 0.0, 1760.0])))
    found = row(text, "gradient ∂L/∂z")
    assert found.split()[2:5] == ["1.00e-46", "1.00e+00", "1.00e+1760"]
    assert len(found) <= 80


@pytest.mark.parametrize(
    ("log10", "shown"),
    [
        (math.log10(9.996), "1.00e+01"),  # rounds up into the next power
        (math.log10(0.0123), "1.23e-02"),
        (-1760 + math.log10(2.5), "2.50e-1760"),
        (100.0, "1.00e+100"),
    ],
)
def test_a_size_is_shown_in_three_digits(log10, shown):
    assert f" {shown} " in printed(result(initial=invented([log10, 0.0])))


@pytest.mark.parametrize("status", ["zero", "nonfinite"])
def test_a_layer_without_a_number_shows_why(status):
    statuses = {"output_grad": [status, "ok", "ok"]}
    text = printed(result(initial=invented([NAN, 0.0, 1.0], statuses)))
    assert row(text, "gradient ∂L/∂z").split()[2] == status
    assert "log_chi" not in text


def test_a_deep_profile_fits_80_columns_uncut():
    values = np.linspace(-1760, 0, 10000)
    history = invented(values, {"output": ["nonfinite"] * 10000}, output=[NAN] * 10000)
    text = printed(result(initial=history))
    assert "layer 10000" in row(text, "before training")
    for label in ("output rms", "gradient ∂L/∂z", "weight gradient"):
        assert len(row(text, label)) <= 80
        assert "…" not in row(text, label)
    assert re.search("x{12,}", row(text, "output rms"))


def test_a_terminal_without_unicode_gets_letters_that_it_has():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    run = with_theory(9)
    play(Console(Path("outputs"), console=RichConsole(file=out, width=80, highlight=False)), run)
    out.flush()
    text = out.buffer.getvalue().decode("ascii")
    assert "gradient dL/dz  " in text
    assert re.search(r"[_.~=+*#-]{6}  <- 10\^", text)
    assert "?" not in text


def test_samples_that_died_are_counted():
    history = invented([0.0, 0.0], seeds=2)
    history.dead_fraction = np.array([0.5, 0.25])
    assert "37.5% of the samples are exactly 0 at some layer and left out\n" in printed(result(initial=history))
    assert "exactly 0" not in printed(result())


def test_a_single_layer_has_a_profile_but_no_slope():
    text = printed(result(initial=invented([0.5])))
    assert row(text, "before training").split()[2:4] == ["layer", "1"]
    assert "log_chi" not in text
    assert "10^" not in text


def test_divergence_is_said():
    training = Training([2.5, NAN], [0.1, 0.1], [(0, 2.4, 0.1)], 1)
    assert "loss 2.500 to nan in 2 steps, not finite from step 1 on\n" in printed(result(training=training))


def test_regression_has_a_loss_only():
    training = Training([2.5, 1.0], [], [(0, 2.4, None), (2, 1.0, None)])
    assert "\ntraining  loss 2.500 to 1.000 in 2 steps\n" in printed(result(training=training))


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_did_not_complete_shows_its_profile_and_no_verdict(status):
    text = printed(result(status=status))
    assert "before training" in text
    assert "gradient: stable" not in text
    assert "training  loss" not in text
    assert "files " not in text
    assert printed(result(status=status), quiet=True) == ""


def test_text_in_brackets_is_shown_as_it_is():
    run = result(building="data [bold]odd[/bold]", verdict=Verdict("stable", text="try [red]this[/red]"))
    text = printed(run)
    assert "data [bold]odd[/bold]\n" in text
    assert "try [red]this[/red]\n" in text


def test_a_remedy_is_a_command_in_one_line_with_the_other_options_and_said_once():
    remedy = "init=orthogonal activation=tanh"
    verdict = Verdict("vanishing", text=f"vanishing: lost; try {remedy}", remedy=remedy)
    typed = ["init=normal", "init.std=0.01", "data.path=a file.npz", *(f"record.every={n}" for n in range(9))]
    text = printed(result(verdict=verdict, overrides=typed))
    kept = " ".join(f"record.every={n}" for n in range(9))
    command = f"python -m gradexp.run 'data.path=a file.npz' {kept} init=orthogonal activation=tanh"
    assert f"\nvanishing: lost\ntry       {command}\n" in text
    assert "\ntry " not in printed(result())


def test_a_folder_inside_the_current_one_is_shown_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "files     outputs/a\n" in printed(result(), folder=tmp_path / "outputs" / "a")
    assert f"files     {tmp_path.parent}\n" in printed(result(), folder=tmp_path.parent)


def terminal(out):
    return RichConsole(file=out, width=80, force_terminal=True, highlight=False)


def test_a_terminal_gets_a_progress_bar_that_is_gone_at_the_end():
    out = io.StringIO()
    console = terminal(out)
    sink, run = Console(Path("outputs"), console=console), result()
    for done in (1, 2):
        run.progress = ("drawing weights", done, 2)
        sink.write("progress", run)
    run.progress = ("training", 1, 9)
    sink.write("progress", run)
    sink.close()
    assert "drawing weights" in out.getvalue()
    assert "training" in out.getvalue()
    # Two releases of rich, two names.
    assert not getattr(console, "_live_stack", None)
    assert getattr(console, "_live", None) is None
    assert out.getvalue().endswith("\x1b[2K")  # the bar's line is cleared


@pytest.mark.parametrize("quiet", [False, True])
def test_the_version_comes_first_and_a_spinner_while_pytorch_and_data_load(quiet, monkeypatch):
    monkeypatch.setattr(progress, "is_loaded", lambda _: False)
    out = io.StringIO()
    sink, run = Console(Path("outputs"), quiet, terminal(out)), Result(result().config)
    sink.write("start", run)
    assert out.getvalue().startswith("\x1b[1mgradexp ") != quiet
    assert ("loading PyTorch" in out.getvalue()) != quiet
    run.progress = ("loading digits", 0, 0)
    sink.write("progress", run)
    sink.close()
    assert ("loading digits" in out.getvalue()) != quiet
    assert not re.search(r"\d/(\d|\?)", out.getvalue())  # nobody knows how much there is to do


def test_while_it_trains_the_profile_is_above_the_bar_and_at_the_end_below_the_verdict():
    out, run = io.StringIO(), result()
    sink = Console(Path("outputs"), console=terminal(out))
    sink.write("initial", run)
    assert "output rms" not in out.getvalue()
    run.progress = ("training", 1, 9)
    sink.write("progress", run)
    shown = out.getvalue()
    assert 0 < shown.index("output rms") < shown.index("0/9")
    sink.write("end", run)
    sink.close()
    final = out.getvalue()
    assert final.rindex("the gradient arrives") < final.rindex("output rms")


def test_a_bar_shows_what_is_done_at_which_rate_and_the_time_that_remains():
    out, clock = io.StringIO(), [0.0]
    console = RichConsole(file=out, width=80, force_terminal=True, highlight=False, get_time=lambda: clock[0])
    bar = Bar(console)
    task = bar.add_task("training", total=200)
    for second in range(5):
        clock[0] = float(second)
        bar.update(task, completed=25 * second)
    console.print(bar.get_renderable())
    text = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert re.search(r"training .* 100/200 25/s 0:00:04", text)


def test_a_pipe_gets_no_progress_bar():
    run = result()
    run.progress = ("drawing weights", 1, 2)
    assert "drawing weights" not in printed(run)


def test_range_lines_name_the_layers_from_which_on_each_format_fails():
    history = invented([-50.0, -44.0, 0.0, 39.0], output=[0.0, 10.0, 40.0, 50.0])
    assert range_lines(history.at(), "float32") == [
        "outputs   inf from layer 2 up in float16, layer 3 up in bfloat16, layer 3 up in float32",
        "gradients 0 from layer 2 down in float16, layer 2 down in bfloat16, layer 1 down in float32",
        "gradients inf from layer 4 down in float16, layer 4 down in bfloat16, layer 4 down in float32",
    ]
    assert flat(" ".join(range_lines(history.at(), "float32"))) in flat(printed(result(initial=history)))
    assert range_lines(invented([-1.0, 0.0]).at(), "float64") == []


def test_the_lesson_is_told_where_half_of_half_is_0():
    layers = np.arange(1, 151)
    history = invented((150 - layers) * math.log10(0.5), output=layers * math.log10(0.5))
    # Half the smallest subnormal number, 2^-24 · 2^-1, rounds to 0: so do 2^-25, 2^-134 and 2^-150.
    assert range_lines(history.at(), "float64") == [
        "outputs   0 from layer 25 up in float16, layer 134 up in bfloat16, layer 150 up in float32",
        "gradients 0 from layer 125 down in float16, layer 16 down in bfloat16",
    ]


def test_the_lines_of_theory_hold_both_numbers_and_what_was_compared():
    run = with_theory(networks=9)
    [law, found] = theory_lines(run)
    prediction = run.prediction
    assert (
        law
        == f"theory    {prediction.log_chi:+.3f} ± {prediction.log_chi_sd:.2g} for one network (exact at any width)"
    )
    assert found.strip() == run.comparison.text
    assert flat(f"{law} {found}") in flat(printed(run))


def test_the_console_says_why_there_is_no_theory():
    run = with_theory(activation="gelu", init="he")
    assert not run.prediction.valid
    assert f"theory unavailable: {run.prediction.reason}" in flat(printed(run))
