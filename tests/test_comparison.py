import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gradexp import comparison
from gradexp.comparison import compare, print_table, report, seed_groups, swept_keys
from gradexp.config import Config, InitConfig
from gradexp.history import History, write_csv
from gradexp.report import main
from gradexp.result import Result, refused, summary
from gradexp.sweep import read_jobs
from gradexp.verdict import Verdict


def leave(folder: Path, name: str, config: Config, overrides: list[str], slope: float = -1.0, **changes: Any) -> Path:
    """Make the folder of a job whose output gradient has this log_chi."""
    job = folder / name
    job.mkdir(parents=True)
    log10 = -slope / (2 * np.log(10)) * np.arange(config.depth, dtype=float)[None, None]
    status = {key: np.zeros(log10.shape, np.int8) for key in ("output", "output_grad", "weight_grad")}
    names = [f"layers.{layer}" for layer in range(config.depth)]
    history = History("init", names, [0], [config.seed], dict.fromkeys(status, log10), status)
    history.largest_log10 = dict.fromkeys(("output", "output_grad"), log10)
    result = Result(config, overrides, "complete", initial=history, verdict=Verdict("vanishing", "stuck", "agrees"))
    (job / "summary.json").write_text(json.dumps({**summary(result), **changes}))
    write_csv(job / "layers.csv", [history])
    return job


def grid(folder: Path) -> Path:
    """Make a sweep over two depths, two inits and three seeds; log_chi is -depth / 10 - seed."""
    number = 0
    for depth in (10, 4):
        for init in ("xavier", "he"):
            for seed in range(3):
                config = Config(depth=depth, init=InitConfig(init), seed=seed)
                given = [f"depth={depth}", f"init={init}", f"seed={seed}", "steps=100"]
                leave(folder, f"{number}_depth={depth},init={init},seed={seed}", config, given, -depth / 10 - seed)
                number += 1
    return folder


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
    failed = refused({"seed": 2, "init": {"name": "he"}, "depth": -1}, ["seed=2", "depth=-1"], "depth must be 1")
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
    assert lines[0].split() == ["depth", "init", "log_chi", "first/last"]
    # -1.4 over 3 steps from layer 4 to layer 1: 10^(-1.4 · 3 / (2 ln 10))
    assert lines[1].split() == ["4", "he", "-1.400", "10^-0.9"]
    assert lines[5] == "all       seeds 3, gradient vanishing, training stuck, theory agrees"
    assert max(map(len, lines)) <= 80


def test_a_long_table_ends_with_where_the_rest_is(tmp_path: Path) -> None:
    for number in range(50):
        leave(tmp_path, f"{number}_x", Config(depth=number + 2), [f"depth={number + 2}"])
    out = io.StringIO()
    print_table(compare(tmp_path), Console(file=out, width=80))
    assert "... and 10 lines more in sweep.csv" in out.getvalue()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "holds no runs"),
        (lambda folder: leave(folder.parent, folder.name, Config(), []), "is the folder of a single run"),
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


def test_the_command_works_without_loading_torch_or_hydra(tmp_path: Path) -> None:
    grid(tmp_path)
    script = (
        "import sys; from gradexp.report import main; sys.argv = ['report', sys.argv[1]]; main();"
        "assert not {'torch', 'hydra'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    link = "http://localhost:6006/?pinnedCards=%5B%7B%22plugin%22%3A%22scalars%22%2C%22tag%22%3A%22profile/"
    assert link in done.stdout
    assert (tmp_path / "report.html").exists()
