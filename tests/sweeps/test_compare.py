import csv
import errno
import io
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call
from rich.console import Console
from sweep_folders import grid, leave

from gradexp.choices import ACTIVATIONS
from gradexp.config import Config, InitConfig, OptimizerConfig, VerdictConfig
from gradexp.report import main
from gradexp.runs.summary import unstarted_summary
from gradexp.sweeps import compare as comparison
from gradexp.sweeps import report as report_module
from gradexp.sweeps.compare import compare, seed_groups, swept_keys
from gradexp.sweeps.folder import Job, read_jobs
from gradexp.sweeps.report import report
from gradexp.sweeps.table import columns_of, complete_groups, print_table


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of a small report's time, and have tests of their own."""
    monkeypatch.setattr(report_module, "write_figures", lambda _: {})


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_sorted_by_the_swept_keys_numbers_by_size(tmp_path: Path) -> None:
    found = compare(grid(tmp_path))
    assert found.keys == ["depth", "init", "seed"]
    expected = [{"depth": d, "init": i, "seed": s} for d in (4, 10) for i in ("he", "xavier") for s in range(3)]
    assert [row.swept for row in found.rows] == expected


def test_sweep_csv_holds_every_job_with_all_digits(tmp_path: Path) -> None:
    report(grid(tmp_path), Console(file=io.StringIO()))
    rows = read(tmp_path / "sweep.csv")
    columns = "job,folder,config_hash,status,depth,init,seed,gradient,training,theory,log_chi,log_chi_theory,z,"
    columns += (
        "log10_first_over_last,depth_scale,loss_first,loss_last,train_accuracy,test_accuracy,diverged_at,seconds"
    )
    assert list(rows[0]) == columns.split(",")
    assert [row["job"] for row in rows] == ["9", "10", "11", "6", "7", "8", "3", "4", "5", "0", "1", "2"]
    for row in rows:
        content = json.loads((tmp_path / row["folder"] / "summary.json").read_text())
        assert row["config_hash"] == content["config_hash"]
        assert float(row["log_chi"]) == content["initial"]["log_chi"]
        assert float(row["log_chi"]) == pytest.approx(-int(row["depth"]) / 10 - int(row["seed"]))
        assert row["z"] == row["loss_last"] == ""


def test_jobs_that_differ_in_their_seed_are_averaged(tmp_path: Path) -> None:
    groups = seed_groups(compare(grid(tmp_path)))
    assert [(shared["depth"], shared["init"], len(rows)) for shared, rows in groups] == [
        (4, "he", 3),
        (4, "xavier", 3),
        (10, "he", 3),
        (10, "xavier", 3),
    ]
    for shared, rows in groups:
        assert comparison.average(rows, "log_chi") == pytest.approx(-shared["depth"] / 10 - 1)
        assert comparison.average(rows, "z") is None


@pytest.mark.parametrize(
    ("configs", "overrides", "keys"),
    [
        # An option of one scheme only; the other has none.
        (
            [Config(init=InitConfig("normal", std=0.1)), Config(init=InitConfig("he"))],
            [["init=normal", "init.std=0.1"], ["init=he"]],
            ["init", "init.std"],
        ),
        # A sweep that was gone on with, with another number of steps.
        ([Config(seed=0), Config(seed=0, steps=7)], [["seed=0"], ["seed=0", "steps=7"]], ["steps"]),
        # What changes no number counts only where nothing else differs.
        (
            [Config(seed=0, threads=1), Config(seed=1, threads=2)],
            [["seed=0", "threads=1"], ["seed=1", "threads=2"]],
            ["seed"],
        ),
        ([Config(threads=1), Config(threads=2)], [["threads=1"], ["threads=2"]], ["threads"]),
        ([Config(depth=4), Config(depth=5)], [["experiment=a"], ["experiment=b"]], ["experiment"]),
        ([Config(), Config()], [["seed=0"], ["seed=0"]], []),
        ([Config(seed=0), Config(seed=1)], [["+seed=0"], ["+seed=1"]], ["seed"]),
        ([Config(), Config(init=InitConfig("xavier"))], [["init=he"], ["init.name=xavier"]], ["init"]),
        # Else they would count as two seeds.
        (
            [Config(seed=0), Config(seed=0, save_weights=True)],
            [["seed=0"], ["seed=0", "save_weights=true"]],
            ["save_weights"],
        ),
    ],
)
def test_swept_keys_are_given_options_that_differ(
    configs: list[Config], overrides: list[list[str]], keys: list[str], tmp_path: Path
) -> None:
    for number, (config, given) in enumerate(zip(configs, overrides, strict=True)):
        leave(tmp_path, f"{number}_x", config, given)
    assert swept_keys(read_jobs(tmp_path)) == keys


def test_jobs_that_failed_or_never_got_that_far_are_listed(tmp_path: Path) -> None:
    leave(tmp_path, "0_a", Config(seed=0), ["seed=0"])
    leave(tmp_path, "1_b", Config(seed=1), ["seed=1"], status="running")
    (tmp_path / "2_c").mkdir()
    failed = unstarted_summary(
        {"seed": 2, "init": {"name": "he"}, "depth": -1}, ["seed=2", "depth=-1"], "depth must be 1"
    )
    (tmp_path / "2_c" / "summary.json").write_text(json.dumps(failed))
    out = io.StringIO()
    report(tmp_path, Console(file=out, width=80))
    assert "not complete: 1 running, 1 failed" in out.getvalue()
    rows = read(tmp_path / "sweep.csv")
    assert {(row["job"], row["status"], row["depth"], row["gradient"]) for row in rows} == {
        ("0", "complete", "150", "vanishing"),
        ("1", "running", "150", "vanishing"),
        ("2", "failed", "-1", ""),
    }
    assert "depth must be 1" in (tmp_path / "report.html").read_text()


def test_the_table_fits_a_terminal_and_says_once_what_is_the_same(tmp_path: Path) -> None:
    out = io.StringIO()
    print_table(compare(grid(tmp_path)), Console(file=out, width=80))
    text = out.getvalue()
    assert "\x1b" not in text
    assert "…" not in text
    lines = text.splitlines()
    assert lines[0].split() == ["depth", "init", "log_chi", "±", "sd", "first/last"]
    # -1.4 over 3 steps from layer 4 to layer 1: 10^(-1.4 · 3 / (2 ln 10))
    assert lines[1].split() == ["4", "he", "-1.400", "1.000", "10^-0.9"]
    assert lines[5] == "all       seeds 3, gradient vanishing, training stuck, theory agrees"
    assert max(map(len, lines)) <= 80


def table(folder: Path, width: int = 80) -> list[list[str]]:
    out = io.StringIO()
    print_table(compare(folder), Console(file=out, width=width))
    assert "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= width
    return [line.split() for line in out.getvalue().splitlines()]


def test_the_table_is_of_complete_jobs_and_names_the_errors_of_others(tmp_path: Path) -> None:
    for number in range(6):
        depth, seed = 4 + number // 3, number % 3
        training = dict.fromkeys(("loss_first", "train_accuracy", "test_accuracy", "diverged_at"))
        changes = {"training": {**training, "loss_last": 1.0 + seed}}
        leave(tmp_path, f"{number}_x", Config(depth=depth, seed=seed), [f"depth={depth}", f"seed={seed}"], **changes)
    for name, status, loss in (("1_x", "interrupted", 1000.0), ("2_x", "failed", None)):
        path = tmp_path / name / "summary.json"
        content = json.loads(path.read_text())
        content |= {"status": status, "error": "RuntimeError: too little memory"}
        content["training"]["loss_last"] = loss
        path.write_text(json.dumps(content))
    assert table(tmp_path) == [
        ["depth", "seeds", "log_chi", "±", "sd", "first/last", "loss"],
        ["4", "1", "-1.000", "-", "10^-0.7", "1.000"],
        ["5", "3", "-1.000", "0.000", "10^-0.9", "2.000"],
        ["all", "gradient", "vanishing,", "training", "stuck,", "theory", "agrees"],
        ["not", "complete:", "1", "interrupted,", "1", "failed"],
        ["2_x:", "RuntimeError:", "too", "little", "memory"],
    ]


def test_ten_errors_are_named(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}_x").mkdir()
        content = unstarted_summary(
            {"depth": -number}, [f"depth={-number}"], f"depth must be at least 1, got {-number}"
        )
        (tmp_path / f"{number}_x" / "summary.json").write_text(json.dumps(content))
    lines = table(tmp_path)
    assert lines[1] == ["11_x:", "depth", "must", "be", "at", "least", "1,", "got", "-11"]
    assert lines[-1] == ["...", "and", "2", "more", "in", "report.html"]
    assert len(lines) == 12


def test_the_spread_is_the_standard_deviation_of_the_seeds(tmp_path: Path) -> None:
    slopes = [-1.0, -1.2, -0.7]
    for seed, slope in enumerate(slopes):
        leave(tmp_path, f"{seed}_x", Config(seed=seed), [f"seed={seed}"], slope)
    _, line = table(tmp_path)
    sd = (sum((slope - np.mean(slopes)) ** 2 for slope in slopes) / 2) ** 0.5
    assert line[line.index("agrees") + 1 :][:2] == [f"{np.mean(slopes):+.3f}", f"{sd:.3f}"]


def test_long_keys_show_their_last_word_and_what_has_no_room_is_told(tmp_path: Path) -> None:
    for number, (init, activation, decay) in enumerate(
        product(("torch_default", "he"), ACTIVATIONS[3:5], (0.0, 0.1))
    ):
        options = {"optimizer": OptimizerConfig("sgd", lr=0.1 + decay, weight_decay=decay)}
        config = Config(init=InitConfig(init), activation=activation, verdict=VerdictConfig(3 + decay), **options)
        given = [f"init={init}", f"activation={activation}", "optimizer.lr=", "optimizer.weight_decay="]
        leave(tmp_path, f"{number}_x", config, [*given, "verdict.decades="], -number / 10)
    lines = table(tmp_path, width=70)
    assert lines[0] == ["init", "activation", "lr", "weight_decay", "decades", "log_chi"]
    assert lines[-1] == ["not", "shown", "first/last", "(see", "sweep.csv)"]


def test_more_options_than_a_terminal_has_room_for_are_left_out_from_the_last_one_on(tmp_path: Path) -> None:
    for number in (1, 2):
        given: dict[str, Any] = {
            "depth": number + 1,
            "width": 8 * number,
            "steps": 10**5 + number,
            "batch_size": number,
        }
        given |= {"negative_slope": 0.1 * number, "normalization": ("none", "layer")[number - 1]}
        given |= {"dropout": 0.1 * number, "activation": ("leaky_relu", "tanh")[number - 1]}
        leave(tmp_path, f"{number}_x", Config(**given), [f"{key}=" for key in given], -number / 10)
    lines = table(tmp_path)
    assert lines[0][:2] == ["depth", "width"]
    assert lines[0][-1] == "log_chi"
    assert [line[0] for line in lines[1:3]] == ["2", "3"]
    assert lines[-1][:2] == ["not", "shown"]
    assert "activation," in lines[-1]
    assert "depth" not in lines[-1]


@pytest.mark.parametrize(
    ("key", "values", "result"), [("loss", ("cross_entropy", "mse"), "last loss"), ("seeds", (1, 3), None)]
)
def test_an_option_with_the_name_of_a_result_is_shown_beside_it(
    key: str, values: tuple[object, ...], result: str | None, tmp_path: Path
) -> None:
    for number, value in enumerate(values):
        leave(tmp_path, f"{number}_x", Config(**{key: value}), [f"{key}={value}"], -number / 10)
    columns = columns_of(complete_groups(compare(tmp_path)))
    assert columns[key] == [str(value) for value in values]
    assert result is None or len(columns[result]) == 2


def test_lists_are_sorted_by_their_numbers(tmp_path: Path) -> None:
    for number, widths in enumerate(([16], [8, 9], [8])):
        leave(tmp_path, f"{number}_x", Config(widths=widths), [f"widths={widths}"])
    assert [row.swept["widths"] for row in compare(tmp_path).rows] == [[8], [8, 9], [16]]


def test_a_job_may_begin_again_while_the_others_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, "0_x", Config(), [])
    outcomes = iter([FileNotFoundError("summary.json"), read_jobs(tmp_path)])

    def read(folder: Path, damaged: list[str]) -> list[Job]:
        if isinstance(found := next(outcomes), Exception):
            raise found
        return found

    monkeypatch.setattr(comparison, "read_jobs", read)
    assert len(compare(tmp_path).rows) == 1


def test_a_heading_is_the_whole_key_where_there_is_room(tmp_path: Path) -> None:
    for number, std in enumerate((0.1, 0.2)):
        leave(tmp_path, f"{number}_x", Config(init=InitConfig("normal", std=std)), [f"init.std={std}"])
    lines = table(tmp_path)
    assert (lines[0][0], lines[1][0]) == ("init.std", "0.1")


def test_a_long_table_ends_with_where_the_rest_is(tmp_path: Path) -> None:
    for number in range(50):
        leave(tmp_path, f"{number}_x", Config(depth=number + 2), [f"depth={number + 2}"])
    out = io.StringIO()
    print_table(compare(tmp_path), Console(file=out, width=80))
    assert "... and 10 more lines in sweep.csv" in out.getvalue()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "holds no runs"),
        (
            lambda folder: (leave(folder.parent, folder.name, Config(), []) / "layers.csv").unlink(),
            "holds no profile: layers.csv is missing",
        ),
        (lambda folder: leave(folder, "0_x", Config(), [], gradexp="0.0"), "was written by gradexp 0.0"),
    ],
)
def test_a_folder_without_a_sweep_is_told_in_a_line(
    make: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "folder")
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "folder")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert text in error
    assert len(error.splitlines()) == 1


def test_a_folder_that_cannot_be_written_to_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path, "0_x", Config(), [])
    (tmp_path / "sweep.csv").mkdir()
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("cannot write to ")


def test_a_full_disk_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    leave(tmp_path, "0_x", Config(), [])
    monkeypatch.setattr(report_module, "write_csv", fail)
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == f"cannot write to {tmp_path}: No space left on device\n"


def test_a_terminal_without_unicode_shows_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "größe"
    leave(folder, "0_x", Config(), [])
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert call(main, monkeypatch, str(folder)) == 0
    shown.flush()
    assert b"gr??e" in shown.buffer.getvalue()


@pytest.mark.slow
def test_the_command_works_without_loading_torch_or_hydra(tmp_path: Path) -> None:
    grid(tmp_path)
    script = (
        "import sys; from gradexp.report import main; sys.argv = ['report', sys.argv[1]]; main();"
        "assert not {'torch', 'hydra'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert f"look      python -m gradexp.board {tmp_path}\n" in done.stdout
    assert (tmp_path / "report.html").exists()
