"""What TensorBoard is shown of runs: links to their files, and no more lines than it draws."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from gradexp.board.view import View
from gradexp.history.scalars import points
from gradexp.sinks.event_file import EventFile
from gradexp.sinks.tensorboard import write_points

LOSS = "train/loss"


def leave(folder: Path, *losses: float) -> None:
    file = EventFile(folder)
    write_points(file, points(range(len(losses)), {LOSS: losses}))
    file.close()


def shown(view: View) -> list[str]:
    """Return what TensorBoard finds."""
    return sorted(EventMultiplexer().AddRunsFromDirectory(str(view.folder)).Runs())


def scalars(folder: Path) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(LOSS)}


@pytest.fixture
def view(tmp_path: Path) -> View:
    (tmp_path / "links").mkdir()
    (tmp_path / "runs").mkdir()
    return View(tmp_path / "runs", tmp_path / "links")


def touch(view: View, *names: str) -> None:
    for name in names:
        (view.source / name).mkdir(parents=True, exist_ok=True)
        (view.source / name / "events.out.tfevents.1700000000.vm.1.0").touch()


def test_links_follow_what_comes_and_goes_and_leave_the_runs_alone(view: View) -> None:
    touch(view, "he", "he/theory", "he/theory/lower", "he/theory/upper", "he/step_000001")
    view.look()
    assert shown(view) == sorted(view.names) == ["he", "he/step_000001", "he/theory"]
    before = list(view.source.rglob("*"))
    touch(view, "xavier")
    view.look()
    assert shown(view) == sorted(view.names) == ["he", "he/step_000001", "he/theory", "xavier"]
    old = next((view.source / "he").glob("events*"))
    new = old.with_name("events.out.tfevents.1700000001.vm.1.0")
    old.rename(new)  # the run is made again
    next((view.source / "xavier").glob("events*")).unlink()
    view.look()
    assert shown(view) == ["he", "he/step_000001", "he/theory"]
    assert [link.resolve() for link in (view.folder / "he").glob("events*")] == [new]
    assert len(list(view.source.rglob("*"))) == len(before) + 1


@pytest.mark.parametrize(("runs", "lines"), [(20, 40), (21, 21), (600, 600)])
def test_theory_is_shown_of_few_runs_only(view: View, runs: int, lines: int) -> None:
    for number in range(runs):
        touch(view, f"{number}_a={number}", f"{number}_a={number}/theory")
    view.look()
    assert len(view.names) == lines
    assert view.left_out == (["theory"] if runs > 20 else [])


def test_profiles_in_training_are_left_out_where_they_would_hide_all(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradexp.board.view.MOST", 5)
    touch(view, "he", *(f"he/step_{step:06}" for step in range(4)))
    view.look()
    assert (len(view.names), view.left_out) == (5, [])
    touch(view, "he/step_000004")
    view.look()
    assert (view.names, view.left_out) == (["he"], ["steps in training"])


def test_means_over_seeds_follow_the_runs_and_write_each_step_once(view: View) -> None:
    leave(view.source / "0_init=he,seed=0", 1.0, 2.0)
    view.look()
    assert (view.names, view.filter) == (["0_init=he,seed=0"], "")
    leave(view.source / "1_init=he,seed=1", 3.0)
    view.look()
    own = view.folder / "init=he/2 seeds"
    assert scalars(own / "mean") == {0: 2.0}
    assert view.filter == "seeds/mean"
    leave(view.source / "1_init=he,seed=1", 3.0, 6.0)
    view.look()
    view.look()
    assert scalars(own / "mean") == {0: 2.0, 1: 4.0}
    assert scalars(own / "mean+sd") == pytest.approx({0: 2 + 2**0.5, 1: 4 + 8**0.5})
    assert scalars(own / "mean-sd") == pytest.approx({0: 2 - 2**0.5, 1: 4 - 8**0.5})
    assert sorted(set(view.names)) == shown(view)
    assert len(view.names) == 5
    leave(view.source / "2_init=xavier,seed=0", 1.0)  # of which there is no mean, so that all are drawn
    leave(view.source / "3_init=he,seed=2", 5.0)
    view.look()
    assert view.filter == ""
    assert [name for name in shown(view) if name.endswith("/mean")] == ["init=he/3 seeds/mean"]
    assert scalars(view.folder / "init=he/3 seeds" / "mean") == {0: 3.0}
    view.close()
