"""What runs are called on the board, and which of them have one colour."""

import json
import re
from pathlib import Path

import pytest

from gradexp.board.names import colour_groups, find_runs, varying_options
from gradexp.config import Config, InitConfig
from gradexp.runs.result import Result
from gradexp.runs.summary import summary


def leave(folder: Path, *subruns: str, overrides: tuple[str, ...] = (), config: Config | None = None) -> Path:
    """Leave a run of TensorBoard in a folder, with a summary if it is one of gradexp."""
    for subrun in ("", *subruns):
        (folder / subrun).mkdir(parents=True, exist_ok=True)
        (folder / subrun / "events.out.tfevents.1700000000.vm.1.0").touch()
    if overrides or config:
        result = Result(config or Config(), list(overrides), "complete")
        (folder / "summary.json").write_text(json.dumps(summary(result)))
    return folder


def names(folder: Path) -> dict[str, list[str]]:
    return {run.name: sorted(run.subruns) for run in find_runs(folder)}


def test_a_run_is_called_by_its_folder_without_what_all_begin_with(tmp_path: Path) -> None:
    leave(tmp_path / "2026-11-29" / "21-16-01-015112_init=he,depth=150", "theory", "theory/lower", "step_000099")
    leave(tmp_path / "2026-11-29" / "21-17-01-015112_init=xavier")
    (tmp_path / "2026-11-29" / "empty").mkdir()
    shown = {
        "21-16-01-015112_init=he,depth=150": ["step_000099", "theory", "theory/lower"],
        "21-17-01-015112_init=xavier": [],
    }
    assert names(tmp_path) == shown
    leave(tmp_path / "2026-11-30" / "by hand" / "theory")  # a run of that name, since there is none above it
    assert names(tmp_path).keys() == {
        *(f"2026-11-29/{name}" for name in shown),
        "2026-11-30/by hand/theory",
    }


def test_the_only_run_of_a_folder_has_its_name_and_no_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = leave(tmp_path / "0_init=he", "theory")
    assert names(own) == {"0_init=he": ["theory"]}
    monkeypatch.chdir(own)
    assert names(Path()) == {"0_init=he": ["theory"]}
    leave(own / "0_init=he")  # a run below it, of the same name
    assert names(own) == {"0_init=he": ["theory"], "0_init=he_": []}


def test_an_older_run_that_is_called_by_the_time_has_its_options_behind_it(tmp_path: Path) -> None:
    leave(tmp_path / "21-16-01-015112", overrides=("init=he", "data.path=a/b"))
    bare = [f"21-16-{second}-015112" for second in ("02", "03", "04", "05")]
    for name, content in zip(bare, (None, "{}", "[", '{"overrides": 3, "config": []}'), strict=True):
        leave(tmp_path / name)
        if content:
            (tmp_path / name / "summary.json").write_text(content)
    leave(tmp_path / "21-16-06-015112")  # of another version
    (tmp_path / "21-16-06-015112" / "summary.json").write_text('{"schema": 0, "overrides": ["init=he"]}')
    first, last = "21-16-01-015112_init=he,data.path=a-b", "21-16-06-015112_init=he"
    assert list(names(tmp_path)) == [first, *bare, last]
    assert varying_options(find_runs(tmp_path)) is None  # as the options of one run only are known


def test_only_options_with_two_values_differ(tmp_path: Path) -> None:
    leave(tmp_path / "a", config=Config(depth=10, init=InitConfig("he")))
    leave(tmp_path / "b", config=Config(depth=10, init=InitConfig("normal", std=0.1), threads=1))
    leave(tmp_path / "c", config=Config(depth=10, init=InitConfig("normal", std=0.1), threads=2))
    leave(tmp_path / "of another program")
    # One has no std, and threads change no result.
    assert varying_options(find_runs(tmp_path)) == {"init"}


SINGLE = ["he", "he/theory", "he/theory/lower", "he/theory/upper", "he/step_000099", "a/xavier", "a/xavier/theory"]
SWEEP = ["0_depth=10,init=he,seed=0", "1_depth=10,init=he,seed=1", "2_depth=10,init=xavier,seed=0"]
DEPTHS = ["x/0_depth=10,init=he,seed=0", "x/0_depth=10,init=he,seed=0/theory", "x/1_depth=50,init=he,seed=0"]
SCALES = ["0_init=normal,init.std=0.06", "1_init=normal,init.std=0.25"]
TWO = ["0_depth=10,init=he", "1_depth=10,init=xavier", "2_init=he,depth=50", "2_init=he,depth=50/theory"]
MANY = [f"{depth}_depth={depth},init={init}" for depth in range(4) for init in ("he", "xavier")]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (SINGLE, ["he", "he", "he", "he", "he/step_000099", "a/xavier", "a/xavier"]),
        (SWEEP, ["he", "he", "xavier"]),
        ([*SWEEP, "init=he/2 seeds/mean+sd"], ["he", "he", "xavier", "he"]),
        (DEPTHS, ["10", "10", "50"]),
        (SCALES, ["0.06", "0.25"]),
        (TWO, ["10 he", "10 xavier", "50 he", "50 he"]),
        (MANY, ["he", "xavier"] * 4),  # as there are but seven colours
        (["init=he", "init=he/theory", "init=xavier"], ["he", "he", "xavier"]),
        (["a/init=he", "b/init=xavier"], ["he", "xavier"]),
        (["my_batch_size=8", "my_batch_size=16"], ["8", "16"]),
        ([*SWEEP, "by_hand"], [*SWEEP, "by_hand"]),  # not all have it in their names
        (["0_seed=0", "1_seed=1", "2 seeds/mean-sd"], ["0_seed=0", "1_seed=1", "2 seeds"]),
    ],
)
def test_a_run_has_the_colour_of_its_theory_and_of_its_mean_and_in_a_sweep_that_of_its_options(
    names: list[str], groups: list[str]
) -> None:
    runs = [name for name in names if not re.search(r"/(theory|step_\d+)|seeds/", name)]
    found = [re.search(colour_groups(runs), name) for name in names]
    assert [match and " ".join(match.groups()) for match in found] == groups


def test_a_single_run_and_its_theory_have_two_colours() -> None:
    assert {re.search(colour_groups(["he"]), name)[1] for name in ("he", "he/theory")} == {"he", "he/theory"}
