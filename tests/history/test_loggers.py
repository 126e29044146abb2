"""Targets of a probe's log: which is told by what, what each is handed, and what it says of a wrong one."""

import csv
import json
from types import ModuleType

import pytest

from gradexp.history.finding import Finding
from gradexp.history.loggers import loggers_of
from gradexp.history.mlflow_process import MlflowProcess

NAN = float("nan")
FOUND = Finding("dead units", "9 of 9 in a", ("a",), "initialize(model, 'he')")


def write(log, *steps):
    for step, numbers, findings in steps:
        for logger in loggers_of(log) if not isinstance(log, list) else log:
            logger.write(step, numbers, findings)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def test_a_function_is_called_with_the_step_and_the_numbers_that_there_are():
    seen = []
    write(lambda step, numbers: seen.append((step, numbers)), (3, {"a": 1.0, "b": NAN}, [FOUND]))
    assert seen == [(3, {"a": 1.0})]


def test_a_function_with_a_parameter_for_findings_has_their_texts():
    seen = []

    def log(step, numbers, *, findings):
        seen.append(findings)

    write(log, (3, {"a": 1.0}, [FOUND]), (4, {"a": 1.0}, []))
    assert seen == [["dead units: 9 of 9 in a (try: initialize(model, 'he'))"], []]


def test_a_function_that_has_its_step_second_is_called_so():
    seen = []

    def log(values, step=None, log_kwargs=None):  # as accelerate has it
        seen.append((values, step))

    write(log, (3, {"a": 1.0}, []))
    assert seen == [({"a": 1.0}, 3)]


class Writer:
    """As TensorBoard's."""

    def __init__(self):
        self.seen = []

    def add_scalar(self, *event):
        self.seen.append(event)

    def add_text(self, *event):
        self.seen.append(event)

    def flush(self):
        self.seen.append("flushed")


def test_a_summary_writer_has_scalars_and_texts_and_is_flushed():
    writer = Writer()
    write(writer, (3, {"a": 1.0, "b": NAN}, [FOUND]))
    text = "dead units: 9 of 9 in a (try: initialize(model, 'he'))"
    assert writer.seen == [("a", 1.0, 3), ("gradient/findings", text, 3), "flushed"]


def test_several_targets_each_have_all():
    writer, seen = Writer(), []
    write(loggers_of([writer, lambda *own: seen.append(own)]), (0, {"a": 1.0}, []))
    assert writer.seen == [("a", 1.0, 0), "flushed"]
    assert seen == [(0, {"a": 1.0})]


class Run:
    """A run of wandb, which takes no step below its last."""

    def __init__(self):
        self.step, self.rows, self.axes = 0, [], set()

    def define_metric(self, name, step_metric):
        self.axes.add((name, step_metric))

    def log(self, row, step):
        assert step >= self.step
        self.step = step
        self.rows.append((row, step))


@pytest.mark.parametrize("target", [lambda run: run, lambda run: run.log])
def test_a_wandb_run_that_is_further_on_loses_nothing(target):
    run = Run()
    run.step = 7
    write(loggers_of(target(run)), (3, {"a/b": 1.0}, []), (9, {"a/b": 2.0}, [FOUND]))
    assert [step for _, step in run.rows] == [7, 9]
    assert [row["gradient/step"] for row, _ in run.rows] == [3, 9]
    assert run.rows[1][0]["gradient/findings"].startswith("dead units: 9 of 9")
    assert run.axes == {("a/*", "gradient/step")}


def test_no_two_rows_of_wandb_are_written_at_one_step():
    run = Run()
    run.step = 7
    write(loggers_of(run), (3, {"a/b": 1.0}, []))
    (logger,) = loggers_of(run)
    for step in (4, 5, 5, 20):
        logger.write(step, {"a/b": 1.0}, [])
    assert [(row["gradient/step"], step) for row, step in run.rows] == [(3, 7), (4, 7), (5, 8), (5, 8), (20, 20)]


FAKE_MLFLOW = {
    "__init__.py": """
import json
class MlflowClient:
    def __init__(self, uri):
        self.uri = uri
    def log_batch(self, run, metrics, tags):
        if any(value < 0 for _, value, _, _ in metrics):
            raise ValueError("below\\n0")
        with open(self.uri, "a") as file:
            rows = [[run, key, value, step] for key, value, _, step in metrics]
            print(json.dumps([rows, [*map(list, tags)]]), file=file)
""",
    "entities.py": "Metric = lambda *own: own\nRunTag = lambda *own: own",
}


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Return a process that has a library of its own in place of MLflow."""
    (tmp_path / "mlflow").mkdir()
    for name, text in FAKE_MLFLOW.items():
        (tmp_path / "mlflow" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return MlflowProcess(str(tmp_path / "store"))


def test_the_process_for_mlflow_writes_all_steps_in_their_order(process, tmp_path):
    for step in range(700):
        process.send("run", step, {"a": 0.5, "b": 1.0}, {"found": "x"} if step == 3 else {})
    process.wait()
    batches = [json.loads(line) for line in (tmp_path / "store").read_text().splitlines()]
    assert max(len(rows) for rows, _ in batches) <= 1000  # as many as MLflow takes
    assert [row for rows, _ in batches for row in rows if row[1] == "b"] == [["run", "b", 1.0, s] for s in range(700)]
    assert [tag for _, tags in batches for tag in tags] == [["found", "x"]]


def test_what_mlflow_raises_in_its_process_is_told_and_later_steps_are_written(process, tmp_path):
    process.send("run", 0, {"a": -1.0}, {})
    with pytest.raises(OSError, match=r"^ValueError: below 0$"):
        process.wait()
    process.send("run", 1, {"a": 1.0}, {})
    process.wait()
    assert json.loads((tmp_path / "store").read_text()) == [[["run", "a", 1.0, 1]], []]


def test_a_process_for_mlflow_that_has_ended_is_told(process):
    process.send("run", 0, {"a": 1.0}, {})
    process.wait()
    process._process.kill()
    process._process.wait()
    with pytest.raises(OSError, match=r"^the process that writes to MLflow has ended$"):
        process.send("run", 1, {"a": 1.0}, {})


def test_a_csv_file_has_a_row_for_each_step_and_findings_in_one_line(tmp_path):
    path = tmp_path / "new" / "curves.csv"
    found = Finding("cut", "at a,\nb", (), 'say "x"')
    write(path, (0, {"a": 0.1, "b": NAN}, []), (1, {"a": 0.2, "b": 1e-300}, [found]))
    assert rows_of(path) == [
        {"step": "0", "a": "0.1", "b": "", "findings": ""},
        {"step": "1", "a": "0.2", "b": "1e-300", "findings": 'cut: at a, b (try: say "x")'},
    ]


def test_a_row_that_a_killed_training_has_cut_short_is_cut_off_and_the_file_goes_on(tmp_path):
    path = tmp_path / "curves.csv"
    write(path, *((step, {"a": 0.1, "b": float(step)}, []) for step in range(2)))
    whole = path.read_bytes()
    ends = [0, *(at + 1 for at, byte in enumerate(whole) if byte == ord("\n"))]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        write(path, (9, {"a": 0.1, "b": 9.0}, []))
        rows = [row["b"] for row in rows_of(path)]
        kept = max(0, sum(end <= length for end in ends) - 2)
        assert rows == [f"{float(step)}" for step in (*range(kept), 9)]


def test_columns_of_layers_that_are_called_later_are_added(tmp_path):
    path = tmp_path / "curves.csv"
    write(loggers_of(path), (0, {"a": 1.0}, [FOUND]), (1, {"b": 2.0, "a": 3.0}, []))
    first, second = rows_of(path)
    assert (first["a"], first["b"], first["findings"][:10]) == ("1.0", "", "dead units")
    assert (second["a"], second["b"], second["findings"]) == ("3.0", "2.0", "")


def test_a_step_is_appended_and_what_is_there_stays_as_it_is(tmp_path):
    path = tmp_path / "curves.csv"
    (logger,) = loggers_of(path)
    logger.write(0, {"a": 1.0}, [])
    number, before = path.stat().st_ino, path.read_bytes()
    logger.write(1, {"a": 2.0}, [])
    assert path.stat().st_ino == number
    assert path.read_bytes() == before + b"1,2.0,\n"


def test_a_csv_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"data\.csv is there already, and is no file of a probe's curves"):
        loggers_of(path)
    assert path.read_text() == "x,y\n1,2\n"


@pytest.mark.parametrize("log", [3, None, object(), "wandb", "curves.txt", b"x", Writer, {"a": 1}])
def test_what_is_no_target_is_told_in_one_line(log):
    with pytest.raises((TypeError, ValueError), match=r"^log must be one of a function of .*, got [^\n]+$"):
        loggers_of(log)


@pytest.mark.parametrize("log", [lambda: 0, lambda step: 0, lambda a, b, c: 0, lambda step, numbers, *, x: 0])
def test_a_function_of_something_else_is_told_in_one_line(log):
    with pytest.raises(TypeError, match=r"^log must be a function of step and numbers: <lambda>: [^\n]+$"):
        loggers_of(log)


def test_the_module_wandb_needs_a_run():
    wandb = ModuleType("wandb")
    with pytest.raises(ValueError, match=r"has no run yet; give log=wandb.init\(\.\.\.\)"):
        loggers_of(wandb)
    wandb.run = Run()
    write(wandb, (0, {"a": 1.0}, []))
    assert len(wandb.run.rows) == 1
