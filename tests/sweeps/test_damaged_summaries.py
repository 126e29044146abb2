"""What somebody else, or a broken disk, has left in the folder of a sweep."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import few
from rich.console import Console
from sweep_folders import grid, leave

from gradexp.choices import ConfigError
from gradexp.config import Config
from gradexp.runs.summary_file import DamagedSummaryError, read_summary
from gradexp.sweeps import report as report_module
from gradexp.sweeps.compare import compare
from gradexp.sweeps.folder import alone_in, plan
from gradexp.sweeps.report import report

KEYS = """verdict initial theory training started device torch seconds config overrides initial.log_chi
initial.log10_first_over_last theory.z training.loss_last verdict.gradient"""
LONG = int("9" * 40)
MARKUP = "<script>alert(1)</script>"


def empty_picture(_figure: object, path: Path, _dpi: int) -> Path:
    """Leave an empty file in place of a figure, which has been drawn but is not encoded."""
    (file := path.with_name(f"{path.name}.png")).touch()
    return file


def changed(path: Path, key: str, value: Any) -> None:
    """Set a value of a summary by its dotted key, or remove it."""
    content = json.loads(path.read_text())
    place = content
    *above, last = key.split(".")
    for part in above:
        place = place[part]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("value", few([KeyError, MARKUP, [], {}, LONG, True], 2), ids=str)
@pytest.mark.parametrize("key", KEYS.split())
def test_a_job_that_is_damaged_is_named_and_left_out_or_as_it_should_be(tmp_path: Path, key: str, value: Any) -> None:
    path = leave(tmp_path, "0_a", Config(), ["depth=150"]) / "summary.json"
    changed(path, key, value)
    kinds: dict[str, type] = {"device": str, "torch": str, "config": dict, "overrides": list}
    if isinstance(value, kinds.get(key, ())):
        assert read_summary(path.parent) is not None
        return
    with pytest.raises(DamagedSummaryError, match=rf"is damaged \(no {key}(\.\w+)*\); delete its folder"):
        read_summary(path.parent)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 1000 + "]" * 1000, "[" * 100_000, '{"seconds": NaN}', '{"schema": 1' + "0" * 5000 + "}", "\x00"],
    ids=range(7),
)
def test_text_that_is_no_summary_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_summary(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "summary.json")
    with pytest.raises(DamagedSummaryError, match="is no file"):
        read_summary(tmp_path)


def test_the_other_jobs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "save", empty_picture)
    folder = grid(tmp_path / "sweep")
    jobs = sorted(folder.glob("*/summary.json"))
    changed(jobs[0], "verdict", KeyError)
    jobs[1].unlink()
    os.mkfifo(jobs[1])
    jobs[2].write_text("[" * 100_000)
    for place, value in (("config.depth", [MARKUP]), ("device_name", MARKUP), ("error", MARKUP)):
        changed(jobs[3], place, value)
    (jobs[4].parent / "layers.csv").write_bytes(b"\xff" * 1000)
    out = io.StringIO()
    report(folder, Console(file=out, width=200))
    assert sum(line.startswith("left out") for line in out.getvalue().splitlines()) == 3
    page = (folder / "report.html").read_text()
    assert f"{len(jobs) - 3} jobs" in page
    assert MARKUP not in page
    assert "Left out" in page


def test_a_sweep_that_goes_on_leaves_a_damaged_job_where_it_is(tmp_path: Path) -> None:
    path = leave(tmp_path, "0_a", Config(), []) / "summary.json"
    other = leave(tmp_path, "1_b", Config(depth=3), [])
    path.write_text("{")
    known = json.loads((other / "summary.json").read_text())["config_hash"]
    planned = plan(tmp_path, [("new", lambda number: f"{number}_0"), (known, lambda number: f"{number}_1")])
    assert (planned.complete, planned.folders) == (1, {0: "2_0"})


def test_a_job_that_says_it_runs_and_does_not_is_interrupted(tmp_path: Path) -> None:
    at_work = leave(tmp_path, "0_a", Config(), [], status="running")
    killed = leave(tmp_path, "1_b", Config(depth=3), [], status="running")
    script = "import sys, os; from pathlib import Path; from gradexp.sweeps.folder import alone_in\n"
    script += "with alone_in(Path(sys.argv[1]), 'run', ''): os._exit(9)"  # as kill -9 leaves it
    subprocess.run([sys.executable, "-c", script, str(killed / ".hydra")], check=False, timeout=60)
    with alone_in(at_work / ".hydra", "run", ""):
        assert compare(tmp_path).statuses == {"running": 1, "interrupted": 1}


def test_what_runs_on_another_computer_cannot_be_told_from_here(tmp_path: Path) -> None:
    job = leave(tmp_path, "0_a", Config(), [], status="running")
    with alone_in(job / ".hydra", "run", ""):
        pass
    (job / ".hydra" / ".lock").touch()
    (tmp_path / "multirun.yaml").write_text("hydra:\n  launcher:\n    _target_: hydra_plugins.x.SlurmLauncher\n")
    assert compare(tmp_path).statuses == {"running": 1}


@pytest.mark.slow
def test_names_with_dollars_and_foreign_letters_are_drawn_as_they_are(tmp_path: Path) -> None:
    for number, name in enumerate(("$\\frac{$", "\U0001f600 漢", "<b>", "x" * 5000)):
        config = Config()
        config.data.name, config.data.path = "file", name
        leave(tmp_path, f"{number}_job", config, [f"data.path={name}"])
    out = io.StringIO()
    report(tmp_path, Console(file=out, width=100))
    assert "report" in out.getvalue()
