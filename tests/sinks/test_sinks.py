import csv
import io
import json
import math
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import few
from rich.console import Console as RichConsole
from sweep_processes import LIMIT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.summary.writer.record_writer import RecordWriter

from gradexp import MLP, exact_profile, initialize, theory
from gradexp.config import Config
from gradexp.history.history import History
from gradexp.history.step import QUANTITIES, STATUSES
from gradexp.history.verdict import Verdict
from gradexp.runs.progress import progress_bar
from gradexp.runs.result import Result
from gradexp.runs.summary import summary
from gradexp.runs.training import Training
from gradexp.sinks import files, tensorboard
from gradexp.sinks.console import Console, sparkline
from gradexp.sinks.files import Files
from gradexp.sinks.lines import range_lines
from gradexp.sinks.tensorboard import TensorBoard

NAN = math.nan
COLUMNS = (
    "phase,step,seed,layer,call,name,log10_output,log10_output_grad,log10_weight_grad,log10_weight,log10_update,"
    "status_output,status_output_grad,status_weight_grad,theory_log10_output,theory_log10_output_grad,"
    "theory_log10_weight_grad,theory_sd_output_grad"
)


def profile(networks=1, depth=6):
    """Measure a small real network."""
    model = MLP([4, *[8] * (depth - 1), 3], "tanh", networks=networks)
    initialize(model, "xavier", seed=0)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    return exact_profile(model, x, seeds=list(range(networks)))


def invented(output_grad, statuses=None, output=None, seeds=1, **options):
    """Return an initial profile with the given log10 of every size, the same in each network."""
    grad = np.broadcast_to(np.array(output_grad, float), (1, seeds, len(output_grad)))
    sizes = {"output": grad if output is None else np.broadcast_to(np.array(output, float), grad.shape)}
    sizes |= {"output_grad": grad, "weight_grad": grad}
    codes = {quantity: np.zeros(grad.shape, np.int8) for quantity in sizes}
    for quantity, names in (statuses or {}).items():
        codes[quantity][:] = [STATUSES.index(name) for name in names]
    names = [f"layers.{index}" for index in range(grad.shape[2])]
    largest = {quantity: sizes[quantity] for quantity in ("output", "output_grad")}
    return History("init", names, [0], list(range(seeds)), sizes, codes, largest, np.zeros(seeds), **options)


def gradients():
    """Return what a probe may have recorded at steps 0 and 2: layer 1 dies, layer 2 overflows, at step 2."""
    values = {
        quantity: np.array([[[-5.25, -2.0, -1.0]], [[NAN, NAN, 0.5]]]) for quantity in ("output_grad", "update")
    }
    codes = {quantity: np.zeros((2, 1, 3), np.int8) for quantity in values}
    codes["output_grad"][1, 0, :2] = [STATUSES.index("zero"), STATUSES.index("nonfinite")]
    return History("train", ["layers.0", "layers.1", "layers.2"], [0, 2], [0], values, codes)


def result(networks=1, status="complete", **options):
    given = {
        "initial": profile(networks),
        "gradients": gradients(),
        "training": Training([2.5, 1.5, 0.5], [0.1, 0.2, 0.9], [(0, 2.4, 0.1), (3, 0.6, 0.8)], None, 0.95),
        "verdict": Verdict("stable", "trained", "unavailable", "the gradient arrives: " + "as it should, " * 9),
        "building": "network   6 tanh layers\ninit      xavier (gain=1.0)",
        "seconds": 2.5,
        "seconds_by_part": {"weights": 0.25, "training": 1.25},
    }
    return Result(Config(depth=6, seeds=networks, batch_size=5), status=status, **(given | options))


def read(folder):
    return json.loads((folder / "summary.json").read_text())


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# Files


def test_the_summary_comes_first_and_says_running(tmp_path):
    run = Result(Config())
    Files(tmp_path).write("start", run)
    assert names_in(tmp_path) == ["summary.json"]
    assert read(tmp_path)["status"] == "running"


def test_the_files_of_a_complete_run(tmp_path):
    files, run = Files(tmp_path), result(status="running", gradients=None)
    for stage in ("start", "built", "initial", "step", "progress"):
        files.write(stage, run)
    assert names_in(tmp_path) == ["layers.csv", "summary.json"]
    assert read(tmp_path)["status"] == "running"
    run.status, run.gradients = "complete", gradients()
    files.write("end", run)
    files.close()
    assert names_in(tmp_path) == ["layers.csv", "summary.json"]
    assert read(tmp_path) == summary(run)
    assert read(tmp_path)["status"] == "complete"


def test_layers_csv_has_the_designed_columns_and_every_digit(tmp_path):
    run = result(networks=2)
    Files(tmp_path).write("end", run)
    assert (tmp_path / "layers.csv").read_text().splitlines()[0] == COLUMNS
    with (tmp_path / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == ["init"] * 12 + ["train"] * 6
    for row, network, layer in zip(rows, np.repeat([0, 1], 6), [*range(6)] * 2, strict=False):
        assert (row["step"], row["seed"], row["layer"], row["call"]) == ("0", str(network), str(layer + 1), "0")
        assert row["name"] == f"layers.{layer}"
        for quantity in ("output", "output_grad", "weight_grad"):
            assert float(row[f"log10_{quantity}"]) == run.initial.log10[quantity][0, network, layer]
            assert row[f"status_{quantity}"] == "ok"
        assert row["log10_weight"] == row["log10_update"] == row["theory_log10_output"] == ""
    assert [row["step"] for row in rows[12:]] == ["0"] * 3 + ["2"] * 3
    assert [row["log10_output_grad"] for row in rows[12:]] == ["-5.25", "-2.0", "-1.0", "", "", "0.5"]
    assert [row["status_output_grad"] for row in rows[15:]] == ["zero", "nonfinite", "ok"]
    assert "inf" not in {row["log10_output_grad"].strip("-") for row in rows}


def test_weights_can_be_loaded_as_plain_tensors(tmp_path):
    weights = {"layers.0.weight": torch.randn(1, 3, 4), "layers.0.bias": torch.zeros(1, 3)}
    Files(tmp_path).write("end", result(weights=weights))
    loaded = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_a_run_that_failed_before_its_profile_still_has_a_summary(tmp_path):
    files, run = Files(tmp_path), Result(Config())
    files.write("start", run)
    run.status, run.error = "failed", "no such data"
    files.write("end", run)
    assert (read(tmp_path)["status"], read(tmp_path)["error"]) == ("failed", "no such data")
    assert (tmp_path / "layers.csv").read_text().splitlines() == [COLUMNS]


def test_a_file_is_whole_before_it_takes_its_name(tmp_path, monkeypatch):
    moved, own = [], os.replace

    def replace(source, target):
        moved.append((Path(target).name, Path(source).parent == Path(target).parent))
        if Path(target).suffix == ".json":
            json.loads(Path(source).read_text())
        own(source, target)

    monkeypatch.setattr(os, "replace", replace)
    Files(tmp_path).write("end", result(weights={"w": torch.ones(1)}))
    # The summary comes last: when it says complete, the others are.
    assert moved == [("layers.csv", True), ("weights.pt", True), ("summary.json", True)]


def test_an_error_while_writing_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    sink = Files(tmp_path)
    sink.write("initial", result(status="running"))
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}

    def full(path, _histories):
        path.write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "write_csv", full)
    with pytest.raises(OSError, match="no space left"):
        sink.write("end", result())
    after = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    assert after.keys() == before.keys()
    assert after["layers.csv"] == before["layers.csv"]
    told = json.loads(after["summary.json"])
    assert (told["status"], told["error"]) == ("failed", "no space left on device")


def test_a_file_that_cannot_be_replaced_leaves_no_part(tmp_path, monkeypatch):
    def refuse(_source, _target):
        raise PermissionError("in use")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        Files(tmp_path).write("start", Result(Config()))
    assert names_in(tmp_path) == []


# TensorBoard


def scalars(folder):
    """Read every scalar back: tag -> list of (step, value)."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def play(sink, run):
    """Tell a sink of a whole run in the order in which ``experiment.run`` does."""
    losses, accuracies, tests = run.training.losses, run.training.accuracies, run.training.tests
    final = run.training, run.gradients
    run.training, run.gradients = Training(), None
    for stage in ("start", "built", "initial"):
        sink.write(stage, run)
    for step, loss in enumerate(losses):
        run.training.tests += [test for test in tests if test[0] == step]
        run.training.losses.append(loss)
        run.training.accuracies += accuracies[step : step + 1]
        sink.write("step", run)
        sink.write("progress", run)
    run.training, run.gradients = final
    sink.write("end", run)
    sink.close()


def exactly(points):
    return [(step, float(np.float32(value))) for step, value in points]


def test_profiles_have_one_point_per_layer_with_the_values_of_the_history(tmp_path):
    run = result(networks=2)
    play(TensorBoard(tmp_path), run)
    read = scalars(tmp_path)
    assert {tag for tag in read if tag.startswith("profile/")} == {
        "profile/log10_output",
        "profile/log10_output_grad",
        "profile/log10_weight_grad",
    }
    for quantity in ("output", "output_grad", "weight_grad"):
        values = run.initial.log10[quantity][0].mean(axis=0)
        shown = read[f"profile/log10_{quantity}"]
        assert [step for step, _ in shown] == list(range(1, 7))
        assert [value for _, value in shown] == pytest.approx(values, rel=1e-7, abs=1e-9)


def test_a_layer_without_a_number_is_left_out(tmp_path):
    run = result(initial=invented([NAN, -3.0, NAN, 0.0]))
    play(TensorBoard(tmp_path), run)
    assert scalars(tmp_path)["profile/log10_output_grad"] == [(2, -3.0), (4, 0.0)]


def test_training_is_written_once_per_step(tmp_path):
    play(TensorBoard(tmp_path), result())
    read = scalars(tmp_path)
    assert {tag for tag in read if not tag.startswith("profile/")} == {
        "train/loss",
        "train/accuracy",
        "test/loss",
        "test/accuracy",
        "gradient/log10_first_over_last",
        "gradient/nonfinite_layers",
        "gradient/zero_layers",
    }
    assert read["train/loss"] == exactly([(0, 2.5), (1, 1.5), (2, 0.5)])
    assert read["train/accuracy"] == exactly([(0, 0.1), (1, 0.2), (2, 0.9)])
    assert read["test/loss"] == exactly([(0, 2.4), (3, 0.6)])
    assert read["test/accuracy"] == exactly([(0, 0.1), (3, 0.8)])


def test_real_gradients_are_written_at_their_own_steps_and_broken_layers_counted(tmp_path):
    play(TensorBoard(tmp_path), result())
    read = scalars(tmp_path)
    assert read["gradient/log10_first_over_last"] == [(0, -4.25)]  # at step 2 there is none
    assert read["gradient/nonfinite_layers"] == [(0, 0.0), (2, 1.0)]
    assert read["gradient/zero_layers"] == [(0, 0.0), (2, 1.0)]


def test_a_loss_that_cannot_be_drawn_is_left_out_and_regression_has_no_accuracy(tmp_path):
    training = Training([2.5, 1e300, math.inf], [], [(0, 2.4, None)], 2)
    play(TensorBoard(tmp_path), result(training=training))
    read = scalars(tmp_path)
    assert read["train/loss"] == [(0, 2.5)]
    assert read["test/loss"] == exactly([(0, 2.4)])
    assert not {"train/accuracy", "test/accuracy"} & set(read)


def test_what_an_interruption_leaves_is_written_at_the_end(tmp_path):
    sink, run = TensorBoard(tmp_path), result(status="interrupted", training=Training([2.5], [0.5]))
    sink.write("step", run)
    run.training.losses.append(1.5)  # the interruption came before the next step was told
    sink.write("end", run)
    sink.close()
    assert scalars(tmp_path)["train/loss"] == [(0, 2.5), (1, 1.5)]
    assert scalars(tmp_path)["train/accuracy"] == [(0, 0.5)]


def events(folder):
    """Read the events of the one file in a folder: (step, tags)."""
    (path,) = folder.glob("events.*")
    loaded = EventFileLoader(str(path)).Load()
    return [(event.step, {value.tag for value in event.summary.value}) for event in loaded if event.summary.value]


def test_the_values_of_a_step_share_one_event(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_BETWEEN", 0)
    play(TensorBoard(tmp_path), result())
    profiles = {f"profile/log10_{quantity}" for quantity in ("output", "output_grad", "weight_grad")}
    test, train = {"test/loss", "test/accuracy"}, {"train/loss", "train/accuracy"}
    layers = {"gradient/nonfinite_layers", "gradient/zero_layers"}
    assert [(step, tags) for step, tags in events(tmp_path) if "custom_scalars__config__" not in tags] == [
        *((layer, profiles) for layer in range(1, 7)),
        *[(0, test), (0, train), (1, train), (2, train), (3, test)],
        *[(0, {"gradient/log10_first_over_last", *layers}), (2, layers)],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("count", few([200, 1000]))
def test_a_long_run_at_150_layers_takes_less_than_30_megabytes(count, tmp_path):
    rng, steps, depth = np.random.default_rng(0), range(count), 150
    sizes = {quantity: rng.normal(-5, 3, (len(steps), 1, depth)) for quantity in QUANTITIES}
    codes = {quantity: np.zeros(values.shape, np.int8) for quantity, values in sizes.items()}
    history = History("train", [f"layers.{layer}" for layer in range(depth)], list(steps), [0], sizes, codes)
    training = Training(
        list(rng.random(count)), list(rng.random(count)), [(count // 10 * k, 0.5, 0.5) for k in range(11)]
    )
    run = result(gradients=history, training=training)
    play(Files(tmp_path), run)
    play(TensorBoard(tmp_path), run)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 30e3 * count
    shown = scalars(tmp_path)["gradient/log10_first_over_last"]
    ratios = sizes["output_grad"][:, 0, 0] - sizes["output_grad"][:, 0, -1]
    assert shown == exactly(zip(steps, ratios, strict=True))


def test_training_does_not_wait_for_a_slow_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_BETWEEN", 0)
    run, sink, own, free = result(), TensorBoard(tmp_path), RecordWriter.write, threading.Event()
    sink.write("initial", run)
    sink.writer.flush()

    def slow(self, data):
        assert free.wait(timeout=LIMIT)
        own(self, data)

    monkeypatch.setattr(RecordWriter, "write", slow)
    for step in range(3, 103):
        run.training.losses.append(float(step))
        sink.write("step", run)
    assert not free.is_set()
    free.set()
    sink.close()
    assert [value for _, value in scalars(tmp_path)["train/loss"]][3:] == list(range(3, 103))


def test_a_run_that_is_made_again_replaces_its_event_files(tmp_path):
    play(TensorBoard(tmp_path), with_theory())
    run = with_theory()
    run.training.losses[:] = [4.0]
    play(TensorBoard(tmp_path), run)
    assert len([*tmp_path.rglob("events.*")]) == 2
    assert scalars(tmp_path)["train/loss"] == [(0, 4.0)]


def test_a_run_with_nothing_to_show_writes_no_event_file(tmp_path):
    sink, run = TensorBoard(tmp_path), Result(Config())
    sink.write("start", run)
    sink.write("end", run)
    sink.close()
    assert names_in(tmp_path) == []


# Console


@pytest.fixture
def plain(monkeypatch):
    """Make standard output's width and colours those of a pipe, whatever the environment says."""
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def printed(run, quiet=False, folder=Path("outputs"), **options):
    out = io.StringIO()
    console = RichConsole(file=out, width=80, highlight=False, **options)
    play(Console(folder, quiet, console), run)
    return out.getvalue()


def test_quiet_prints_the_two_lines_of_the_verdict_and_nothing_else():
    assert [line.rstrip() for line in printed(result(), quiet=True).splitlines()] == [
        "gradient: stable, training: trained, theory: unavailable",
        ("the gradient arrives: " + "as it should, " * 9).rstrip(),
    ]


def test_output_to_a_pipe_has_no_ansi_codes_and_fits_80_columns(plain, capsys, tmp_path):
    run = result(networks=3)
    play(Console(tmp_path), run)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    lines = [line for line in text.splitlines() if not line.startswith(("files", "look"))]
    assert max(len(line) for line in lines) <= 80
    assert f"files     {tmp_path}\n" in text  # a path is never broken
    assert f"look      python -m gradexp.board {tmp_path}\n" in text
    for part in (
        "gradexp ",
        "network 6 tanh layers init xavier (gain=1.0) At initialisation (5 samples, 3 networks, exact)",
        "Training loss 2.5 to 0.5 in 3 steps; accuracy 95.0% in training, 80.0% in test",
        "gradient: stable, training: trained, theory: unavailable the gradient arrives:",
        "seconds 2.5 (weights 0.2, training 1.2)",
    ):
        assert part in " ".join(text.split()), part


def test_the_table_shows_first_middle_and_last_layer_and_the_slope():
    run = result(initial=invented([-4.0, -1.0, -1.5, math.log10(2)], output=[0.0, 1.0, 2.0, 3.0]))
    text = printed(run)
    before, _, _ = text.partition("Training")
    header, output, grad = [
        line.split() for line in before.splitlines() if line.split()[:1] in (["layer"], ["output"])
    ]
    assert header == ["layer", "1", "layer", "2", "layer", "4", "1", "to", "4,", "log", "scale"]
    assert output == ["output", "rms", "1.00e+00", "1.00e+01", "1.00e+03", "▁▃▆█"]
    assert grad[:5] == ["output", "gradient", "1.00e-04", "1.00e-01", "2.00e+00"]
    slope = 2 * math.log(10) * (-4 - math.log10(2)) / 3
    assert f"log_chi {slope:+.4g} per layer towards the input, depth scale {-1 / slope:.3g} layers\n" in text


def test_the_gradient_of_the_last_step_is_shown_with_zero_and_not_finite_layers_marked():
    history = gradients()
    text = printed(result(gradients=history)).partition("Training")[2]
    header, row = text.splitlines()[2:4]
    assert header.split()[:4] == ["output", "gradient", "layer", "1"]
    assert row.split()[:3] == ["step", str(history.steps[-1]), "zero"]
    assert row.split()[-1].startswith("0x")


def test_several_networks_have_a_standard_error():
    run = result(networks=4)
    slopes = run.initial.at().log_chi_per_network()
    assert f"{slopes.mean():+.4g} ± {slopes.std(ddof=1) / 2:.2g} per layer" in printed(run)
    assert "±" not in printed(result(networks=1))


def test_sizes_beyond_any_number_format_are_shown_right_and_fit():
    sizes = [-46.0, 0.0, 1760.0]
    text = printed(result(initial=invented(sizes)))
    row = next(line for line in text.splitlines() if line.startswith("output gradient"))
    assert row.split()[2:5] == ["1.00e-46", "1.00e+00", "1.00e+1760"]
    assert len(row) <= 80


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
    row = next(line for line in text.splitlines() if line.startswith("output gradient"))
    assert row.split()[2] == status
    assert "log_chi" not in text


def test_a_deep_profile_fits_80_columns_uncut():
    values = np.linspace(-1760, 0, 10000)
    history = invented(values, {"output": ["nonfinite"] * 10000}, output=[NAN] * 10000)
    rows = [line.rstrip() for line in printed(result(initial=history)).splitlines()]
    header = next(line for line in rows if "log scale" in line)
    assert "layer 10000" in header
    assert "1 to 10000, log scale" in header
    for label in ("output rms", "output gradient", "weight gradient"):
        row = next(line for line in rows if line.startswith(label))
        assert len(row) <= 80
        assert len(row.split()[-1]) == 24
        assert "…" not in row


def test_samples_that_died_are_counted():
    history = invented([0.0, 0.0], seeds=2)
    history.dead_fraction = np.array([0.5, 0.25])
    assert "37.5% of the samples are exactly 0 at some layer and left out\n" in printed(result(initial=history))
    assert "exactly 0" not in printed(result())


def test_a_single_layer_has_a_profile_but_no_slope():
    text = printed(result(initial=invented([0.5])))
    header = next(line for line in text.splitlines() if "log scale" in line)
    assert header.split() == ["layer", "1", "1", "to", "1,", "log", "scale"]
    assert "log_chi" not in text


def test_divergence_is_said():
    training = Training([2.5, NAN], [0.1, 0.1], [(0, 2.4, 0.1)], 1)
    assert "loss 2.5 to nan in 2 steps, not finite from step 1 on\n" in printed(result(training=training))


def test_regression_has_a_loss_only():
    training = Training([2.5, 1.0], [], [(0, 2.4, None), (2, 1.0, None)])
    assert "\nloss 2.5 to 1 in 2 steps\n" in printed(result(training=training))


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_did_not_complete_has_no_verdict(status):
    text = printed(result(status=status))
    assert "At initialisation" in text
    assert "gradient: stable" not in text
    assert "Training" not in text
    assert printed(result(status=status), quiet=True) == ""


def test_text_in_brackets_is_shown_as_it_is():
    run = result(building="data [bold]odd[/bold]", verdict=Verdict("stable", text="try [red]this[/red]"))
    text = printed(run)
    assert "data [bold]odd[/bold]\n" in text
    assert "try [red]this[/red]\n" in text


def test_a_remedy_is_a_command_in_one_line_with_the_other_options():
    verdict = Verdict("vanishing", text="vanishing", remedy="init=orthogonal activation=tanh")
    typed = ["init=normal", "init.std=0.01", "data.path=a file.npz", *(f"record.every={n}" for n in range(9))]
    text = printed(result(verdict=verdict, overrides=typed))
    kept = " ".join(f"record.every={n}" for n in range(9))
    command = f"python -m gradexp.run 'data.path=a file.npz' {kept} init=orthogonal activation=tanh"
    assert f"\ntry       {command}\n" in text
    assert "\ntry " not in printed(result())


def test_a_folder_inside_the_current_one_is_shown_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "files     outputs/a\n" in printed(result(), folder=tmp_path / "outputs" / "a")
    assert f"files     {tmp_path.parent}\n" in printed(result(), folder=tmp_path.parent)


def test_a_terminal_gets_a_progress_bar_that_is_gone_at_the_end():
    out = io.StringIO()
    console = RichConsole(file=out, width=80, force_terminal=True, highlight=False)
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


def test_a_bar_shows_what_is_done_at_which_rate_and_the_time_that_remains():
    out, clock = io.StringIO(), [0.0]
    console = RichConsole(file=out, width=80, force_terminal=True, highlight=False, get_time=lambda: clock[0])
    bar = progress_bar(console)
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


# sparklines and ranges


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0.0], "▄"),
        ([5.0, 5.0, 5.0], "▄▄▄"),
        ([5.0, 5.0 + 1e-12, 5.0 - 1e-12], "▄▄▄"),
        ([0.0, 1.0], "▁█"),
        ([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], "█▇▆▅▄▃▂▁"),
        ([-1760.0, 0.0], "▁█"),
        ([0.0, NAN, 1.0], "▁?█"),
        ([NAN, NAN], "??"),
        ([-math.inf, 0.0, math.inf], "?▄?"),
        ([], ""),
    ],
)
def test_sparkline(values, drawn):
    assert sparkline(np.array(values)) == drawn


def test_a_sparkline_tells_zero_from_not_finite_and_from_unseen():
    codes = [STATUSES.index(status) for status in ("zero", "nonfinite", "hook_missed", "ok", "ok", "zero")]
    values, status = np.array([NAN, NAN, NAN, 0.0, 1.0, NAN]), np.array(codes, dtype=np.int8)
    assert sparkline(values, status) == "0x?▁█0"
    assert sparkline(values, status, width=2) == "x0"  # the worst of three


def test_what_stands_below_each_other_is_drawn_on_one_scale():
    measured, theory = np.array([0.0, -1.0, -2.0]), np.array([0.0, -3.5, -7.0])
    assert sparkline(measured, beside=theory) == "█▇▆"
    assert sparkline(theory, beside=measured) == "█▅▁"
    lines = [line.split() for line in printed(with_theory()).splitlines()]
    at = next(index for index, line in enumerate(lines) if line[:2] == ["output", "gradient"])
    assert lines[at + 1][0] == "theory"
    # Both end at the same cotangent of length 1, so that their last blocks are alike.
    assert lines[at][-1][-1] == lines[at + 1][-1][-1]


def test_a_sparkline_of_less_than_a_decade_does_not_fill_the_height():
    assert set(sparkline(np.linspace(0, 0.3, 20))) <= set("▃▄▅")


def test_a_sparkline_of_10000_layers_averages_them():
    assert len(sparkline(np.zeros(10000))) == 24
    assert sparkline(np.linspace(0, 1, 10000), width=8) == "▁▂▃▄▅▆▇█"
    one_missing = np.zeros(10000)
    one_missing[-1] = NAN
    assert sparkline(one_missing) == "▄" * 23 + "?"
    assert sparkline(np.full(10000, NAN)) == "?" * 24


def test_range_lines_name_the_layer_from_which_on_a_format_fails():
    history = invented([-50.0, -44.0, 0.0, 39.0], output=[0.0, 10.0, 40.0, 50.0])
    assert range_lines(history.at(), "float32") == [
        "in float32 outputs would overflow to inf from layer 3 up",
        "in float32 output gradients would underflow to 0 from layer 1 down",
        "in float32 output gradients would overflow to inf from layer 4 down",
    ]
    assert range_lines(history.at(), "float64") == []
    assert all(line in printed(result(initial=history)) for line in range_lines(history.at(), "float32"))


def with_theory(networks=1, activation="relu", init="he", widths=(4, 8, 8, 8, 8, 8, 3)):
    """Return a run whose profile has theory beside it."""
    mlp = MLP(list(widths), activation, networks=networks, dtype=torch.float64)
    initialize(mlp, init, seed=0)
    x = torch.randn(5, widths[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measured = exact_profile(mlp, x)
    prediction = theory.predict_layers(mlp.activation, theory.weight_laws(init, widths), widths, x)
    measured.theory = prediction.arrays
    comparison = theory.compare(prediction, measured)
    return result(networks, initial=measured, prediction=prediction, comparison=comparison)


def test_theory_is_drawn_by_a_run_of_its_own_with_the_same_tags(tmp_path):
    run = with_theory()
    play(TensorBoard(tmp_path), run)
    predicted = run.prediction
    line = scalars(tmp_path / "theory")
    assert set(line) == {"profile/log10_output", "profile/log10_output_grad", "profile/log10_weight_grad"}
    for tag, points in line.items():
        values = getattr(predicted, tag.removeprefix("profile/"))
        assert [step for step, _ in points] == list(range(1, 7))
        assert [value for _, value in points] == pytest.approx(values, rel=1e-6, abs=1e-8)
    # No band: two more lines of one colour for every run, of which TensorBoard draws 500.
    assert [path.parent for path in sorted(tmp_path.rglob("events.*"))] == [tmp_path, tmp_path / "theory"]


def test_theory_is_not_drawn_where_there_is_none_or_nobody_wants_it(tmp_path):
    play(TensorBoard(tmp_path / "off", subruns=False), with_theory())
    play(TensorBoard(tmp_path / "none"), with_theory(activation="tanh", init="lecun"))
    assert not list(tmp_path.rglob("theory"))


def test_files_hold_theory_beside_the_measurement(tmp_path):
    run = with_theory(networks=9)
    play(Files(tmp_path), run)
    found = read(tmp_path)["theory"]
    law = [theory.layer_law(8, 8, 2.0, (0, 1), backward=True)] * 5
    assert found["valid"] is True
    assert (found["sigma_w2"], found["sigma_b2"], found["chi_1"]) == (2.0, 0.0, 1.0)
    assert found["log_chi"] == pytest.approx(sum(one.mean for one in law) / 5, abs=1e-12)
    assert found["log_chi_sd"] == pytest.approx(math.sqrt(sum(one.variance for one in law)) / 5, abs=1e-12)
    initial = read(tmp_path)["initial"]
    assert found["z"] == pytest.approx((initial["log_chi"] - found["log_chi"]) / initial["log_chi_se"], rel=1e-4)
    with (tmp_path / "layers.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == "init"]
    assert len(rows) == 9 * 6
    for row in rows:
        layer = int(row["layer"]) - 1
        for key, values in run.prediction.arrays.items():
            assert float(row[f"theory_{key}"]) == values[layer]


def test_files_say_why_there_is_no_theory(tmp_path):
    run = with_theory(activation="tanh", init="lecun")
    play(Files(tmp_path), run)
    found = read(tmp_path)["theory"]
    assert found["valid"] is False
    assert found["reason"].startswith("no isolated fixed point at sigma_w2=1, sigma_b2=0")
    assert found["log_chi"] is None is found["z"]
    with (tmp_path / "layers.csv").open() as file:
        assert all(row["theory_log10_output_grad"] == "" for row in csv.DictReader(file))


def test_the_console_shows_theory_under_each_measured_line():
    run = with_theory(networks=9)
    lines = printed(run).splitlines()
    for label in ("output rms", "output gradient", "weight gradient"):
        at = next(index for index, line in enumerate(lines) if line.startswith(label))
        assert lines[at + 1].split()[0] == "theory"
    predicted = 10 ** run.prediction.log10_output_grad[0]
    at = next(index for index, line in enumerate(lines) if line.startswith("output gradient"))
    assert float(lines[at + 1].split()[1]) == pytest.approx(predicted, rel=0.01)
    text = " ".join(" ".join(lines).split())
    assert f"theory {run.prediction.log_chi:+.4g}, standard deviation {run.prediction.log_chi_sd:.2g}" in text
    assert f"(exact at any width): {run.comparison.text}" in text
    slopes = run.initial.at().log_chi_per_network()
    assert f"half {np.quantile(slopes, 0.5):+.4g}" in text


def test_the_console_says_why_there_is_no_theory():
    text = " ".join(printed(with_theory(activation="tanh", init="lecun")).split())
    assert "theory unavailable: no isolated fixed point at sigma_w2=1, sigma_b2=0" in text
