import csv
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import few
from results import gradients, invented, play, result, with_theory
from sweep_processes import LIMIT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.summary.writer.record_writer import RecordWriter

from gradexp import theory
from gradexp.config import Config
from gradexp.history.history import History
from gradexp.history.step import QUANTITIES
from gradexp.runs.experiment import deliver
from gradexp.runs.result import Result
from gradexp.runs.summary import summary
from gradexp.runs.training import Training
from gradexp.sinks import files, tensorboard
from gradexp.sinks.files import Files
from gradexp.sinks.tensorboard import TensorBoard

NAN = math.nan
COLUMNS = (
    "phase,step,seed,layer,call,name,log10_output,log10_output_grad,log10_weight_grad,log10_weight,log10_update,"
    "status_output,status_output_grad,status_weight_grad,theory_log10_output,theory_log10_output_grad,"
    "theory_log10_weight_grad,theory_sd_output_grad"
)


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


def test_files_of_a_result_that_is_complete_already_are_written_once(tmp_path, monkeypatch):
    written, own = [], files.write_csv
    monkeypatch.setattr(files, "write_csv", lambda *arguments: written.append(own(*arguments)))
    deliver(result(), [Files(tmp_path)])
    assert len(written) == 1
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
    sink.write("initial", result(status="running", gradients=None))
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
    run = with_theory(activation="gelu", init="he")
    play(Files(tmp_path), run)
    found = read(tmp_path)["theory"]
    assert found["valid"] is False
    assert found["reason"].endswith("is too small for an expansion in 1 / width")
    assert found["log_chi"] is None is found["z"]
    with (tmp_path / "layers.csv").open() as file:
        assert all(row["theory_log10_output_grad"] == "" for row in csv.DictReader(file))
